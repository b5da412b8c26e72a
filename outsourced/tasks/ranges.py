"""A positive number of a task that is fixed, or drawn log-uniformly for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class PositiveRange:
    """A number > 0, or its log-uniform range.

    Args:
        value: a number, or a pair (lo, hi).
        name: what to call it in messages.

    Raises:
        ValueError: when a value is not finite and > 0, or lo > hi.
    """

    def __init__(self, value: float | Sequence[float], name: str) -> None:
        pair = value if isinstance(value, Sequence) else (value, value)
        values = tuple(float(v) for v in pair)
        if not all(v > 0 and math.isfinite(v) for v in values):
            raise ValueError(f"{name} must be > 0, got {value}")
        if len(values) != 2 or values[0] > values[1]:
            raise ValueError(
                f"{name} must be a number or a pair (lo, hi) with lo <= hi, got {value}"
            )
        self.lo, self.hi = values

    @property
    def varies(self) -> bool:
        """Whether the number differs between samples."""
        return self.lo < self.hi

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw n numbers, (n,), log-uniform between lo and hi.

        Args:
            n: number of samples.
            generator: source of randomness.
        """
        if not self.varies:
            return torch.full((n,), self.lo)
        device = generator.device if generator is not None else None
        u = torch.rand(n, generator=generator, device=device)
        return self.lo * (self.hi / self.lo) ** u
