"""Deblurring: the image is seen through a blur, whose kernel is fixed or drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .base import Observation
from .features import transfer
from .measurement import Measurement
from .noise_models import GaussianNoise
from .ridge import ridge_estimate

FFT_SIZE = 15  # side of a kernel above which Fourier transforms are faster
PADDINGS = ("reflect", "replicate", "circular", "zeros")


class KernelSampler(Protocol):
    """Draws blur kernels, (n, 1, k, k); `varies` tells whether they differ."""

    @property
    def varies(self) -> bool: ...
    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


class Deblur(Measurement):
    """y = kernel * x + n, a true convolution of all channels with one kernel.

    Kernels that differ between samples are parameters of the observation; the encoder sees y, a
    ridge estimate of x, the kernel and its transfer function.

    Args:
        data_shape: (C, H, W).
        kernel: sampler of kernels: `GaussianKernel`, `MotionKernel` or `FixedKernel`.
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

    @property
    def fixed_params(self) -> dict[str, Tensor]:
        """The kernel, where it is the same for all."""
        return {} if self.param_shapes else {"filter": self.physics.filter}

    def describe(self, name: str, value: Tensor) -> list[Tensor]:
        """The kernel in the middle of the grid, and its transfer function in every pixel."""
        return [value, transfer(value)]

    def measurement_feature(self, obs: Observation) -> Tensor:
        """y, and where kernels differ the ridge estimate of x."""
        # A network can learn the inverse of one blur; those of all blurs it is given.
        return torch.cat([obs.y, ridge_estimate(self, obs)], 1) if obs.params else obs.y

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """See `Task`; the kernels one after the other, on all images at once."""
        if not obs.params or not isinstance(self.noise, GaussianNoise):
            return super().pairwise_log_reward(x, obs)
        self.check(obs)
        columns = []
        for y, kernel, sigma in zip(obs.y, obs.params["filter"], obs.sigma, strict=True):
            gap = y - self._blurred(x, kernel[None])
            columns.append(-0.5 * gap.flatten(1).square().sum(1) / sigma.square())
        return torch.stack(columns, 1)

    def _blurred(self, x: Tensor, kernel: Tensor) -> Tensor:
        """A x of many images under one kernel (1, 1, k, k), at the size where Fourier pays."""
        from deepinv.physics.functional import conv2d_fft

        return conv2d_fft(x, kernel, padding=self.physics.padding)


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
