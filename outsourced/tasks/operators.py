"""A matrix as the pair of functions that a deepinv `LinearPhysics` is made of."""

from __future__ import annotations

from torch import Tensor, nn


class MatrixProduct(nn.Module):
    """x -> M x, row by row; a module, so that M follows the task to its device.

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
