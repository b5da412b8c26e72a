"""Recipe of the embedded Fashion-MNIST hierarchical VAE: `python -m outsourced.zoo.fashion_hvae`.

Trains on all 60 000 images with the evidence lower bound under a Gaussian decoder of fixed
standard deviation. During the warm-up the vector levels pay little for their information while
the spatial ones pay in full, so that the choice of the garment settles at the top, where one draw
decides it for the whole image (Sønderby et al., 2016, arXiv 1602.02282, warm all levels alike);
after it every level pays in full, above a few free nats (Kingma et al., 2016, arXiv 1606.04934,
per image instead of per batch).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.data import load_fashion_mnist, to_model_range
from outsourced.metrics import psnr
from outsourced.priors.hvae import HVAE
from outsourced.zoo.recipe import metadata, recipe_parser, settings, start

WARM_UP = 0.25  # share of the training


def elbo_terms(
    hvae: HVAE, x: Tensor, generator: torch.Generator | None, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Squared error of one reconstruction, and the divergence of each level's posterior.

    Args:
        hvae: the autoencoder.
        x: images in [-1, 1], (B, C, H, W).
        generator: source of the reparametrised draws ε ~ q(ε|x).
        half: run the convolutions in bfloat16, which is faster.

    Returns:
        squared error summed over pixels, (B,), and KL(q(ε_l | x, ε_<l) || N(0, I)) in nats,
        (B, levels).
    """

    def draw(mean: Tensor, log_std: Tensor) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + log_std.exp() * noise

    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        decoded, terms = hvae.infer(x, draw)
    kl = [
        (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).flatten(1).sum(1)
        for mean, log_std in terms
    ]
    return (decoded.float() - x).square().flatten(1).sum(1), torch.stack(kl, dim=1)


def objective(error: Tensor, kl: Tensor, sigma: float, weight: Tensor, free: float) -> Tensor:
    """Negative ELBO without its constant, with weighted levels and free nats.

    Args:
        error: squared errors, (B,).
        kl: divergences, (B, levels).
        sigma: standard deviation of the decoder.
        weight: price of each level's nats, (levels,).
        free: nats that each level of each image has for nothing.

    Returns:
        the mean over images, a scalar.
    """
    price = (kl.clamp(min=free) * weight).sum(1)
    return (error / (2 * sigma**2) + price).mean()


def level_weights(hvae: HVAE, done: float) -> Tensor:
    """Price of each level's nats, (levels,), when the share `done` of the training is over."""
    ramp = min(1.0, 0.1 + 0.9 * done / WARM_UP)
    prices = [ramp if side == 1 else 1.0 for _, _, side in hvae.shapes]
    return torch.tensor(prices, device=hvae.start.device)


def train(
    hvae: HVAE, images: Tensor, steps: int, batch: int, rate: float, free: float, seed: int
) -> HVAE:
    """Maximise the ELBO with Adam, a cosine learning rate and an average of the weights.

    Args:
        hvae: the autoencoder, changed in place.
        images: uint8 (N, 28, 28).
        steps: number of updates.
        batch: images a step.
        rate: peak learning rate.
        free: free nats of each level.
        seed: seed of the order and the draws from q(ε|x).

    Returns:
        the exponential moving average of the autoencoder.
    """
    from tqdm import trange

    device = hvae.start.device
    generator = torch.Generator(device).manual_seed(seed)
    hvae.requires_grad_(True)
    hvae.to(memory_format=torch.channels_last)
    average = AveragedModel(hvae, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.Adam(hvae.parameters(), lr=rate)
    x_all = to_model_range(images).to(device)
    progress = trange(steps, unit="step", mininterval=5)
    for step in progress:
        x = x_all[torch.randint(len(x_all), (batch,), generator=generator, device=device)]
        done = step / steps
        # The first steps are short: the spread of the untrained posteriors makes large gradients.
        optimizer.param_groups[0]["lr"] = (
            rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        )
        error, kl = elbo_terms(hvae, x, generator, half=True)
        loss = objective(error, kl, hvae.sigma, level_weights(hvae, done), free)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(hvae.parameters(), 200.0)
        optimizer.step()
        average.update_parameters(hvae)
        if step % 50 == 0:
            shown = "/".join(f"{nats:.1f}" for nats in kl.detach().mean(0))
            progress.set_postfix(mse=f"{error.detach().mean() / x[0].numel():.4f}", kl=shown)
    hvae.freeze()
    trained = cast(HVAE, average.module)
    trained.freeze()
    return trained


@torch.no_grad()
def evaluate(hvae: HVAE, test: Tensor) -> dict[str, str]:
    """Compute the rows of the card that only this family has.

    Args:
        hvae: the trained autoencoder.
        test: test images in [-1, 1], (M, C, H, W).

    Returns:
        name -> value, in the order of the card.
    """
    generator, pixels = torch.Generator().manual_seed(0), test[0].numel()
    parts = [elbo_terms(hvae, x, generator) for x in test.split(500)]
    error, kl = (torch.cat(terms) for terms in zip(*parts, strict=True))
    constant = pixels * (math.log(hvae.sigma) + 0.5 * math.log(2 * math.pi))
    bound = (-error / (2 * hvae.sigma**2) - constant - kl.sum(1)).mean().item()
    codes = [hvae.encode(x) for x in test.split(500)]
    mean, std = (torch.cat(terms) for terms in zip(*codes, strict=True))
    images = torch.cat([hvae(z) for z in mean.split(500)])
    nats = (0.5 * (mean.square() + std.square() - 1) - std.log()).mean(0)
    rows = {
        f"test ELBO, nats an image of {pixels} dimensions": f"{bound:.1f}",
        "test ELBO, nats a dimension": f"{bound / pixels:.4f}",
        "test reconstruction PSNR, dB": f"{psnr(images, test).mean():.2f}",
    }
    active = [
        int((level > 0.02).sum()) for level in nats.split([math.prod(s) for s in hvae.shapes])
    ]
    for shape, level, count in zip(hvae.shapes, kl.mean(0), active, strict=True):
        name = "×".join(str(size) for size in shape)
        rows[f"test KL of level {name}, nats (noise coordinates with > 0.02 nats)"] = (
            f"{level:.1f} ({count} of {math.prod(shape)})"
        )
    return rows


def main() -> None:
    parser = recipe_parser(__doc__, "fashion_hvae.safetensors")
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--free", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    args = parser.parse_args()
    device = start(args, args.seed)
    if args.evaluate:
        test = to_model_range(load_fashion_mnist("test", args.folder)[0])
        for name, value in evaluate(HVAE.from_weights(args.out), test).items():
            print(f"| {name} | {value} |")
        return
    images, _ = load_fashion_mnist("train", args.folder)
    recipe = settings(args, ("steps", "batch", "rate", "free", "seed"))
    trained = train(HVAE(sigma=args.sigma).to(device), images, **recipe)
    trained.save_weights(args.out, metadata(recipe, device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
