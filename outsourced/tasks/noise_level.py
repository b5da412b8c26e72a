"""Noise standard deviations of a batch: one number for each sample."""

from __future__ import annotations

import torch
from torch import Tensor


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
