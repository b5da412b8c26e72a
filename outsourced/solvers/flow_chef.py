"""Posterior sampling with flow-matching priors: the gradient of the clean end steers the state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment, column
from outsourced.solvers.step_sizes import step_sizes


class FlowChef(DiffusionSampler):
    """z_{s'} = z_s - omega ∇_{ẑ_0} mean (y - A D(ẑ_0))² + (s' - s) v(z_s), ẑ_0 = z_s - s v(z_s).

    Patel et al., ICCV 2025, arXiv 2412.00100, algorithm 1 with one step of descent. The gradient
    skips the network, whose Jacobian straight paths make smooth; the mean is over the entries of
    y, hidden ones counted as 0. The last step is not steered, as in the authors' code.

    Args:
        posterior: a flow-matching prior in latents or pixels, and a measurement.
        omega: step size; by default the one that was tuned for the prior, or the authors' 100.
        steps: timesteps.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or a number out of range.
    """

    name = "flow_chef"
    latent = None
    flow = True

    def __init__(
        self, posterior: Posterior, omega: float | None = None, steps: int = 28, **loop: Any
    ) -> None:
        super().__init__(posterior, steps, **loop)
        (self.omega,) = step_sizes(self.name, posterior, steps, omega=omega)

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Steered towards y, but for the last step."""
        clean, noise = self.estimate(z, at.now)
        moved = self.advance(clean, noise, at)
        if at.after.noise == 0:
            return moved, self.decode(clean)
        with torch.enable_grad():
            leaf = clean.detach().requires_grad_()
            image = self.decode(leaf)
            loss = self.distance(image, at.obs).square() / at.obs.y[0].numel()
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return moved - column(self.omega, gradient) * gradient, image.detach()
