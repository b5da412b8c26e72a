"""Posterior sampling with latent diffusion, as published and as released."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment, norms
from outsourced.solvers.prerequisites import check_eta
from outsourced.solvers.step_sizes import step_sizes
from outsourced.tasks.base import Observation

VARIANTS = ("paper", "official")


class PSLD(DiffusionSampler):
    """z_{t-1} = z' - ∇_{z_t} (omega ‖y - A D(ẑ_0)‖^p + gamma ‖ẑ_0 - E(x⊕)‖^p), z' unguided.

    Rout et al., 2023, arXiv 2307.00619, algorithm 2. x⊕ keeps D(ẑ_0) where y says nothing:

    - `paper`: x⊕ = Aᵀy + (I - AᵀA) D(ẑ_0), p = 2, E the encoder's mode.
    - `official`, the authors' code: p = 1; fresh noise of deviation sigma on A D(ẑ_0) in the first
      norm; E a draw of the encoder; x⊕ = T y + D(ẑ_0) - T A D(ẑ_0), where T is no adjoint, but the
      identity, or nearest-neighbour upsampling where A shrinks the image.

    Args:
        posterior: a latent diffusion or flow, and a linear measurement.
        variant: `paper` or `official`.
        omega: weight of the residual; by default the one that was tuned for the prior, or published
            for the task, which exists for `official` only.
        gamma: weight of the gluing term; likewise.
        steps: timesteps.
        eta: 0 is DDIM's step, 1 is DDPM's.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, an unknown variant, no published step size, or no
            `official` transpose for measurements of this shape.
    """

    name = "psld"
    linear = True

    def __init__(
        self,
        posterior: Posterior,
        variant: str = "official",
        omega: float | None = None,
        gamma: float | None = None,
        steps: int = 1000,
        eta: float = 0.0,
        **loop: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"solver.variant must be one of {VARIANTS}, got {variant!r}")
        super().__init__(posterior, steps, **loop)
        self.official = variant == "official"
        name = self.name if self.official else "psld_paper"
        self.omega, self.gamma = step_sizes(name, posterior, steps, omega=omega, gamma=gamma)
        self.eta = check_eta(eta)
        if self.official:
            self.transpose(torch.zeros(1, *self.task.measurement_shape))

    def transpose(self, y: Tensor) -> Tensor:
        """T y of the official variant: y itself, or enlarged to the image's size."""
        shape, target = tuple(y.shape[1:]), self.task.data_shape
        if shape == target:
            return y
        if len(shape) != 3 or shape[0] != target[0] or target[1] % shape[1] or target[2] % shape[2]:
            raise ValueError(
                f"solver.variant=official has no transpose from measurements {shape} to data "
                f"{target}; use solver.variant=paper"
            )
        return interpolate(y, target[1:], mode="nearest")

    def glue(self, image: Tensor, obs: Observation) -> Tensor:
        """x⊕: what y says, and the image where y says nothing."""
        gap = obs.y - self.task.apply(image, obs.params)
        back = self.transpose(gap) if self.official else self.task.adjoint(gap, obs.params)
        return image + back

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Guided by the distance from y and by the gluing term."""
        power, noise, seed = 2, None, None
        if self.official:
            power, noise, seed = 1, at.normal(at.obs.y), at.seed()

        def loss(clean: Tensor, image: Tensor) -> Tensor:
            drift = norms(clean - self.encode(self.glue(image, at.obs), seed))
            misfit = self.distance(image, at.obs, noise)
            return self.omega * misfit**power + self.gamma * drift**power

        return self.guide(z, at, loss)
