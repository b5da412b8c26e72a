"""Networks of the variational autoencoder: encoder, latent flow, decoder."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 x): no normalisation, hence smooth and independent of the batch."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.inner(x)))


class Decoder(nn.Module):
    """Residual SiLU network from z to an image in (-1, 1), infinitely differentiable.

    Args:
        latent: dimension of z.
        width: width of the residual stream.
        hidden: inner width of a residual block.
        blocks: number of residual blocks.
        image_shape: (C, H, W) of the image.
    """

    def __init__(
        self, latent: int, width: int, hidden: int, blocks: int, image_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        pixels = torch.Size(self.image_shape).numel()
        self.stem = nn.Linear(latent, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, hidden) for _ in range(blocks)))
        self.head = nn.Linear(width, pixels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.blocks(self.stem(z))
        return self.head(F.silu(h)).tanh().unflatten(-1, self.image_shape)


# One coupling stretches a coordinate by at most e^0.8: a prior that fits better by folding its
# noise space is one whose posteriors are harder to sample.
SCALE_LIMIT = 0.8


class Coupling(nn.Module):
    """Affine coupling (Dinh et al., 2017, arXiv 1605.08803): half of h conditions the other half.

    The last layer starts at zero, so that an untrained coupling only swaps the halves.
    """

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        half = latent // 2
        last = nn.Linear(hidden, 2 * half)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(half, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )

    def _terms(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(condition).chunk(2, dim=-1)
        return SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT), shift

    def forward(self, z: Tensor) -> Tensor:
        condition, changed = z.chunk(2, dim=-1)
        log_scale, shift = self._terms(condition)
        return torch.cat([changed * log_scale.exp() + shift, condition], dim=-1)

    def inverse(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """z with forward(z) = h, and the log-determinant of dz/dh."""
        changed, condition = h.chunk(2, dim=-1)
        log_scale, shift = self._terms(condition)
        z = torch.cat([condition, (changed - shift) * (-log_scale).exp()], dim=-1)
        return z, -log_scale.sum(-1)


class Flow(nn.Module):
    """Invertible smooth map from noise z to the latent h that the encoder speaks.

    Args:
        latent: dimension of z and h, even.
        hidden: width of the networks of the couplings.
        couplings: number of couplings.
    """

    def __init__(self, latent: int, hidden: int, couplings: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(latent, hidden) for _ in range(couplings))

    def forward(self, z: Tensor) -> Tensor:
        for coupling in self.couplings:
            z = coupling(z)
        return z

    def inverse(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """z with forward(z) = h, (B, latent), and the log-determinant of dz/dh, (B,)."""
        total = h.new_zeros(h.shape[:-1])
        for coupling in reversed(cast("list[Coupling]", self.couplings)):
            h, log_det = coupling.inverse(h)
            total = total + log_det
        return h, total


class Encoder(nn.Module):
    """Strided convolutions from an image to the mean and log-variance of q(z|x).

    Args:
        latent: dimension of z.
        channels: channels of the first convolution; doubled twice.
        image_shape: (C, H, W) of the image; H and W multiples of 8.
    """

    def __init__(self, latent: int, channels: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        planes, height, width = image_shape
        if height % 8 or width % 8:
            raise ValueError(
                f"encoder needs H and W divisible by 8, got image_shape={tuple(image_shape)}; "
                "pad the images"
            )
        sizes = [planes, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Conv2d(size_in, size_out, 4, stride=2, padding=1), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(4 * channels * (height // 8) * (width // 8), 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.features(x)).chunk(2, dim=-1)
        return mean, logvar
