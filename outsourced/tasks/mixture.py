"""A mixture of measurements: each sample is seen through one of several operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Observation
from .measurement import Measurement
from .noise_models import GaussianNoise
from .ranges import PositiveRange
from .ridge import ridge_estimate
from .switch import KIND, Switch, solver_view


class Mixture(Measurement):
    """y = A_k(x) + n with k drawn for each sample: one sampler for several operators.

    Measurements are flattened and padded with zeros that carry no likelihood; the parameter `kind`
    (B,) tells the operator of each sample. Parameters that several operators draw (masks, kernels)
    are shared, and 0 where an operator has no use for them. The encoder sees the ridge estimate of
    each linear operator, and of others what their own task shows of y.

    Args:
        data_shape: event shape of x.
        tasks: measurements of such data with Gaussian noise, by name.
        weights: how often each is drawn, in any unit, by name; equally by default.
        sigma: noise standard deviation of all, or a pair (lo, hi); by default each has its own.

    Raises:
        ValueError: when there is no task, one of other data or with shot noise, two that draw a
            parameter of one name in other shapes, or weights are not one number > 0 for each.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        tasks: Mapping[str, Measurement],
        weights: Mapping[str, float] | None = None,
        sigma: float | Sequence[float] | None = None,
    ) -> None:
        from deepinv.physics import LinearPhysics, Physics

        shape = tuple(int(s) for s in data_shape)
        parts = {str(name): task for name, task in tasks.items()}
        _check_parts(parts, shape)
        shares = _shares(parts, weights)
        switch = Switch(parts)
        linear = all(task.linear for task in parts.values())
        physics = (
            LinearPhysics(A=switch, A_adjoint=switch.transpose) if linear else Physics(A=switch)
        )
        levels = [task.noise_level for task in parts.values()]
        if sigma is None:
            sigma = [min(level.lo for level in levels), max(level.hi for level in levels)]
        else:
            levels = [PositiveRange(sigma, "task.sigma")] * len(parts)
        super().__init__(physics, shape, sigma, partial(_draw, switch, shares))
        self.levels = [(level.lo, level.hi) for level in levels]
        self.differentiable = all(task.differentiable for task in parts.values())

    @property
    def switch(self) -> Switch:
        """The operators of all kinds."""
        switch: Switch = self.physics.forw
        return switch

    def sample_operator_with(
        self, name: str, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the parameters of one sample of the first operator that has a parameter `name`.

        Args:
            name: of an operator parameter of the mixture, e.g. "mask".
            generator: source of randomness.
        """
        users = [name in task.param_shapes for task in self.switch.parts]
        return self.switch.draw(torch.tensor([users.index(True)]), generator)

    def adopt(self, name: str, task: Measurement, obs: Observation) -> Observation:
        """Observations of another task as those of an operator of the mixture, of the same
        likelihood; kernels smaller than the mixture's get a border of zeros.

        Args:
            name: of the operator, in `tasks`.
            task: whose observations they are.
            obs: B of them.

        Raises:
            ValueError: no operator of this name, or one with other parameters or measurements.
        """
        switch = self.switch
        if name not in switch.tasks:
            raise ValueError(f"a mixture of {', '.join(switch.tasks)} has no operator {name!r}")
        part: Measurement = switch.tasks[name]  # type: ignore[assignment]
        own = {**task.fixed_params, **obs.params}
        if own.keys() != part.param_shapes.keys() or task.measurement_shape != (
            part.measurement_shape
        ):
            raise ValueError(
                f"operator {name!r} has parameters {sorted(part.param_shapes)} and measurements of "
                f"shape {part.measurement_shape}, got {sorted(own)} and {task.measurement_shape}"
            )
        count, device = len(obs), obs.y.device
        params = {
            key: torch.zeros(count, *shape, dtype=switch.dtypes[key], device=device)
            for key, shape in switch.shapes.items()
        }
        for key, value in own.items():
            params[key] = _bordered(key, value.expand(count, *value.shape[1:]), switch.shapes[key])
        kind = torch.full((count,), list(switch.tasks).index(name), device=device)
        return Observation(switch.padded(obs.y), {KIND: kind, **params}, obs.sigma)

    def observed(self, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return which entries of y the noise reaches, boolean (B, width); none of the padding."""
        return self.switch.observed(y, **params)

    def sample(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        params: dict[str, Tensor] | None = None,
        sigma: float | Tensor | None = None,
    ) -> Observation:
        """See `Measurement`; a noise level that is not given is that of the sample's operator."""
        if params is None:
            params = self.sample_operator(len(x), generator)
        if sigma is None:
            sigma = self._draw_sigma(params[KIND], generator)
        return super().sample(x, generator, params, sigma)

    def _draw_sigma(self, kind: Tensor, generator: torch.Generator | None) -> Tensor:
        device = generator.device if generator is not None else torch.device("cpu")
        low, high = torch.tensor(self.levels, device=device)[kind.to(device)].unbind(1)
        u = torch.rand(len(kind), generator=generator, device=device)
        return low * (high / low) ** u

    def parameter_features(self, params: dict[str, Tensor]) -> list[Tensor]:
        """Which operator it is, and what its task shows of its parameters."""
        return self.switch.describe(params)

    def measurement_feature(self, obs: Observation) -> Tensor:
        """What a solver sees of y, each sample by its own operator: (B, C', H, W) or (B, D)."""
        if self.linear:
            return ridge_estimate(self, obs)
        switch = self.switch

        def seen(task: Measurement, index: Tensor) -> Tensor:
            value = solver_view(task, switch.part(task, obs, index))
            return F.pad(value, (0, 0) * (value.dim() - 2) + (0, switch.channels - value.shape[1]))

        return switch.each(obs.params[KIND], seen)

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """See `Task`; by the operators' own ways."""
        self.check(obs)
        switch = self.switch

        def scores(task: Measurement, index: Tensor) -> Tensor:
            return task.pairwise_log_reward(x, switch.part(task, obs, index)).T

        return switch.each(obs.params[KIND], scores).T


def _bordered(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A parameter (B, ...) of the mixture's own shape, or in the middle of zeros."""
    found = tuple(value.shape[1:])
    if found == shape:
        return value
    gaps = [large - small for small, large in zip(found, shape, strict=True)]
    if name != "filter" or min(gaps) < 0 or any(gap % 2 for gap in gaps):
        raise ValueError(f"parameter {name!r} must be of shape {shape}, got {found}")
    return F.pad(value, [gap // 2 for gap in reversed(gaps) for _ in (0, 1)])


def _draw(
    switch: Switch,
    weights: Tensor,
    n: int,
    shape: tuple[int, ...],
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    device = generator.device if generator is not None else torch.device("cpu")
    kind = torch.multinomial(weights.to(device), n, replacement=True, generator=generator)
    return switch.draw(kind, generator)


def _check_parts(tasks: dict[str, Measurement], shape: tuple[int, ...]) -> None:
    if not tasks:
        raise ValueError("task.tasks needs at least one measurement, got none")
    for name, task in tasks.items():
        if not isinstance(task, Measurement) or not isinstance(task.noise, GaussianNoise):
            raise ValueError(
                f"task.tasks.{name} must be a measurement with Gaussian noise, got "
                f"{type(task).__name__}"
            )
        if task.data_shape != shape:
            raise ValueError(
                f"task.tasks.{name} must be for data of shape {shape}, got {task.data_shape}"
            )


def _shares(tasks: dict[str, Measurement], weights: Mapping[str, float] | None) -> Tensor:
    given = dict.fromkeys(tasks, 1.0) if weights is None else dict(weights)
    if given.keys() != tasks.keys() or not all(w > 0 for w in given.values()):
        raise ValueError(
            f"task.weights must be a number > 0 for each of {', '.join(tasks)}, got {given}"
        )
    return torch.tensor([float(given[name]) for name in tasks])
