"""How well the images of a diffusion prior's decoder can fit observations, if nothing else counts.

Real images lie off the range of a prior, and what is missing shows in every sampler's residual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.worth import Judge
from outsourced.least_squares import least_squares
from outsourced.posterior import Posterior
from outsourced.priors.diffusion import DiffusionPrior
from outsourced.solvers.base import Samples
from outsourced.tasks.base import Observation

REACH = "best fit of the decoder"
ROUNDS, STEPS = 12, 6  # Gauss-Newton steps, and conjugate gradients of each
LENGTHS = (1.0, 0.5, 0.25, 0.1)  # shares of a step that are tried


def reachable(posterior: Posterior) -> bool:
    """Whether there is a decoder to fit, and a residual."""
    known = isinstance(posterior.prior, DiffusionPrior) and posterior.estimates_latents
    return known and posterior.black_box is None


@torch.no_grad()
def best_fit(posterior: Posterior, obs: Observation, rounds: int = ROUNDS) -> Tensor:
    """Latents (B, *noise_shape) of small residual, by Gauss-Newton steps without a prior.

    They fit the noise as well as the image; the search is a local one.
    """
    best = posterior.latent_estimate(obs)
    assert best is not None
    error = _error(posterior, best, obs)
    for _ in range(rounds):
        at = posterior.linearise_latents(best, obs)
        step, start = least_squares(at.push, at.pull, -at.residual, STEPS), best
        for length in LENGTHS:
            found = start + length * step
            value = _error(posterior, found, obs)
            better = value < error
            best = torch.where(better.view(-1, *[1] * (best.ndim - 1)), found, best)
            error = torch.minimum(value, error)
    return best


def _error(posterior: Posterior, h: Tensor, obs: Observation) -> Tensor:
    x = posterior.decode_latents(h)
    return -posterior.task.log_reward(x, obs)


def reached(judge: Judge, posterior: Posterior, obs: Observation) -> dict[str, float]:
    """What the images that fit best score."""
    x = posterior.decode_latents(best_fit(posterior, obs))
    return judge(posterior, Samples(x[None], None, None, 0, 0.0), obs)
