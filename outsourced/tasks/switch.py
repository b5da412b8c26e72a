"""Several operators in one: each sample of a batch passes through that of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Observation
from .measurement import Measurement
from .noise_level import as_column
from .ridge import ridge_estimate

KIND = "kind"  # the parameter (B,) that tells the operator of each sample


def solver_view(task: Measurement, obs: Observation) -> Tensor:
    """What a solver without a prior sees of y: the ridge estimate of x, or the task's own view."""
    return ridge_estimate(task, obs) if task.linear else task.measurement_feature(obs)


class Switch(nn.Module):
    """x -> A_k(x), flattened and padded with zeros to a common width.

    Args:
        tasks: measurements of the same data, by name.

    Attributes:
        width: entries of a padded measurement.
        channels: most channels (or entries) of a task's `solver_view`.
        shapes: event shape of every operator parameter but `kind`.

    Raises:
        ValueError: when two tasks draw a parameter of one name in other shapes.
    """

    def __init__(self, tasks: Mapping[str, Measurement]) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict(tasks)
        self.parts = tuple(tasks.values())
        self.width = max(math.prod(task.measurement_shape) for task in self.parts)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.channels, generator = 0, torch.Generator().manual_seed(0)
        for name, task in tasks.items():
            blank = task.sample(torch.zeros(1, *task.data_shape), generator)
            self.channels = max(self.channels, solver_view(task, blank).shape[1])
            for key, value in blank.params.items():
                known = self.shapes.setdefault(key, tuple(value.shape[1:]))
                self.dtypes.setdefault(key, value.dtype)
                if key == KIND or known != tuple(value.shape[1:]):
                    raise ValueError(
                        f"task.tasks.{name} draws {key!r} of shape {tuple(value.shape[1:])}, but "
                        f"another task of the mixture {known}; give both the same size"
                    )

    def each(self, kind: Tensor, function: Callable[[Measurement, Tensor], Tensor]) -> Tensor:
        """Join what a function returns for the samples of each kind, in the order of the batch.

        Args:
            kind: of each sample, (B,).
            function: of a task and the indices (n,) of its samples, returns (n, ...).
        """
        found = [(kind == k).nonzero()[:, 0] for k in range(len(self.parts))]
        pairs = [(task, index) for task, index in zip(self.parts, found, strict=True) if len(index)]
        joined = torch.cat([function(task, index) for task, index in pairs])
        return joined[torch.cat(found).argsort()]

    def own(self, task: Measurement, params: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The parameters of a task's own samples."""
        return {name: params[name][index] for name in task.param_shapes}

    def unpadded(self, task: Measurement, y: Tensor) -> Tensor:
        """Measurements (n, width) in the shape that the task gives them."""
        return y[:, : math.prod(task.measurement_shape)].unflatten(1, task.measurement_shape)

    def padded(self, y: Tensor) -> Tensor:
        """Measurements of a task as (n, width)."""
        flat = y.flatten(1)
        return F.pad(flat, (0, self.width - flat.shape[1]))

    def part(self, task: Measurement, obs: Observation, index: Tensor) -> Observation:
        """The observations at `index`, as those of their task."""
        y = self.unpadded(task, obs.y[index])
        return Observation(y, self.own(task, obs.params, index), obs.sigma[index])

    def forward(self, x: Tensor, kind: Tensor, **params: Tensor) -> Tensor:
        """(B, *data_shape) to (B, width)."""
        return self.each(
            kind, lambda task, i: self.padded(task.apply(x[i], self.own(task, params, i)))
        )

    def transpose(self, y: Tensor, kind: Tensor, **params: Tensor) -> Tensor:
        """The adjoint, (B, width) to (B, *data_shape)."""

        def back(task: Measurement, index: Tensor) -> Tensor:
            return task.adjoint(self.unpadded(task, y[index]), self.own(task, params, index))

        return self.each(kind, back)

    def observed(self, y: Tensor, kind: Tensor, **params: Tensor) -> Tensor:
        """Which entries of y the noise reaches, boolean (B, width); none of the padding."""

        def seen(task: Measurement, index: Tensor) -> Tensor:
            own = self.own(task, params, index)
            return self.padded(task.observed(self.unpadded(task, y[index]), own))

        return self.each(kind, seen)

    def draw(self, kind: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Draw the parameters of samples of given kinds (n,); 0 where a kind has none."""
        params = {
            name: torch.zeros(len(kind), *shape, dtype=self.dtypes[name], device=kind.device)
            for name, shape in self.shapes.items()
        }
        for k, task in enumerate(self.parts):
            index = (kind == k).nonzero()[:, 0]
            drawn = task.sample_operator(len(index), generator) if len(index) else {}
            for name, value in drawn.items():
                params[name][index] = value.to(kind.device)
        return {KIND: kind, **params}

    def describe(self, params: dict[str, Tensor]) -> list[Tensor]:
        """Which operator it is, one-hot, and what its task says of each parameter; 0 of others."""
        kind = params[KIND]
        told: list[Tensor] = [F.one_hot(kind, len(self.parts))]
        for name in self.shapes:
            users = torch.tensor([name in t.param_shapes for t in self.parts], device=kind.device)
            owner = next(t for t in self.parts if name in t.param_shapes)
            for value in owner.describe(name, params[name]):
                told.append(torch.where(as_column(users[kind], value), value, 0))
        return told
