"""Compressed sensing: a few random coefficients of the image are seen, each a mix of all pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .base import Observation
from .checks import check_shape
from .measurement import Measurement
from .pairwise import pairwise_gaussian


class CompressedSensing(Measurement):
    """y = S C (signs * x) + n: random rows of an orthonormal transform, drawn for each sample.

    C is the cosine transform, and the fixed random signs spread every structure over all of its
    coefficients. The rows A of the product are orthonormal, A A^T = I. (Do, Gan, Nguyen & Tran,
    2012, IEEE Transactions on Signal Processing 60, with fresh rows in each observation.)

    Args:
        data_shape: (C, H, W); all channels are measured by the same rows.
        ratio: fraction of the coefficients that is seen, in (0, 1].
        sigma: noise standard deviation on [-1, 1] images, or a pair (lo, hi).
        seed: of the signs.

    Raises:
        ValueError: when the ratio is out of range or sees nothing, or sigma is not > 0.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        ratio: float,
        sigma: float | Sequence[float],
        seed: int = 0,
    ) -> None:
        from deepinv.physics import LinearPhysics

        shape = tuple(int(s) for s in data_shape)
        if len(shape) != 3:
            raise ValueError(f"task.data_shape must be (C, H, W), got {shape}")
        count = round(ratio * shape[1] * shape[2])
        if not 0 < ratio <= 1 or count < 1:
            raise ValueError(f"task.ratio must lie in (0, 1] and see a coefficient, got {ratio}")
        rows = CosineRows(shape[1:], seed)
        physics = LinearPhysics(A=rows, A_adjoint=rows.transpose)
        super().__init__(physics, shape, sigma, partial(_draw_rows, count))

    def describe(self, name: str, value: Tensor) -> list[Tensor]:
        """Nothing: which rows were drawn says little, and A^T y says all."""
        return []

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """See `Task`; the coefficients of each image once, for all observations."""
        self.check(obs)
        check_shape("x", x, self.data_shape)
        rows = obs.params["rows"][:, None].expand_as(obs.y)
        channels = self.data_shape[0]
        empty = obs.y.new_zeros(len(obs), channels, math.prod(self.data_shape[1:]))
        y, seen = empty.scatter(2, rows, obs.y), empty.scatter(2, rows, torch.ones_like(obs.y))
        clean = self.physics.forw.coefficients(x).flatten(1)
        return pairwise_gaussian(clean, y.flatten(1), seen.flatten(1), obs.sigma)


class CosineRows(nn.Module):
    """x -> chosen coefficients of the orthonormal cosine transform of signs * x.

    Args:
        size: (H, W).
        seed: of the signs.
    """

    signs: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, size: tuple[int, ...], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("signs", 2.0 * torch.randint(2, size, generator=generator) - 1)
        self.register_buffer("left", cosine_matrix(size[0]))
        self.register_buffer("right", cosine_matrix(size[1]))

    def coefficients(self, x: Tensor) -> Tensor:
        """All coefficients of images (B, C, H, W), (B, C, H W)."""
        return (self.left @ (self.signs * x) @ self.right.T).flatten(2)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """Those at rows (B, m), (B, C, m)."""
        return self.coefficients(x).gather(2, rows[:, None].expand(-1, x.shape[1], -1))

    def transpose(self, y: Tensor, rows: Tensor) -> Tensor:
        """The adjoint, (B, C, m) to (B, C, H, W)."""
        size = self.signs.shape
        empty = y.new_zeros(*y.shape[:2], size[0] * size[1])
        full = empty.scatter(2, rows[:, None].expand_as(y), y).unflatten(2, size)
        return self.signs * (self.left.T @ full @ self.right)


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform, (size, size): row k holds cos(pi k (i + 1/2) / size).

    Args:
        size: number of entries.
    """
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * place[:, None] * (place + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _draw_rows(
    count: int, n: int, shape: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Tensor]:
    device = generator.device if generator is not None else torch.device("cpu")
    order = torch.rand(n, math.prod(shape[1:]), generator=generator, device=device).argsort(1)
    return {"rows": order[:, :count].sort(1).values}
