"""Measurements y = A(x) + n of any deepinv physics, with the operator drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Observation
from .checks import check_pairs, check_params, check_shape
from .features import is_grid, resized, stack_flat, stack_on_grid
from .noise_level import as_column, as_sigma
from .noise_models import GaussianNoise, noise_model
from .operators import OperatorSampler, draw_operator
from .pairwise import pairwise_gaussian
from .probe import check_physics, probe_adjoint, probe_forward, probe_gain, probe_intensity
from .ranges import PositiveRange
from .stateless import noise_reaches, stateless
from .whitening import Whitened


class Measurement(Whitened):
    """y = A(x) + n with A any deepinv Physics, linear or not, and n white Gaussian or shot noise.

    The noise of the task replaces that of the physics. Where the physics masks its noise
    (inpainting, MRI), the masked entries of y are 0 and carry no likelihood.

    Args:
        physics: a `deepinv.physics.Physics`; `LinearPhysics` must have a correct adjoint.
        data_shape: event shape of x, e.g. (C, H, W) or (d,).
        sigma: noise standard deviation in the units of A(x); a pair (lo, hi) draws it
            log-uniformly for each sample.
        operator_sampler: draws operator parameters, one per sample: a callable
            (n, data_shape, generator) -> dict of tensors (n, ...), or a deepinv
            `PhysicsGenerator`. None keeps the operator fixed.
        noise: "gaussian", or "poisson" for shot noise of deviation sigma at white; see
            `PoissonNoise`.

    Raises:
        ValueError: when sigma is not > 0, or the physics fails its probe: not a Physics, wrong
            shapes, non-finite, random, mixing the batch, or with an adjoint that is none; or when
            its measurements are no intensities that photons could count.
    """

    physics: Any
    operator_sampler: Any

    def __init__(
        self,
        physics: nn.Module,
        data_shape: Sequence[int],
        sigma: float | Sequence[float],
        operator_sampler: OperatorSampler | None = None,
        noise: str = "gaussian",
    ) -> None:
        super().__init__()
        self.noise = noise_model(noise)
        self.noise_level = PositiveRange(sigma, "task.sigma")
        self.data_shape = tuple(int(s) for s in data_shape)
        check_physics(physics)
        from deepinv.physics import LinearPhysics

        self.physics = physics
        self.linear = isinstance(physics, LinearPhysics)
        self.operator_sampler = operator_sampler
        self._probe()

    @torch.no_grad()
    def _probe(self) -> None:
        generator = torch.Generator().manual_seed(0)
        device = next((b.device for b in self.physics.buffers()), torch.device("cpu"))
        x = torch.rand((2, *self.data_shape), generator=generator).to(device) * 2 - 1
        drawn = draw_operator(self.operator_sampler, 2, self.data_shape, generator)
        params = {k: v.to(device) for k, v in drawn.items()}
        self.param_shapes = {k: tuple(v.shape[1:]) for k, v in params.items()}
        name = type(self.physics).__name__
        y = probe_forward(name, self.apply, x, params)
        self.measurement_shape, self.adjoint_gain = tuple(y.shape[1:]), 1.0
        if not isinstance(self.noise, GaussianNoise):
            probe_intensity(name, self.apply, x, params)
        if self.linear:
            v = torch.randn(y.shape, generator=generator).to(y)
            probe_adjoint(name, self.adjoint, x, y, params, v)
            self.adjoint_gain = probe_gain(self.apply, self.adjoint, x, params)
        sigma = torch.full((2,), self.noise_level.lo, device=device)
        self.feature_shape = tuple(self.features(Observation(y, params, sigma)).shape[1:])

    @property
    def fixed_params(self) -> dict[str, Tensor]:
        """What a fixed operator has for parameters where a drawn one of its kind has some, each
        (1, ...)."""
        return {}

    def sample_operator(
        self, n: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw operator parameters for n samples; {} when the operator is fixed.

        Args:
            n: number of samples.
            generator: source of randomness.

        Raises:
            ValueError: when the sampler returns other names or shapes than at construction.
        """
        params = draw_operator(self.operator_sampler, n, self.data_shape, generator)
        check_params(n, params, self.param_shapes)
        return params

    def apply(self, x: Any, params: dict[str, Tensor] | None = None) -> Any:
        """Return the noiseless A(x), (B, *measurement_shape), each item under its own operator.

        Called with a single function, it is `nn.Module.apply`, which shares the name.

        Args:
            x: data, (B, *data_shape).
            params: operator parameters, each (B, ...); None for fixed operators.

        Raises:
            ValueError: when x or a parameter has a wrong shape, or a parameter is missing.
        """
        if params is None and not isinstance(x, Tensor):
            return super().apply(x)
        params = params or {}
        check_shape("x", x, self.data_shape)
        check_params(x.shape[0], params, self.param_shapes)
        with stateless(self.physics):
            return self.physics.A(x, **params)

    def adjoint(self, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return A^T y, (B, *data_shape).

        Args:
            y: measurements, (B, *measurement_shape).
            params: operator parameters, each (B, ...).

        Raises:
            ValueError: when the physics is not linear, or y or a parameter has a wrong shape.
        """
        if not self.linear:
            raise ValueError(
                f"task.physics ({type(self.physics).__name__}) is not a LinearPhysics and has no "
                "adjoint; use gradients of task.log_reward instead"
            )
        check_shape("y", y, self.measurement_shape)
        check_params(y.shape[0], params, self.param_shapes)
        with stateless(self.physics):
            return self.physics.A_adjoint(y, **params)

    def observed(self, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return which entries of y the noise reaches, boolean, of the shape of y.

        Args:
            y: measurements, (B, *measurement_shape); only shape, dtype and device matter.
            params: operator parameters, each (B, ...).
        """
        return noise_reaches(self.physics, y, params)

    def sample(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        params: dict[str, Tensor] | None = None,
        sigma: float | Tensor | None = None,
    ) -> Observation:
        """Draw y ~ p(y | x), with a fresh operator and noise level where they are not given.

        Args:
            x: data, (B, *data_shape).
            generator: source of randomness, on the CPU or on the device of x.
            params: operator parameters to use, each (B, ...).
            sigma: noise standard deviation to use, a number or (B,).

        Raises:
            ValueError: when x or params have a wrong shape, or sigma is not > 0.
        """
        n = x.shape[0]
        if params is None:
            params = self.sample_operator(n, generator)
        params = {
            k: v.to(x) if v.is_floating_point() else v.to(x.device) for k, v in params.items()
        }
        if sigma is None:
            sigma = self.noise_level.sample(n, generator)
        sigma = as_sigma(sigma, n).to(x)
        clean = self.apply(x, params)
        noisy = self.noise.draw(clean, as_column(sigma, clean), generator)
        y = torch.where(self.observed(clean, params), noisy, clean)
        return Observation(y, params, sigma)

    def count(self, obs: Observation) -> Tensor:
        """Return the number of observed entries of each observation, float (B,)."""
        return self.observed(obs.y, obs.params).flatten(1).sum(1).to(obs.y.dtype)

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """Return the normalised log-likelihood log p(y | x) in nats, (B,).

        Of the observed entries of each sample under its own operator and noise level. Sums run in
        float64, since a megapixel image has a log-likelihood of millions of nats.

        Args:
            x: data, (B, *data_shape).
            obs: B observations.

        Raises:
            ValueError: when shapes or batch sizes do not match or y is not finite.
        """
        self.check(obs, x)
        clean, seen = self.apply(x, obs.params), self.observed(obs.y, obs.params)
        sigma = as_column(obs.sigma, obs.y)
        return self.noise.log_density(obs.y, clean, sigma, seen).to(x.dtype)

    def log_bound(self, obs: Observation) -> Tensor:
        """Return the log_reward of data that fit y exactly, which none exceeds, float64 (B,)."""
        sigma = as_column(obs.sigma, obs.y)
        return self.noise.log_bound(obs.y, sigma, self.observed(obs.y, obs.params))

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """See `Task`; at once where the operator is fixed and the noise Gaussian."""
        if self.param_shapes or not isinstance(self.noise, GaussianNoise):
            return super().pairwise_log_reward(x, obs)
        self.check(obs)
        clean, seen = self.apply(x, {}), self.observed(obs.y, {})
        return pairwise_gaussian(clean.flatten(1), obs.y.flatten(1), seen.flatten(1), obs.sigma)

    def features(self, obs: Observation) -> Tensor:
        """Return what an encoder should see of an observation and its operator.

        Images: (B, C', H, W), the measurement on the image grid (A^T y at unit gain where the
        shapes differ), then what `describe` says of each operator parameter. Vectors, and
        measurements that have no image form: (B, D), all of it flattened. A constant log sigma
        follows only when sigma is drawn from a range.

        Args:
            obs: B observations.
        """
        self.check(obs)
        first, extra = self.measurement_feature(obs), self.parameter_features(obs.params)
        if self.noise_level.varies:
            extra.append(obs.sigma.log())
        return stack_on_grid(first, extra) if first.dim() == 4 else stack_flat(first, extra)

    def describe(self, name: str, value: Tensor) -> list[Tensor]:
        """Return what an encoder sees of an operator parameter (B, ...): itself; images are
        centred in the grid, numbers become constant channels."""
        return [value]

    def parameter_features(self, params: dict[str, Tensor]) -> list[Tensor]:
        """Return what an encoder sees of all operator parameters."""
        return [told for name, value in params.items() for told in self.describe(name, value)]

    def measurement_feature(self, obs: Observation) -> Tensor:
        """Return what an encoder sees of y, on the grid of x where x is an image."""
        if not is_grid(self.data_shape) or self.measurement_shape[-2:] == self.data_shape[-2:]:
            return obs.y
        if self.linear:
            return self.adjoint_gain * self.adjoint(obs.y, obs.params)
        return resized(obs.y, self.data_shape)

    def check(self, obs: Observation, x: Tensor | None = None) -> None:
        """Refuse an observation that does not fit the task, or the data beside it.

        Args:
            obs: the observations.
            x: data, one for each observation.

        Raises:
            ValueError: when a shape or a batch size is wrong, y is not finite or sigma not > 0.
        """
        check_shape("y", obs.y, self.measurement_shape)
        check_params(len(obs), obs.params, self.param_shapes)
        if not torch.isfinite(obs.y).all():
            raise ValueError("observation.y must be finite, got NaN or infinity; clean the input")
        self.noise.check(obs.y, as_column(as_sigma(obs.sigma, len(obs)), obs.y))
        if x is not None:
            check_pairs(len(x), len(obs))
