"""Invertible layers of the image flow; `forward` goes from noise to data, `inverse` back.

Every `inverse` also gives the log-determinant of its Jacobian, (B,), which is what the density of
the data adds to that of the noise.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A coupling stretches a coordinate by at most e^2: it bounds the condition number of the flow and
# with it the rounding error of the inverse. The layers that set the scale of the data have none.
SCALE_LIMIT = 2.0


def affine_terms(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Bounded log-scale and shift from the output of a network, halves along dimension 1."""
    log_scale, shift = raw.chunk(2, 1)
    return SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT), shift


def zero_last(network: nn.Sequential) -> nn.Sequential:
    """Start the last layer at zero, so that an untrained coupling is the identity."""
    last = cast(nn.Conv2d, network[-1])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(cast(Tensor, last.bias))
    return network


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal Haar transform of 2×2 blocks.

    Args:
        x: (B, C, H, W), H and W even.

    Returns:
        averages (B, C, H/2, W/2), twice the mean of a block, and details (B, 3C, H/2, W/2).
    """
    a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)
    low = (a + b + c + d) / 2
    return low, torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2


def inverse_haar(low: Tensor, details: Tensor) -> Tensor:
    """The image whose Haar transform this is: (B, C, H, W)."""
    horizontal, vertical, diagonal = details.chunk(3, 1)
    quads = [
        low + horizontal + vertical + diagonal,
        low - horizontal + vertical - diagonal,
        low + horizontal - vertical - diagonal,
        low - horizontal - vertical + diagonal,
    ]
    return F.pixel_shuffle(torch.stack(quads, 2).flatten(1, 2) / 2, 2)


class ResidualConv(nn.Module):
    """x + conv silu conv silu x: no normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.inner(F.silu(x))))


class ConvStep(nn.Module):
    """One step of a conditional Glow (Kingma & Dhariwal, 2018, arXiv 1807.03039).

    From noise to data: an affine coupling that also reads features of what is known already, an
    invertible 1×1 convolution, a scale and shift of each channel (ActNorm).
    """

    def __init__(self, planes: int, features: int, hidden: int) -> None:
        super().__init__()
        kept = planes // 2
        self.net = zero_last(
            nn.Sequential(
                nn.Conv2d(kept + features, hidden, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(hidden, hidden, 1),
                nn.SiLU(),
                nn.Conv2d(hidden, 2 * (planes - kept), 3, padding=1),
            )
        )
        self.kept = kept
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(planes, planes)))
        self.log_std = nn.Parameter(torch.zeros(planes, 1, 1))
        self.mean = nn.Parameter(torch.zeros(planes, 1, 1))

    def _terms(self, condition: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return affine_terms(self.net(torch.cat([condition, features], 1)).to(condition.dtype))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        condition, changed = h[:, : self.kept], h[:, self.kept :]
        log_scale, shift = self._terms(condition, features)
        h = torch.cat([condition, changed * log_scale.exp() + shift], 1)
        h = torch.einsum("ij,bjhw->bihw", self.weight, h)
        return h * self.log_std.exp() + self.mean

    def inverse(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        h = (h - self.mean) * (-self.log_std).exp()
        h = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.weight), h)
        condition, changed = h[:, : self.kept], h[:, self.kept :]
        log_scale, shift = self._terms(condition, features)
        fixed = self.log_std.sum() + torch.linalg.slogdet(self.weight).logabsdet
        log_det = -log_scale.flatten(1).sum(1) - fixed * h[0, 0].numel()
        return torch.cat([condition, (changed - shift) * (-log_scale).exp()], 1), log_det


class DetailFlow(nn.Module):
    """Flow of the fine details given the coarse image, both on one grid of pixels.

    The step next to the data is a Gaussian whose mean and scale a network reads off the coarse
    image (the learned prior of a multi-scale flow's split); the others bend it.

    Args:
        planes: channels of the details.
        coarse: channels of the coarse image.
        features: channels of the features read off it.
        blocks: residual blocks that read them.
        hidden: width of the networks of the couplings.
        steps: number of couplings.
    """

    def __init__(
        self, planes: int, coarse: int, features: int, blocks: int, hidden: int, steps: int
    ) -> None:
        super().__init__()
        self.reader = nn.Sequential(
            nn.Conv2d(coarse, features, 3, padding=1),
            *(ResidualConv(features) for _ in range(blocks)),
            nn.SiLU(),
        )
        self.gaussian = zero_last(nn.Sequential(nn.Conv2d(features, 2 * planes, 3, padding=1)))
        self.steps = nn.ModuleList(ConvStep(planes, features, hidden) for _ in range(steps))

    @torch.no_grad()
    def set_statistics(self, details: Tensor) -> None:
        """Start from mean and standard deviation of each channel of details (N, planes, ...)."""
        std, mean = torch.std_mean(details, dim=(0, 2, 3))
        bias = cast(Tensor, self.gaussian[-1].bias)
        bias.copy_(torch.cat([std.log(), mean]))

    def _read(self, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.reader(coarse)
        log_std, mean = self.gaussian(features).to(coarse.dtype).chunk(2, 1)
        return features, log_std, mean

    def forward(self, z: Tensor, coarse: Tensor) -> Tensor:
        features, log_std, mean = self._read(coarse)
        for step in self.steps:
            z = step(z, features)
        return mean + log_std.exp() * z

    def inverse(self, details: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """z with forward(z, coarse) = details, and the log-determinant of dz/ddetails, (B,)."""
        features, log_std, mean = self._read(coarse)
        h, total = (details - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)
        for step in reversed(cast("list[ConvStep]", self.steps)):
            h, log_det = step.inverse(h, features)
            total = total + log_det
        return h, total
