"""Denoising: every pixel is observed, with noise."""

from __future__ import annotations

from collections.abc import Sequence

from .measurement import Measurement


class Denoise(Measurement):
    """y = x + n.

    Args:
        data_shape: event shape of x.
        sigma: noise standard deviation in the units of x, or a pair (lo, hi).
        noise: "gaussian" or "poisson".

    Raises:
        ValueError: when sigma is not > 0.
    """

    def __init__(
        self, data_shape: Sequence[int], sigma: float | Sequence[float], noise: str = "gaussian"
    ) -> None:
        from deepinv.physics import Denoising, ZeroNoise

        super().__init__(Denoising(ZeroNoise()), data_shape, sigma, noise=noise)
