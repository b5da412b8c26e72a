"""What is left of an image after it was stored: JPEG, and a few grey levels. Black boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .compressed import cosine_matrix
from .measurement import Measurement
from .ranges import PositiveRange

BLOCK = 8
# Quantisation steps at quality 50. ITU-T T.81 (1992), annex K.1.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
# Rows: Y, Cb, Cr of (R, G, B). ITU-R BT.601, as JFIF (ITU-T T.871, section 7) uses it.
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Return images after JPEG compression without chroma subsampling, (B, C, H, W).

    Blocks of 8 x 8 are transformed and rounded; entropy coding loses nothing and is left out. In
    float64, so that no coefficient is rounded another way in another batch.

    Args:
        x: grey (C = 1) or RGB (C = 3) images in [-1, 1]; other sides than multiples of 8 are
            continued by their border.
        quality: from 1 to 100, (B,).
    """
    height, width = x.shape[-2:]
    values = 127.5 * x.double()
    change = torch.tensor(TO_YCC, dtype=torch.float64, device=x.device)
    colour = x.shape[1] == 3
    if colour:
        values = torch.einsum("yc,bchw->byhw", change, values)
    values = F.pad(values, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    # A codec's zero is grey level 128, half a level above the middle, but that of colours is none.
    shift = torch.tensor([0.5, 0.0, 0.0][: x.shape[1]]).to(values).view(-1, 1, 1)
    steps = _steps(quality.double(), x.shape[1])
    values = (_rounded(values - shift, steps) + shift)[..., :height, :width]
    if colour:
        values = torch.einsum("cy,byhw->bchw", torch.linalg.inv(change), values)
    return (values / 127.5).clamp(-1, 1).to(x.dtype)


def _steps(quality: Tensor, channels: int) -> Tensor:
    """Quantisation steps (B, C, 8, 8) of the Independent JPEG Group's scale of quality."""
    tables = torch.tensor((LUMINANCE, CHROMINANCE, CHROMINANCE)[:channels]).to(quality)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).view(-1, 1, 1, 1)
    return ((scale * tables + 50) / 100).floor().clamp(1, 255)


def _rounded(values: Tensor, steps: Tensor) -> Tensor:
    """Images (B, C, H, W) whose blocks' coefficients are multiples of the steps."""
    matrix = cosine_matrix(BLOCK).to(values)
    tall, wide = values.shape[-2] // BLOCK, values.shape[-1] // BLOCK
    blocks = values.unflatten(2, (tall, BLOCK)).unflatten(4, (wide, BLOCK)).transpose(3, 4)
    steps = steps[:, :, None, None]
    coefficients = (matrix @ blocks @ matrix.T / steps).round() * steps
    blocks = matrix.T @ coefficients @ matrix
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)


class JPEG(Measurement):
    """y = JPEG(x) + n. Rounding has no useful gradient: log r is a black box.

    Args:
        data_shape: (C, H, W) with C = 1 or 3.
        quality: from 1 to 100; a pair (lo, hi) draws it log-uniformly for each sample.
        sigma: noise standard deviation on [-1, 1] images, or a pair (lo, hi).

    Raises:
        ValueError: when the data are no pictures, a quality is not in [1, 100], or sigma not > 0.
    """

    differentiable = False

    def __init__(
        self,
        data_shape: Sequence[int],
        quality: float | Sequence[float],
        sigma: float | Sequence[float],
    ) -> None:
        from deepinv.physics import Physics

        shape = tuple(int(s) for s in data_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"task.data_shape must be (1 or 3, H, W), got {shape}")
        levels = PositiveRange(quality, "task.quality")
        if not 1 <= levels.lo <= levels.hi <= 100:
            raise ValueError(f"task.quality must lie in [1, 100], got {quality}")
        draw = partial(_draw_quality, levels)
        super().__init__(Physics(A=jpeg), shape, sigma, draw)

    def describe(self, name: str, value: Tensor) -> list[Tensor]:
        """The logarithm of the quality in units of a decade, about 30."""
        return [(value / 30).log() / math.log(10)]


def _draw_quality(
    quality: PositiveRange, n: int, shape: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Tensor]:
    return {"quality": quality.sample(n, generator)}


class Dequantize(Measurement):
    """y = x rounded to a few levels + n. Rounding has no useful gradient: log r is a black box.

    Args:
        data_shape: event shape of x.
        bits: there are 2^bits levels, evenly spaced from -1 to 1.
        sigma: noise standard deviation in the units of x, or a pair (lo, hi).

    Raises:
        ValueError: when bits is not an integer from 1 to 8, or sigma is not > 0.
    """

    differentiable = False

    def __init__(
        self, data_shape: Sequence[int], bits: int, sigma: float | Sequence[float]
    ) -> None:
        from deepinv.physics import Physics

        if int(bits) != bits or not 1 <= bits <= 8:
            raise ValueError(f"task.bits must be an integer from 1 to 8, got {bits}")
        super().__init__(Physics(A=partial(_quantise, 2 ** int(bits) - 1)), data_shape, sigma)


def _quantise(gaps: int, x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * (gaps / 2)).round() * (2 / gaps) - 1
