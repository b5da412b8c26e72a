"""Samplers of blur kernels: (n, generator) -> (n, 1, k, k) of unit sum, k odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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


@dataclass(frozen=True)
class MotionKernel:
    """Kernels of a shaking camera: the trace of a point that wanders during the exposure.

    Its direction and the logarithm of its speed are Brownian motions; slow stretches are brighter.

    Args:
        size: side of the kernel in pixels, odd and >= 3.
        intensity: 0 is a straight line at constant speed; at 1 the direction turns by half a
            revolution (one standard deviation) over the trace, and the speed changes by a factor e.
        min_length: shortest trace, as a fraction of the side.
        max_length: longest trace; the length is uniform between the two.

    Raises:
        ValueError: when the size is not odd or too small, the intensity is negative, or not
            0 < min_length <= max_length < 1.
    """

    size: int
    intensity: float = 0.5
    min_length: float = 0.3
    max_length: float = 0.9

    varies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if check_size(self.size, "MotionKernel.size") < 3:
            raise ValueError(f"MotionKernel.size must be >= 3, got {self.size}")
        if not self.intensity >= 0:
            raise ValueError(f"MotionKernel.intensity must be >= 0, got {self.intensity}")
        if not 0 < self.min_length <= self.max_length < 1:
            raise ValueError(
                "MotionKernel needs 0 < min_length <= max_length < 1, got "
                f"min_length={self.min_length}, max_length={self.max_length}"
            )

    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n kernels, (n, 1, k, k)."""
        points, brightness = self._traces(n, generator)
        mean = (points * brightness[..., None]).sum(1, keepdim=True)
        points = points - mean  # the blurred image stays where it was
        reach = (self.size - 1) / 2
        far = points.abs().amax((1, 2), keepdim=True)
        points = points * (reach / far).clamp_max(1.0)
        place = torch.arange(self.size, device=points.device) - reach
        rows, columns = (
            (1 - (points[..., axis, None] - place).abs()).clamp_min(0) for axis in (0, 1)
        )
        kernels = (rows * brightness[..., None]).mT @ columns
        return (kernels / kernels.sum((1, 2), keepdim=True))[:, None]

    def _traces(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Points (n, P, 2) in pixels along the traces, and their share of the light (n, P)."""
        device = generator.device if generator is not None else torch.device("cpu")
        count = 8 * self.size
        turn, haste = torch.randn((2, n, count), generator=generator, device=device).cumsum(-1)
        first, length = torch.rand((2, n, 1), generator=generator, device=device)
        scale = self.intensity / math.sqrt(count)
        angle = 2 * math.pi * first + math.pi * scale * turn
        length = self.size * (self.min_length + (self.max_length - self.min_length) * length)
        step = torch.stack([angle.sin(), angle.cos()], -1) * (length / count)[..., None]
        return step.cumsum(1), torch.softmax(-scale * haste, 1)


class FixedKernel:
    """One kernel for every sample: what a bright point looks like in the blurred image.

    Args:
        kernel: a picture or an .npy file (k, k), or a tensor (k, k); scaled to unit sum.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the kernel is not square with an odd side, not finite, has negative
            entries, or is 0.
    """

    varies = False

    def __init__(self, kernel: str | Path | Tensor) -> None:
        given = kernel.float() if isinstance(kernel, Tensor) else read_kernel(Path(kernel))
        if given.dim() != 2 or given.shape[0] != given.shape[1] or given.shape[0] % 2 == 0:
            raise ValueError(
                f"FixedKernel.kernel must be (k, k) with k odd, got {tuple(given.shape)}; crop it, "
                "or add black rows and columns"
            )
        if not (torch.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
            raise ValueError("FixedKernel.kernel must be >= 0, finite and not 0 everywhere")
        self.kernel = given / given.sum()

    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Repeat the kernel, (n, 1, k, k)."""
        return self.kernel.expand(n, 1, *self.kernel.shape).clone()


def read_kernel(path: Path) -> Tensor:
    """Read a blur kernel (H, W) from a picture, white = most light, or from an .npy file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it cannot be read.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"FixedKernel.kernel file {path} does not exist")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.array(image.convert("F"))
        return torch.from_numpy(np.asarray(values, dtype="float32"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(
            f"FixedKernel.kernel file {path} cannot be read ({error}); save it as PNG or .npy"
        ) from error
