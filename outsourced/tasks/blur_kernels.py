"""Samplers of blur kernels: (n, generator) -> (n, 1, k, k) of unit sum, k odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranges import PositiveRange


def check_size(size: int, name: str) -> int:
    """Refuse a kernel that has no centre.

    Args:
        size: side of a kernel in pixels.
        name: what to call it in messages.

    Raises:
        ValueError: when the size is not an odd integer >= 1.
    """
    if int(size) != size or size < 1 or size % 2 == 0:
        raise ValueError(f"{name} must be an odd integer >= 1, got {size}")
    return int(size)


@dataclass(frozen=True)
class GaussianKernel:
    """Isotropic Gaussian kernels.

    Args:
        width: standard deviation in pixels; a pair (lo, hi) draws it log-uniformly per sample.
        size: side of the kernel in pixels, odd; None reaches to four standard deviations.

    Raises:
        ValueError: when a width is not > 0, or the size is not odd.
    """

    width: float | Sequence[float]
    size: int | None = None

    def __post_init__(self) -> None:
        widths = self._widths
        if self.size is not None:
            check_size(self.size, "GaussianKernel.size")
        elif 8 * widths.hi > 1024:
            raise ValueError(f"GaussianKernel.width must be <= 128 pixels, got {self.width}")

    @property
    def _widths(self) -> PositiveRange:
        return PositiveRange(self.width, "GaussianKernel.width")

    @property
    def varies(self) -> bool:
        """Whether the kernel differs between samples."""
        return self._widths.varies

    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n kernels, (n, 1, k, k)."""
        widths = self._widths
        size = 2 * math.ceil(4 * widths.hi) + 1 if self.size is None else int(self.size)
        width = widths.sample(n, generator)
        offset = torch.arange(size, device=width.device) - size // 2
        line = torch.exp(-0.5 * (offset / width[:, None]).square())
        line = line / line.sum(1, keepdim=True)
        return (line[:, :, None] * line[:, None, :])[:, None]
