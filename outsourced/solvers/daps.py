"""Decoupled annealing: Langevin steps on the clean state between two noise levels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment, column
from outsourced.solvers.prerequisites import check_counts
from outsourced.solvers.schedule import levels
from outsourced.solvers.step_sizes import step_sizes


class DAPS(DiffusionSampler):
    """z_{t'} = signal h + noise ε, h ~ N(h; ẑ_0(z_t), r_t² I) p(y|D(h))^beta by Langevin steps.

    Zhang et al., CVPR 2025, arXiv 2407.01521, algorithm 1 and eq. 8, in latents or in pixels;
    ẑ_0(z_t) is a short DDIM run, r_t = noise / signal. No gradient passes through the network. The
    authors fix sigma at 0.01 in the likelihood and tune a rate; here sigma is the task's, beta
    tempers it, and the rate is in units of the target's variance were D an isometry. Unadjusted
    Langevin steps of rate 0.02 are their 2e-6.

    Args:
        posterior: a diffusion or flow, and a measurement.
        steps: noise levels.
        ode_steps: network calls at each level.
        langevin_steps: steps at each level, one pass of the decoder each.
        rate: size of a Langevin step, above 2 over the squared gain of A and D it diverges; by
            default the one that was tuned for the prior, or the authors'.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or a number out of range.
    """

    name = "daps"
    latent = None
    tempered = True

    def __init__(
        self,
        posterior: Posterior,
        steps: int = 200,
        ode_steps: int = 5,
        langevin_steps: int = 50,
        rate: float | None = None,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        check_counts(ode_steps=ode_steps, langevin_steps=langevin_steps)
        (self.rate,) = step_sizes(self.name, posterior, steps, rate=rate)
        if self.rate == 0:
            raise ValueError("solver.rate must be > 0, got 0")
        self.ode_steps, self.langevin_steps = ode_steps, langevin_steps

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Denoise, move towards y, noise to the next level."""
        clean = self.langevin(self.denoise(z, at), at)
        moved = at.after.signal * clean + at.after.noise * at.normal(clean)
        return moved, self.decode(clean)

    def denoise(self, z: Tensor, at: Moment) -> Tensor:
        """The clean end of a DDIM run from z."""
        for now, after in pairwise(levels(self.prior, self.ode_steps, at.now.timestep)):
            z = self.advance(*self.estimate(z, now), replace(at, now=now, after=after))
        return z

    def langevin(self, anchor: Tensor, at: Moment) -> Tensor:
        """Langevin steps from the anchor, whose precision is (signal / noise)²."""
        precision, beta = (at.now.signal / at.now.noise) ** 2, self.posterior.beta
        sigma = at.obs.sigma.reshape(-1, *[1] * (anchor.ndim - 1))
        size = column(self.rate, anchor) / (precision + beta / sigma**2)
        value = anchor
        for _ in range(self.langevin_steps):
            with torch.enable_grad():
                leaf = value.detach().requires_grad_()
                whitened = self.task.whitened_residual(self.decode(leaf), at.obs)
                energy = 0.5 * beta * whitened.square().sum()
                (gradient,) = torch.autograd.grad(energy, leaf)
            pull = gradient + precision * (value - anchor)
            value = value - size * pull + (2 * size).sqrt() * at.normal(value)
        return value
