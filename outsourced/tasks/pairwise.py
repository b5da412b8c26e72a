"""Log-likelihoods of all pairs of data and observations by matrix products."""

from __future__ import annotations

from torch import Tensor


def pairwise_gaussian(clean: Tensor, y: Tensor, seen: Tensor, sigma: Tensor) -> Tensor:
    """Return log N(y_j; A x_i, sigma_j^2) - log N(y_j; 0, sigma_j^2) of all pairs, (N, B) nats.

    |m (y - a)|^2 - |m y|^2 = m . a^2 - 2 m y . a for a binary mask m.

    Args:
        clean: A x_i, (N, m).
        y: measurements, (B, m).
        seen: which of their entries are observed, (B, m).
        sigma: noise standard deviations, (B,).
    """
    mask = seen.to(clean.dtype)
    square = clean.square() @ mask.T - 2 * clean @ (mask * y).T
    return -0.5 * square / sigma.square()
