"""Diffusion posterior sampling in latents: through the decoder, without any correction for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment
from outsourced.solvers.prerequisites import check_eta
from outsourced.solvers.step_sizes import step_sizes


class LatentDPS(DiffusionSampler):
    """z_{t-1} = z' - omega ∇_{z_t} ‖y - A(D(ẑ_0))‖ (Rout et al., 2023, arXiv 2307.00619, eq. 5).

    z' is the unguided step; the norm is not squared, as in the authors' code. A may be nonlinear.

    Args:
        posterior: a latent diffusion or flow, and a measurement.
        omega: step size; by default the one that was tuned for the prior, or published for the
            task.
        steps: timesteps.
        eta: 0 is DDIM's step, 1 is DDPM's.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or no published step size.
    """

    name = "latent_dps"

    def __init__(
        self,
        posterior: Posterior,
        omega: float | None = None,
        steps: int = 1000,
        eta: float = 0.0,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        (self.omega,) = step_sizes(self.name, posterior, steps, omega=omega)
        self.eta = check_eta(eta)

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Guided by the distance of the decoded estimate from y."""

        def loss(clean: Tensor, image: Tensor) -> Tensor:
            return self.omega * self.distance(image, at.obs)

        return self.guide(z, at, loss)
