"""Regularised inverse of a linear measurement: what a solver without a prior makes of y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .base import Observation
from .noise_level import as_column


class Linear(Protocol):
    """A task with A and A^T, each item of a batch under its own operator."""

    def apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor: ...
    def adjoint(self, y: Tensor, params: dict[str, Tensor]) -> Tensor: ...


def ridge(normal: Callable[[Tensor], Tensor], right: Tensor, damping: Tensor, steps: int) -> Tensor:
    """Return (A^T A + damping I)^{-1} A^T y by conjugate gradients, each sample on its own.

    Args:
        normal: A^T A, on (B, *data_shape).
        right: A^T y, (B, *data_shape).
        damping: sigma^2 over the variance of an entry of x, (B,).
        steps: iterations.

    Source: Hestenes & Stiefel, 1952, section 3.
    """
    x, residual = torch.zeros_like(right), right
    direction, size = right, _square(right)
    for _ in range(steps):
        image = normal(direction) + as_column(damping, direction) * direction
        # A sample that has converged stands still: 0 / tiny is 0.
        rate = as_column(size / _dot(direction, image).clamp_min(1e-30), x)
        x, residual = x + rate * direction, residual - rate * image
        after = _square(residual)
        direction = residual + as_column(after / size.clamp_min(1e-30), x) * direction
        size = after
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)


def ridge_estimate(task: Linear, obs: Observation, steps: int = 8, spread: float = 0.5) -> Tensor:
    """Return the ridge estimate of x for each observation of a linear task, (B, *data_shape).

    Args:
        task: knows A and A^T of every observation.
        obs: B observations.
        steps: iterations of `ridge`.
        spread: standard deviation of an entry of x.
    """
    right = task.adjoint(obs.y, obs.params)
    damping = (obs.sigma / spread).square()

    def normal(x: Tensor) -> Tensor:
        return task.adjoint(task.apply(x, obs.params), obs.params)

    return ridge(normal, right, damping, steps)
