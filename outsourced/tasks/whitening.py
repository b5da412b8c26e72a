"""Measurements in standard deviations of their noise, and how these change: for Gauss-Newton."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .base import Observation, Task
from .jacobian import directional
from .noise_level import as_column
from .noise_models import NoiseModel


class Whitened(Task):
    """A task with a residual.

    Attributes:
        noise: density of y given A(x).
        linear: whether A is.
        apply: A, a function of x (B, *data_shape) and of operator parameters, each (B, ...).
    """

    noise: NoiseModel
    linear: bool
    apply: Any

    @abstractmethod
    def observed(self, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return which entries of y are."""

    @abstractmethod
    def check(self, obs: Observation, x: Tensor | None = None) -> None:
        """Refuse what does not fit the task."""

    def whitened_residual(self, x: Tensor, obs: Observation) -> Tensor:
        """Return (y - A x) in standard deviations, (B, m), exactly 0 at entries not observed.

        Args:
            x: data, (B, *data_shape).
            obs: B observations.
        """
        self.check(obs, x)
        clean = self.apply(x, obs.params)
        residual = self.noise.whiten(obs.y, clean, as_column(obs.sigma, obs.y))
        return torch.where(self.observed(obs.y, obs.params), residual, 0.0).flatten(1)

    def whitened_jacobian(self, columns: Tensor, x: Tensor, obs: Observation) -> Tensor:
        """Return J along tangents of x, (d, B, m): -J^T residual is the gradient of log_reward,
        and J^T J its Fisher information. Under Gaussian noise, the derivative of the residual.

        Args:
            columns: d tangents for each x, (d, B, *data_shape).
            x: data, (B, *data_shape).
            obs: B observations.
        """
        change = directional(self.apply, self.linear, columns, x, obs.params)
        # Masks and noise levels are those of the batch: a factor per observation, not per tangent.
        return (change * self._slope(x, obs)).flatten(2)

    def whitened_signal(self, x: Tensor, obs: Observation, about: Tensor) -> Tensor:
        """Return what has `whitened_jacobian` at `about` as its derivative in x there, (B, m).

        Args:
            x, about: data, (B, *data_shape).
            obs: B observations.
        """
        return (self.apply(x, obs.params) * self._slope(about, obs)).flatten(1)

    def _slope(self, x: Tensor, obs: Observation) -> Tensor:
        slope = self.noise.slope(self.apply(x, obs.params), as_column(obs.sigma, obs.y))
        return -self.observed(obs.y, obs.params).to(x.dtype) * slope
