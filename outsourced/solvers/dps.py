"""Diffusion posterior sampling in pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment
from outsourced.solvers.prerequisites import check_eta
from outsourced.solvers.schedule import Level
from outsourced.solvers.step_sizes import step_sizes


class DPS(DiffusionSampler):
    """x_{t-1} = ancestral step - omega ∇_{x_t} ‖y - A(x̂_0)‖ (Chung et al., 2023, algorithm 1).

    arXiv 2209.14687; the norm is not squared, as in the authors' code. A may be nonlinear.

    Args:
        posterior: a pixel diffusion or flow, and a measurement.
        omega: step size; by default the one that was tuned for the prior, or published for the
            task.
        steps: timesteps.
        eta: 1 is DDPM's step, 0 is DDIM's.
        clip: clamp x̂_0 to [-1, 1], as the authors do; a clamped pixel has no gradient.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or no published step size.
    """

    name = "dps"
    latent = False

    def __init__(
        self,
        posterior: Posterior,
        omega: float | None = None,
        steps: int = 1000,
        eta: float = 1.0,
        clip: bool = True,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        (self.omega,) = step_sizes(self.name, posterior, steps, omega=omega)
        self.eta, self.clip = check_eta(eta), clip

    def estimate(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """The clean part, clamped, and the noise that then explains z."""
        clean, noise = super().estimate(z, level)
        if not self.clip:
            return clean, noise
        clean = clean.clamp(-1, 1)
        return clean, (z - level.signal * clean) / level.noise

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Guided by the distance of the clean estimate from y."""

        def loss(clean: Tensor, image: Tensor) -> Tensor:
            return self.omega * self.distance(image, at.obs)

        return self.guide(z, at, loss)
