"""Networks of the hierarchical autoencoder: encoder, levels of latents, decoder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Standard deviations lie within a factor e^3 of 1 in either direction, smoothly.
LOG_STD_LIMIT = 3.0


class Residual(nn.Module):
    """h + W2 silu(W1 silu(h)), W1 over a neighbourhood of 3×3 (of 1×1 on vectors), W2 pointwise.

    No normalisation: smooth, and each sample alone. W2 starts small, so that a deep stack starts
    near the identity.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.outer = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.outer.weight.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(F.silu(self.inner(F.silu(h))))


def finer(channels_in: int, channels_out: int, before: int, side: int) -> nn.Module:
    """A learned step from one side to the next finer one: 1 -> 4, or a doubling."""
    if before == side:
        return nn.Identity()
    if before == 1:
        return nn.ConvTranspose2d(channels_in, channels_out, side)
    return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)


def bounded(log_std: Tensor) -> Tensor:
    """Keep a log standard deviation within ±LOG_STD_LIMIT, smoothly."""
    return LOG_STD_LIMIT * torch.tanh(log_std / LOG_STD_LIMIT)


class Level(nn.Module):
    """One level of latents: h = mean(h) + std(h) · ε, absorbed into h.

    Args:
        latents: channels of the latents.
        before: channels of the features that come from above.
        width: channels of the features here.
        seen: channels of the encoder's features here.
        sides: side of the features that come from above, and of those here.
    """

    def __init__(
        self, latents: int, before: int, width: int, seen: int, sides: tuple[int, int]
    ) -> None:
        super().__init__()
        kernel = 1 if sides[1] == 1 else 3
        self.finer = finer(before, width, *sides)
        self.above = Residual(width, kernel)
        self.prior = nn.Conv2d(width, 2 * latents, 1)
        self.reader = nn.Conv2d(width + seen, width, kernel, padding=kernel // 2)
        self.inferred = nn.Conv2d(width, 2 * latents, 1)
        self.writer = nn.Conv2d(latents, width, 1)
        self.below = Residual(width, kernel)
        for head in (self.prior, self.inferred):
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def features(self, h: Tensor) -> Tensor:
        """What the level sees of its parents: (B, before, ...) -> (B, width, side, side)."""
        return self.above(self.finer(h))

    def absorb(self, h: Tensor, noise: Tensor) -> Tensor:
        """Add the latents of noise ε, (B, latents, side, side), to the features of `features`."""
        mean, log_std = self.prior(F.silu(h)).chunk(2, dim=1)
        latents = mean + bounded(log_std).exp() * noise
        return self.below(h + self.writer(latents))

    def posterior(self, h: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of ε given the parents and the image, in float32."""
        read = self.reader(torch.cat([F.silu(h), seen], dim=1))
        mean, log_std = self.inferred(F.silu(read)).float().chunk(2, dim=1)
        return mean, bounded(log_std)


class Picture(nn.Module):
    """Transposed convolutions from the features of the last level to an image in (-1, 1).

    Args:
        widths: {side: channels} from the side of the last level to half of the image's.
        planes: channels of the image.
    """

    def __init__(self, widths: Mapping[int, int], planes: int) -> None:
        super().__init__()
        last = max(widths)
        sizes = [*widths.items(), (2 * last, max(8, widths[last] // 2))]
        layers: list[nn.Module] = []
        for (before, size_in), (side, size_out) in itertools.pairwise(sizes):
            layers += [nn.SiLU(), finer(size_in, size_out, before, side)]
        self.net = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(size_out, planes, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h).tanh()


class Encoder(nn.Module):
    """Features of an image at each side that has latents, from the finest to the coarsest.

    Args:
        image_shape: (C, H, W) of the image.
        channels: channels at a quarter of the image's side; half as many at half of it, doubled at
            each coarser one.
        sides: the sides asked for.
    """

    def __init__(self, image_shape: Sequence[int], channels: int, sides: Sequence[int]) -> None:
        super().__init__()
        planes, _, side = image_shape
        self.stages = nn.ModuleDict()
        self.channels: dict[int, int] = {}
        size_in, size_out = planes, channels // 2
        while side > min(sides):
            side = side // 2 if side > 4 else 1
            down = (
                nn.Conv2d(size_in, size_out, 4)
                if side == 1
                else nn.Conv2d(size_in, size_out, 4, stride=2, padding=1)
            )
            kernel = 1 if side == 1 else 3
            more = [Residual(size_out, kernel)] if side in sides else []
            self.stages[str(side)] = nn.Sequential(down, *more, nn.SiLU())
            self.channels[side] = size_out
            size_in, size_out = size_out, 2 * size_out

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Images (B, C, H, W) to {side: features (B, channels[side], side, side)}."""
        seen = {}
        for side, stage in self.stages.items():
            x = stage(x)
            seen[int(side)] = x
        return seen
