"""Recipe of the embedded Fashion-MNIST CNF: `python -m outsourced.zoo.fashion_cnf`.

Flow matching on straight paths (Lipman et al., 2023, arXiv 2210.02747) whose ends are paired by
optimal transport within pools of images (Tong et al., 2024, arXiv 2302.00482): the paths cross
less, hence the ODE bends less and a dozen network calls integrate it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.allocator import keep_freed_memory
from outsourced.classifiers import FashionFeatures
from outsourced.data import load_fashion_mnist, to_model_range
from outsourced.priors.cnf import CNF, Velocity
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo.quality import Judge, blurred, draw, noisy, sampling_seconds, save_samples

SCHEDULES = (  # solver and steps of the card: 4, 8, 12 and 20 calls
    *(("euler", steps) for steps in (4, 8, 12, 20)),
    *(("heun", steps) for steps in (2, 4, 6, 10)),
)
STD_FLOOR = 0.02  # black borders never vary; a floor keeps the linear field finite


def couple(z: Tensor, x: Tensor) -> Tensor:
    """Reorder noise so that the sum of squared distances to the images is the smallest.

    Args:
        z: noise, (N, ...).
        x: images, (N, ...).

    Returns:
        a permutation of z, row i of which is the partner of x[i], (N, ...).
    """
    from scipy.optimize import linear_sum_assignment

    # |x - z|^2 without |x|^2 and |z|^2, whose sums no permutation changes.
    cost = -(x.flatten(1) @ z.flatten(1).T)
    return z[torch.from_numpy(linear_sum_assignment(cost.numpy())[1])]


def flow_matching_loss(velocity: Velocity, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Squared error of the velocity on straight paths from z to x.

    Args:
        velocity: the velocity field.
        z: noise, (B, C, H, W).
        x: images, (B, C, H, W).
        t: flow times in [0, 1], (B,).

    Returns:
        mean over pixels and batch of |v(x_t, t) - (x - z)|^2.
    """
    at = t.reshape(-1, 1, 1, 1)
    return (velocity((1 - at) * z + at * x, t) - (x - z)).square().mean()


def batches(
    images: Tensor, pool: int, batch: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the images in random order, paired with noise by pools: (z, x) of a batch."""
    order = torch.randperm(len(images), generator=generator)
    for rows in order[: len(images) // pool * pool].split(pool):
        x = images[rows]
        z = couple(torch.randn(x.shape, generator=generator), x)
        yield from zip(z.split(batch), x.split(batch), strict=True)


def train(
    velocity: Velocity,
    x_all: Tensor,
    epochs: int,
    pool: int,
    batch: int,
    rate: float,
    seed: int,
) -> Velocity:
    """Minimise the flow-matching loss with Adam, warm-up, cosine decay and averaged weights.

    Args:
        velocity: the velocity field, changed in place.
        x_all: images in [-1, 1], (N, C, H, W).
        epochs: passes over the images.
        pool: images that are paired with noise at once; a multiple of batch, at most N.
        batch: images a step.
        rate: peak learning rate.
        seed: seed of the order, the noise and the times.

    Returns:
        the exponential moving average of the velocity field.
    """
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    velocity.set_statistics(x_all.mean(0), x_all.std(0).clamp(min=STD_FLOOR))
    total = epochs * (len(x_all) // pool) * (pool // batch)
    average = AveragedModel(velocity, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.Adam(velocity.parameters(), lr=rate, betas=(0.9, 0.99))
    progress = tqdm(total=total, unit="step", mininterval=5)
    for epoch in range(epochs):
        for z, x in batches(x_all, pool, batch, generator):
            done = (progress.n + 1) / (total + 1)
            cosine = 0.5 * (1 + math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = rate * min(1.0, 20 * done) * cosine
            t = torch.rand(len(x), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss = flow_matching_loss(velocity, z, x, t)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(velocity.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(velocity)
            progress.update()
            if progress.n % 50 == 0:
                progress.set_postfix(epoch=epoch, loss=f"{loss.item():.4f}")
    progress.close()
    return cast(Velocity, average.module)


def print_card_rows(weights: Path, folder: str | None, n: int) -> None:
    """Print quality against network calls, between brackets, as rows of a Markdown table.

    The distance to the ODE is the root-mean-square over pixels to the solution by 20 Heun steps
    from the same noise.
    """
    velocity = Velocity.from_weights(weights)
    train_x, test_x = (
        to_model_range(load_fashion_mnist(split, folder)[0]) for split in ("train", "test")
    )
    judge = Judge(train_x, test_x, FashionFeatures.from_weights())
    print("| images | calls | Fréchet distance | effective classes | to the ODE | s / 64 |")
    print("|---|---|---|---|---|---|")
    brackets = {"training": train_x[:n], "blurred test": blurred(test_x[:n])}
    for name, x in {**brackets, "noisy test": noisy(test_x[:n], seed=0)}.items():
        found = judge.fidelity(x)
        print(f"| {name} | | {found['frechet']:.2f} | {found['classes']:.2f} | | |", flush=True)
    limit = draw(CNF(velocity, "heun", 20), 64, seed=0)
    for solver, steps in SCHEDULES:
        prior = CNF(velocity, solver, steps)
        x = draw(prior, n, seed=0)
        found, error = judge.fidelity(x), (x[:64] - limit).square().mean().sqrt()
        print(
            f"| {solver}, {steps} steps | {prior.calls} | {found['frechet']:.2f} | "
            f"{found['classes']:.2f} | {error:.3f} | {sampling_seconds(prior, repeats=3):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO_WEIGHTS / "fashion_cnf.safetensors")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the full data set lies")
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    parser.add_argument("--n", type=int, default=1000, help="with --evaluate: samples of a row")
    parser.add_argument("--sheet", type=Path, help="with --evaluate: PNG of samples to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if args.evaluate:
        if args.sheet is not None:
            save_samples(draw(CNF.from_weights(args.out), 128, seed=0), args.sheet)
        print_card_rows(args.out, args.folder, args.n)
        return
    images, _ = load_fashion_mnist("train", args.folder)
    torch.manual_seed(args.seed)
    recipe = {name: getattr(args, name) for name in ("epochs", "pool", "batch", "rate", "seed")}
    trained = train(Velocity(), to_model_range(images), **recipe)
    trained.save_weights(args.out, {name: str(value) for name, value in recipe.items()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
