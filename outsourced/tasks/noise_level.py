"""The noise standard deviation of a task: one number, or a range drawn log-uniformly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class NoiseLevel:
    """Known noise standard deviation sigma, or its log-uniform range.

    Args:
        sigma: a number, or a pair (lo, hi), in the units of the measurement.

    Raises:
        ValueError: when a value is not finite and > 0, or lo > hi.
    """

    def __init__(self, sigma: float | Sequence[float]) -> None:
        pair = sigma if isinstance(sigma, Sequence) else (sigma, sigma)
        values = tuple(float(s) for s in pair)
        if not all(s > 0 and math.isfinite(s) for s in values):
            raise ValueError(f"task.sigma must be > 0, got {sigma}")
        if len(values) != 2 or values[0] > values[1]:
            raise ValueError(
                f"task.sigma must be a number or a pair (lo, hi) with lo <= hi, got {sigma}"
            )
        self.lo, self.hi = values

    @property
    def varies(self) -> bool:
        """Whether sigma differs between samples."""
        return self.lo < self.hi

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw n levels, (n,), log-uniform between lo and hi.

        Args:
            n: number of samples.
            generator: source of randomness.
        """
        if not self.varies:
            return torch.full((n,), self.lo)
        device = generator.device if generator is not None else None
        u = torch.rand(n, generator=generator, device=device)
        return self.lo * (self.hi / self.lo) ** u


def as_sigma(sigma: float | Tensor, n: int) -> Tensor:
    """Return sigma as a tensor (n,).

    Args:
        sigma: a number, or one number for each of n samples.
        n: number of samples.

    Raises:
        ValueError: when a value is not finite and > 0, or there are neither 1 nor n of them.
    """
    sigma = torch.as_tensor(sigma)
    if sigma.dim() > 1 or sigma.numel() not in (1, n):
        raise ValueError(
            f"task.sigma must be one number or one for each of {n} samples, got shape "
            f"{tuple(sigma.shape)}"
        )
    if not ((sigma > 0) & torch.isfinite(sigma)).all():
        raise ValueError(f"task.sigma must be > 0, got {sigma.min().item()}")
    return sigma.reshape(-1).expand(n)


def as_column(sigma: Tensor, like: Tensor) -> Tensor:
    """Return sigma (B,) with as many dimensions as `like` (B, ...), to broadcast against it."""
    return sigma.view(-1, *[1] * (like.dim() - 1))
