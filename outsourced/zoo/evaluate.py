"""Measures of the card of the embedded VAE alone; those of every prior are in `quality`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from outsourced.priors.vae import VAE


def sliced_wasserstein(a: Tensor, b: Tensor, generator: torch.Generator, n: int = 256) -> float:
    """Sliced 2-Wasserstein distance (Bonneel et al., 2015) of two equal-sized sets of images.

    Args:
        a: images, (N, ...).
        b: images, (N, ...).
        generator: source of the directions.
        n: number of directions.

    Returns:
        root mean squared distance of the sorted projections on unit vectors, in image units.
    """
    directions = F.normalize(torch.randn(a[0].numel(), n, generator=generator), dim=0)
    sorted_a = (a.flatten(1) @ directions).sort(dim=0).values
    sorted_b = (b.flatten(1) @ directions).sort(dim=0).values
    return (sorted_a - sorted_b).square().mean().sqrt().item()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image on [0, 1], in dB: two (N, ...) -> (N,)."""
    error = ((x - y) / 2).square().flatten(1).mean(1)
    return -10 * error.log10()


def active_units(vae: VAE, x: Tensor) -> tuple[Tensor, int]:
    """Information about an image that each noise coordinate carries.

    Args:
        vae: the autoencoder.
        x: images in [-1, 1], (N, C, H, W).

    Returns:
        KL(N(mean, std²) || N(0, 1)) of `vae.encode` averaged over images, (latent,) in nats, and
        how many of them exceed 0.1.
    """
    mean, std = vae.encode(x)
    kl = (0.5 * (mean.square() + std.square() - 1) - std.log()).mean(0)
    return kl, int((kl > 0.1).sum())


def class_shares(x: Tensor, train: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Share of each label among the k-nearest-neighbour votes of the images: (labels,)."""
    distances = torch.cdist(x.flatten(1), train.flatten(1))
    votes = labels[distances.topk(k, largest=False).indices].mode(dim=1).values
    return votes.bincount(minlength=int(labels.max()) + 1) / len(x)


@torch.no_grad()
def save_sheet(vae: VAE, test: Tensor, path: Path, seed: int = 0) -> None:
    """Write prior samples (left) and test images over their reconstructions (right) to a PNG.

    Args:
        vae: the trained autoencoder.
        test: test images in [-1, 1], at least 48.
        path: the PNG to write.
        seed: seed of the samples.
    """
    from torchvision.utils import make_grid, save_image

    def grid(images: Tensor) -> Tensor:
        return make_grid(images, nrow=8, value_range=(-1, 1), normalize=True, pad_value=1.0)

    z = torch.randn(96, *vae.noise_shape, generator=torch.Generator().manual_seed(seed))
    images = test[:48]
    rows = [images.unflatten(0, (6, 8)), vae(vae.encode(images)[0]).unflatten(0, (6, 8))]
    left, right = grid(vae(z)), grid(torch.stack(rows, dim=1).flatten(0, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    gap = torch.ones(3, left.shape[1], 16)
    save_image(F.interpolate(torch.cat([left, gap, right], 2)[None], scale_factor=2)[0], path)
