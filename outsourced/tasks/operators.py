"""What operators are made of: parameters drawn per sample, and a matrix with its transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OperatorSampler = Callable[[int, tuple[int, ...], torch.Generator | None], dict[str, Tensor]]


def draw_operator(
    sampler: Any, n: int, data_shape: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Return operator parameters of n samples, each (n, ...); {} without a sampler.

    Args:
        sampler: an `OperatorSampler`, a deepinv `PhysicsGenerator`, or None.
        n: number of samples.
        data_shape: event shape of x.
        generator: source of randomness.

    Raises:
        ValueError: when the sampler draws a noise level.
    """
    if sampler is None:
        return {}
    if hasattr(sampler, "step"):  # deepinv generators own their random state
        seed = int(torch.randint(2**31, (1,), generator=generator))
        params: dict[str, Tensor] = sampler.step(n, seed=seed)
    else:
        params = sampler(n, data_shape, generator)
    if "sigma" in params:
        raise ValueError(
            "task.operator_sampler must not draw 'sigma'; give the range to task.sigma instead"
        )
    return params


class MatrixProduct(nn.Module):
    """x -> M x, row by row, for a deepinv `LinearPhysics`; M follows the task to its device.

    Args:
        matrix: M, (m, d).
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Return M x for each row, (B, d) to (B, m)."""
        return x @ self.matrix.T

    def transpose(self, y: Tensor) -> Tensor:
        """Return M^T y for each row, (B, m) to (B, d)."""
        return y @ self.matrix
