"""Posterior sampling with flow-matching priors, without gradients through the network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment, column
from outsourced.solvers.prerequisites import check_counts
from outsourced.solvers.step_sizes import step_sizes
from outsourced.tasks.base import Observation


class FlowDPS(DiffusionSampler):
    """Pull the clean end of the path towards y, blend, and mix fresh noise into the noisy end.

    Kim et al., ICCV 2025, arXiv 2503.08136, algorithm 1, at noise level s, followed by s':
    h' from ẑ_0 by gradient steps of omega ‖y - A D(h')‖; h = (1 - s) ẑ_0 + s h';
    z' = (1 - s') h + s' (sqrt(s') ẑ_1 + sqrt(1 - s') ε).
    The authors' code takes the norm after the adjoint or pseudo-inverse of A.

    Args:
        posterior: a flow-matching prior in latents or pixels, and a measurement.
        omega: step size; by default the one that was tuned for the prior, or the authors' 15, which
            is for Stable Diffusion 3 at 768 px.
        steps: timesteps.
        iterations: gradient steps at each, one pass of the decoder each.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or a number out of range.
    """

    name = "flow_dps"
    latent = None
    flow = True

    def __init__(
        self,
        posterior: Posterior,
        omega: float | None = None,
        steps: int = 28,
        iterations: int = 3,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        check_counts(iterations=iterations)
        (self.omega,) = step_sizes(self.name, posterior, steps, omega=omega)
        self.iterations = iterations

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Pulled towards y and partly noised anew."""
        clean, noise = self.estimate(z, at.now)
        clean = torch.lerp(clean, self.pull(clean, at.obs), at.now.noise)
        renewed = math.sqrt(1 - at.after.noise) * at.normal(noise)
        noise = math.sqrt(at.after.noise) * noise + renewed
        return at.after.signal * clean + at.after.noise * noise, self.decode(clean)

    def pull(self, clean: Tensor, obs: Observation) -> Tensor:
        """Gradient steps that lower the distance of the decoded state from y."""
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = clean.detach().requires_grad_()
                distance = self.distance(self.decode(leaf), obs)
                (gradient,) = torch.autograd.grad(distance.sum(), leaf)
            clean = clean - column(self.omega, clean) * gradient
        return clean
