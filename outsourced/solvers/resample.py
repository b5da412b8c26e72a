"""Latent diffusion with hard data consistency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import DiffusionSampler, Network
from outsourced.solvers.moment import Moment, column
from outsourced.solvers.prerequisites import check_counts, check_eta
from outsourced.solvers.schedule import ancestral_variance
from outsourced.solvers.step_sizes import step_sizes
from outsourced.tasks.base import Observation

PIXEL_RATE, LATENT_RATE = 1e-2, 5e-3  # of Adam, as the authors'


class ReSample(DiffusionSampler):
    """Now and then fit the clean estimate to y down to the noise, and noise the fit again.

    Song et al., ICLR 2024, arXiv 2307.08123, algorithm 1. As in the authors' code, all steps are
    guided by omega ᾱ_t ∇‖y - A D(ẑ_0)‖, every `every`-th fits too, in pixels in the second third
    of the steps and in latents in the last, and so does the last step. Unlike there, each sample's
    fit ends at a residual of sigma, Adam has no weight decay, and no steps precede a fit.

    Args:
        posterior: a latent diffusion or flow, and a measurement.
        steps: timesteps.
        every: steps between two fits.
        gamma: variance of a fit about the guided state, in units of DDPM's posterior variance.
        omega: step size of the guidance; both are by default the tuned or the authors' ones.
        iterations: most steps of Adam in a fit.
        eta: 0 is DDIM's step, 1 is DDPM's.
        **loop: strict, checkpointing, preview and preview_every of `DiffusionSampler`.

    Raises:
        ValueError: as of `DiffusionSampler`, or a number out of range.
    """

    name = "resample"

    def __init__(
        self,
        posterior: Posterior,
        steps: int = 500,
        every: int = 10,
        gamma: float | None = None,
        omega: float | None = None,
        iterations: int = 200,
        eta: float = 0.0,
        **loop: Any,
    ) -> None:
        super().__init__(posterior, steps, **loop)
        check_counts(every=every, iterations=iterations)
        given = {"gamma": gamma, "omega": omega}
        self.gamma, self.omega = step_sizes(self.name, posterior, steps, **given)
        if self.gamma == 0:
            raise ValueError("solver.gamma must be > 0, got 0")
        self.every, self.iterations = every, iterations
        self.eta = check_eta(eta)

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Guided, and fitted where it is time."""
        kept = []

        def loss(clean: Tensor, image: Tensor) -> Tensor:
            kept.append(clean.detach())
            return self.omega * at.now.signal**2 * self.distance(image, at.obs)

        moved, image = self.guide(z, at, loss)
        third, last = 3 * at.now.index // self.steps, at.after.noise == 0
        if not last and (third == 0 or at.now.index % self.every):
            return moved, image
        if third == 1 and not last:
            clean = self.encode(self.fit(image, lambda x: x, at.obs, PIXEL_RATE))
        else:
            clean = self.fit(kept[0], self.decode, at.obs, LATENT_RATE)
        return clean if last else self.resample(clean, moved, at), image

    def resample(self, clean: Tensor, moved: Tensor, at: Moment) -> Tensor:
        """A draw of N(signal clean, noise²) times N(moved, gamma times the ancestral variance)."""
        spread = column(self.gamma, clean) * ancestral_variance(at.now, at.after)
        share = spread / (spread + at.after.noise**2)
        mean = share * at.after.signal * clean + (1 - share) * moved
        return mean + at.after.noise * share**0.5 * at.normal(mean)

    def fit(self, start: Tensor, image_of: Network, obs: Observation, rate: float) -> Tensor:
        """Lower ‖y - A image_of(value)‖ by Adam, each sample until its residual is sigma."""
        value = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=rate)
        for _ in range(self.iterations):
            with torch.enable_grad():
                whitened = self.task.whitened_residual(image_of(value), obs)
                (value.grad,) = torch.autograd.grad(whitened.square().sum(), value)
            far = whitened.square().sum(1) > self.task.count(obs)
            if not far.any():
                break
            before, still = value.detach().clone(), far.reshape(-1, *[1] * (value.ndim - 1))
            optimizer.step()
            value.data = torch.where(still, value.data, before)
        return value.detach()
