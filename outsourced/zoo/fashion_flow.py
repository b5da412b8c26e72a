"""Recipe of the embedded Fashion-MNIST flow: `python -m outsourced.zoo.fashion_flow`.

Maximum likelihood of uniformly dequantised images with a little Gaussian noise: without the
noise a flow spends itself on the exact black of the background. The density factorises, so the
half-resolution image and the details given it are fitted one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.classifiers import FashionFeatures
from outsourced.data import load_fashion_mnist, to_model_range
from outsourced.priors.flow import ImageFlow
from outsourced.priors.flow_networks import haar
from outsourced.zoo.quality import Judge, blurred, draw, noisy, sampling_seconds, save_samples
from outsourced.zoo.recipe import metadata, recipe_parser, settings, start

BIN = 2 / 255  # width of one grey level on [-1, 1]


def dequantise(x: Tensor, generator: torch.Generator, noise: float = 0.0) -> Tensor:
    """Spread each grey level uniformly over its bin, then add Gaussian noise.

    Args:
        x: images on the 256 levels of [-1, 1], (B, C, H, W).
        generator: source of the draws, on the device of the images.
        noise: standard deviation of the Gaussian, in units of [-1, 1] images.

    Returns:
        (B, C, H, W).
    """
    draws: dict[str, Any] = {"generator": generator, "device": generator.device}
    x = x + BIN * (torch.rand(x.shape, **draws) - 0.5)
    return x + noise * torch.randn(x.shape, **draws)


def bits_per_dimension(flow: ImageFlow, x: Tensor, generator: torch.Generator) -> float:
    """Mean bits a dimension of the 256-level images under the flow, an upper bound by one draw.

    Args:
        flow: the flow.
        x: images on the 256 levels of [-1, 1], (N, C, H, W).
        generator: source of the uniform dequantisation (Theis et al., 2016, arXiv 1511.01844).
    """
    log_prob = torch.cat([flow.log_prob(dequantise(c, generator)) for c in x.split(500)])
    return (-log_prob.double().mean() / x[0].numel() / math.log(2) - math.log2(BIN)).item()


def low_loss(flow: ImageFlow, x: Tensor) -> Tensor:
    """Negative log-density of the half-resolution images, nats an entry without constant."""
    z, log_det = flow.low.inverse(F.pixel_unshuffle(haar(x)[0], 2))
    return (0.5 * z.square().flatten(1).sum(1) - log_det).mean() / z[0].numel()


def details_loss(flow: ImageFlow, x: Tensor) -> Tensor:
    """Negative log-density of the details given the true half-resolution images, likewise."""
    low, details = haar(x)
    z, log_det = flow.details.inverse(F.pixel_unshuffle(details, 2), F.pixel_unshuffle(low, 2))
    return (0.5 * z.square().flatten(1).sum(1) - log_det).mean() / z[0].numel()


def fit(
    part: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    x_all: Tensor,
    epochs: int,
    batch: int,
    rate: float,
    noise: float,
    weight_decay: float,
    generator: torch.Generator,
) -> None:
    """Minimise a loss with AdamW, warm-up and cosine decay; leave the averaged weights in place.

    Args:
        part: the module whose parameters are fitted.
        loss_of: loss of a batch of noisy images.
        x_all: images in [-1, 1], (N, C, H, W).
        epochs: passes over the images.
        batch: images a step.
        rate: peak learning rate.
        noise: standard deviation of the added noise.
        weight_decay: of AdamW.
        generator: source of the order and the noise.
    """
    from tqdm import trange

    part.requires_grad_(True)
    per_epoch = len(x_all) // batch
    # The average forgets within a twentieth of the training, whatever its length.
    decay = 1 - 20 / max(epochs * per_epoch, 40)
    average = AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.AdamW(part.parameters(), lr=rate, weight_decay=weight_decay)
    progress = trange(epochs * per_epoch, unit="step", mininterval=5)
    for step in progress:
        if step % per_epoch == 0:
            order = torch.randperm(len(x_all), generator=generator, device=x_all.device)
        start = (step % per_epoch) * batch
        x = dequantise(x_all[order[start : start + batch]], generator, noise)
        done = (step + 1) / (len(progress) + 1)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 20 * done) * cosine
        loss = loss_of(x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(part)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    part.load_state_dict(average.module.state_dict())


def train(
    flow: ImageFlow,
    x_all: Tensor,
    low_epochs: int,
    epochs: int,
    batch: int,
    rate: float,
    noise: float,
    weight_decay: float,
    seed: int,
) -> ImageFlow:
    """Fit the half-resolution image, then the details given it.

    Args:
        flow: the flow, changed in place.
        x_all: images in [-1, 1], (N, C, H, W).
        low_epochs: passes over the images for the half-resolution image.
        epochs: passes for the details.
        batch: images a step.
        rate: peak learning rate.
        noise: standard deviation of the noise added to the images.
        weight_decay: of AdamW.
        seed: seed of the order and of all noise.

    Returns:
        the flow, frozen, with averaged weights.
    """
    device = flow.low.mean.device
    x_all, generator = x_all.to(device), torch.Generator(device).manual_seed(seed)
    low, details = haar(dequantise(x_all, generator, noise))
    flow.low.set_statistics(F.pixel_unshuffle(low, 2))
    flow.details.set_statistics(F.pixel_unshuffle(details, 2))
    common = (batch, rate, noise, weight_decay, generator)
    fit(flow.low, lambda x: low_loss(flow, x), x_all, low_epochs, *common)
    fit(flow.details, lambda x: details_loss(flow, x), x_all, epochs, *common)
    flow.freeze()
    return flow


@torch.no_grad()
def round_trip_error(flow: ImageFlow, x: Tensor) -> float:
    """Largest |f(f^-1(x)) - x| over images (N, C, H, W), in the precision of flow and images."""
    return max((flow(flow.inverse(part)[0]) - part).abs().max().item() for part in x.split(500))


@torch.no_grad()
def print_card_rows(weights: Path, folder: str | None, n: int) -> None:
    """Evaluate a weights file on the full data set and print the rows of its card."""
    flow = ImageFlow.from_weights(weights)
    train_x, test_x = (
        to_model_range(load_fashion_mnist(split, folder)[0]) for split in ("train", "test")
    )
    for name, x in (("test", test_x), ("training", train_x[:10000])):
        bits = bits_per_dimension(flow, x, torch.Generator().manual_seed(0))
        print(f"| bits a dimension, 10000 {name} images | {bits:.3f} |")
    judge = Judge(train_x, test_x, FashionFeatures.from_weights())
    brackets = {"training images": train_x[:n], "blurred test images": blurred(test_x[:n])}
    brackets["noisy test images"] = noisy(test_x[:n], seed=0)
    brackets["**samples**"] = samples = draw(flow, n, seed=0)
    for name, x in brackets.items():
        found = judge.fidelity(x)
        print(f"| Fréchet distance: {n} {name} | {found['frechet']:.2f} |")
    print(f"| effective classes of the samples | {found['classes']:.2f} |")
    print(f"| seconds for 64 samples | {sampling_seconds(flow):.3f} |")
    real = dequantise(test_x[:2000], torch.Generator().manual_seed(0))
    for name, x in (("test images", real), ("samples", samples[:1000])):
        single = round_trip_error(flow.float(), x)
        double = round_trip_error(flow.double(), x.double())
        print(f"| round trip of {name}, float32 and float64 | {single:.1e}, {double:.1e} |")


def main() -> None:
    parser = recipe_parser(__doc__, "fashion_flow.safetensors")
    parser.add_argument("--low-epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    parser.add_argument("--n", type=int, default=5000, help="with --evaluate: samples to judge")
    parser.add_argument("--sheet", type=Path, help="with --evaluate: PNG of samples to write")
    args = parser.parse_args()
    device = start(args, args.seed)
    if args.evaluate:
        if args.sheet is not None:
            save_samples(draw(ImageFlow.from_weights(args.out), 128, seed=0), args.sheet)
        print_card_rows(args.out, args.folder, args.n)
        return
    images, _ = load_fashion_mnist("train", args.folder)
    names = ("low_epochs", "epochs", "batch", "rate", "noise", "weight_decay", "seed")
    recipe = settings(args, names)
    trained = train(ImageFlow().to(device), to_model_range(images), **recipe)
    trained.save_weights(args.out, metadata(recipe, device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
