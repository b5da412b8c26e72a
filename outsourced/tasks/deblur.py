"""Deblurring: the image is seen through a blur, whose kernel is fixed or drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .measurement import Measurement

FFT_SIZE = 15  # side of a kernel above which Fourier transforms are faster
PADDINGS = ("reflect", "replicate", "circular", "zeros")


class KernelSampler(Protocol):
    """Draws blur kernels, (n, 1, k, k); `varies` tells whether they differ."""

    @property
    def varies(self) -> bool: ...
    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


class Deblur(Measurement):
    """y = kernel * x + n, a true convolution of all channels with one kernel.

    Args:
        data_shape: (C, H, W).
        kernel: sampler of kernels, e.g. `GaussianKernel`.
        sigma: noise standard deviation on [-1, 1] images, or a pair (lo, hi).
        padding: what lies beyond the border: "reflect", "replicate", "circular" or "zeros".
        noise: "gaussian" or "poisson".

    Raises:
        ValueError: when the kernel exceeds the image, a name is unknown, or sigma is not > 0.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        kernel: KernelSampler,
        sigma: float | Sequence[float],
        padding: str = "reflect",
        noise: str = "gaussian",
    ) -> None:
        from deepinv.physics import Blur

        shape = tuple(int(s) for s in data_shape)
        if padding not in PADDINGS:
            raise ValueError(f"task.padding must be one of {PADDINGS}, got {padding!r}")
        first = kernel(1, torch.Generator().manual_seed(0))
        size = _check_kernel(first, shape)
        physics = Blur(None if kernel.varies else first, padding=padding, use_fft=size > FFT_SIZE)
        draw = partial(_filter_params, kernel) if kernel.varies else None
        super().__init__(physics, shape, sigma, draw, noise)


def _filter_params(
    kernel: KernelSampler, n: int, shape: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Tensor]:
    return {"filter": kernel(n, generator)}


def _check_kernel(kernel: Tensor, shape: tuple[int, ...]) -> int:
    """The side of a kernel (1, 1, k, k) that fits images of this shape."""
    if len(shape) != 3:
        raise ValueError(f"task.data_shape must be (C, H, W), got {shape}")
    size = kernel.shape[-1]
    if tuple(kernel.shape) != (1, 1, size, size) or size % 2 == 0:
        raise ValueError(
            f"task.kernel must return (1, 1, k, k) for one, with k odd, got {tuple(kernel.shape)}"
        )
    if size > min(shape[1:]):
        raise ValueError(
            f"task.kernel must fit the image {shape[1]}x{shape[2]}, got {size}x{size}; lower its "
            "width or give its size"
        )
    return size
