"""Latent DPS that prefers fixed points of the autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment, norms
from outsourced.solvers.prerequisites import check_eta
from outsourced.solvers.step_sizes import step_sizes


class GMLDPS(DiffusionSampler):
    """z_{t-1} = z' - ∇_{z_t} (omega ‖y - A(D(ẑ_0))‖ + gamma ‖ẑ_0 - E(D(ẑ_0))‖).

    "Goodness modified latent DPS", Rout et al., 2023, arXiv 2307.00619, eq. 6; norms are not
    squared, as in the authors' code. z' is the unguided step, A may be nonlinear.

    Args:
        posterior: a latent diffusion or flow, and a measurement.
        omega: weight of the residual; by default the one that was tuned for the prior, or published
            for the task.
        gamma: weight of the fixed point; likewise.
        steps: timesteps.
        eta: 0 is DDIM's step, 1 is DDPM's.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or no published step size.
    """

    name = "gml_dps"

    def __init__(
        self,
        posterior: Posterior,
        omega: float | None = None,
        gamma: float | None = None,
        steps: int = 1000,
        eta: float = 0.0,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        self.omega, self.gamma = step_sizes(self.name, posterior, steps, omega=omega, gamma=gamma)
        self.eta = check_eta(eta)

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Guided by the distance from y and from a fixed point."""

        def loss(clean: Tensor, image: Tensor) -> Tensor:
            drift = norms(clean - self.encode(image))
            return self.omega * self.distance(image, at.obs) + self.gamma * drift

        return self.guide(z, at, loss)
