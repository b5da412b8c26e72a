"""Non-linear forward functions of vectors, (B, d) -> (B, m), for `NonlinearMeasurement`."""

from __future__ import annotations

import torch
from torch import Tensor


def absolute_first(x: Tensor) -> Tensor:
    """Return |x_1|, (B, d) to (B, 1): the sign is lost, so posteriors have two modes."""
    return x[:, :1].abs()


def radius(x: Tensor) -> Tensor:
    """Return the Euclidean norm, (B, d) to (B, 1): posteriors are shells."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)
