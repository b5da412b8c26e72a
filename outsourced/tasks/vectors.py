"""Measurements of vectors: a matrix, or any function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .measurement import Measurement
from .operators import MatrixProduct


class LinearMeasurement(Measurement):
    """y = M x + n for vectors x.

    Args:
        matrix: M, (m, d), a tensor or nested lists, kept in float32. Give this, or the next three.
        measurements: m, for a random M with entries N(0, 1/d).
        dim: d.
        seed: seed of the random M.
        sigma: noise standard deviation, or a pair (lo, hi).

    Raises:
        ValueError: when neither or both ways of giving M are used, or M is not a finite matrix.
    """

    def __init__(
        self,
        matrix: Tensor | Sequence[Sequence[float]] | None = None,
        *,
        measurements: int | None = None,
        dim: int | None = None,
        seed: int | None = None,
        sigma: float | Sequence[float],
    ) -> None:
        if matrix is not None and (measurements, dim, seed) == (None,) * 3:
            matrix = matrix if isinstance(matrix, Tensor) else _matrix(matrix)
        elif matrix is None and measurements is not None and dim is not None and seed is not None:
            matrix = _random_matrix(measurements, dim, seed)
        else:
            raise ValueError(
                "task needs either matrix or all of measurements, dim and seed, got matrix="
                f"{None if matrix is None else 'given'}, measurements={measurements}, dim={dim}, "
                f"seed={seed}"
            )
        if matrix.dim() != 2 or 0 in matrix.shape or not torch.isfinite(matrix).all():
            raise ValueError(f"task.matrix must be a finite (m, d), got {tuple(matrix.shape)}")
        from deepinv.physics import LinearPhysics

        product = MatrixProduct(matrix.float())
        physics = LinearPhysics(A=product, A_adjoint=product.transpose)
        super().__init__(physics, (matrix.shape[1],), sigma)

    @property
    def matrix(self) -> Tensor:
        """M, (m, d), on the device and in the precision of the task."""
        return self.physics.forw.matrix


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([[float(v) for v in row] for row in rows])


def _random_matrix(measurements: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(measurements, dim, generator=generator) / math.sqrt(dim)


class NonlinearMeasurement(Measurement):
    """y = function(x) + n, the function a black box or not.

    Args:
        function: maps (B, *data_shape) to (B, *measurement_shape) item by item; a callable or a
            dotted path such as "outsourced.tasks.functions.absolute_first".
        data_shape: event shape of x.
        sigma: noise standard deviation, or a pair (lo, hi).
        differentiable: whether the function's gradient exists and tells something.

    Raises:
        ValueError: when the path names no callable, or the function fails its probe.
    """

    def __init__(
        self,
        function: str | Callable[[Tensor], Tensor],
        data_shape: Sequence[int],
        sigma: float | Sequence[float],
        differentiable: bool = True,
    ) -> None:
        if isinstance(function, str):
            function = _import(function)
        if not callable(function):
            raise ValueError(f"task.function must be callable or a dotted path, got {function!r}")
        from deepinv.physics import Physics

        super().__init__(Physics(A=function), data_shape, sigma)
        self.differentiable = bool(differentiable)


def _import(path: str) -> Callable[[Tensor], Tensor]:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"task.function {path!r} names nothing importable ({error}); expected "
            "'package.module.function'"
        ) from error
