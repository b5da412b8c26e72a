"""Regularised inverse of a linear measurement: what a solver without a prior makes of y."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from outsourced.least_squares import least_squares

from .base import Observation


class Linear(Protocol):
    """A task with A and A^T, each item of a batch under its own operator."""

    def apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor: ...
    def adjoint(self, y: Tensor, params: dict[str, Tensor]) -> Tensor: ...


def ridge_estimate(task: Linear, obs: Observation, steps: int = 8, spread: float = 0.5) -> Tensor:
    """Return the ridge estimate of x for each observation of a linear task, (B, *data_shape).

    Args:
        task: knows A and A^T of every observation.
        obs: B observations.
        steps: conjugate gradients.
        spread: standard deviation of an entry of x.
    """
    return least_squares(
        push=lambda x: task.apply(x, obs.params),
        pull=lambda y: task.adjoint(y, obs.params),
        right=obs.y,
        steps=steps,
        damping=(obs.sigma / spread).square(),
    )
