"""Phase retrieval: the magnitudes of the Fourier transform are seen, their phases are lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Observation
from .measurement import Measurement

OVERSAMPLING = 2  # of both sides: fewer magnitudes than that do not determine an image


def fourier_magnitude(x: Tensor) -> Tensor:
    """Return |F pad(x)|, F the orthonormal transform: (B, C, H, W) to (B, C, 2 H, 2 W).

    Args:
        x: images, padded with zeros.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, (OVERSAMPLING - 1) * width, 0, (OVERSAMPLING - 1) * height))
    return torch.fft.fft2(padded, norm="ortho").abs()


class PhaseRetrieval(Measurement):
    """y = |F pad(x)| + n, the magnitudes of a twice oversampled Fourier transform.

    An image, turned by half a revolution or of the other sign, gives the same y: posteriors have
    several modes, as far as the prior allows. Chung et al., 2023, arXiv 2209.14687, appendix D.

    Args:
        data_shape: (C, H, W).
        sigma: noise standard deviation in the units of an orthonormal transform of [-1, 1] images,
            or a pair (lo, hi).

    Raises:
        ValueError: when the data are no images or sigma is not > 0.
    """

    def __init__(self, data_shape: Sequence[int], sigma: float | Sequence[float]) -> None:
        from deepinv.physics import Physics

        shape = tuple(int(s) for s in data_shape)
        if len(shape) != 3:
            raise ValueError(f"task.data_shape must be (C, H, W), got {shape}")
        super().__init__(Physics(A=fourier_magnitude), shape, sigma)

    def measurement_feature(self, obs: Observation) -> Tensor:
        """All magnitudes, on the grid of x."""
        # Four channels hold every second frequency each, on the image's grid; zero in the middle.
        centred = torch.fft.fftshift(obs.y.clamp_min(0).log1p(), dim=(-2, -1))
        return F.pixel_unshuffle(centred, OVERSAMPLING)
