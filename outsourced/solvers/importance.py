"""Sampling importance resampling from the prior: the baseline that every other method must beat."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples, check_request, clock
from outsourced.solvers.resampling import resample
from outsourced.tasks.base import Observation


class Importance:
    """Prior draws, weighted by the reward and resampled.

    exp of the log Z estimate is unbiased, and samples are exact in the limit of many candidates;
    how many are needed grows as exp(KL(posterior, prior)). All observations share the candidates:
    each one's samples are as good as those of a single call, but those of different observations
    are not independent.

    Args:
        posterior: prior and task.
        candidates: prior draws for each call.

    Raises:
        ValueError: when candidates < 1.

    Source: Rubin, 1988.
    """

    def __init__(self, posterior: Posterior, candidates: int = 4096) -> None:
        if candidates < 1:
            raise ValueError(f"solver.candidates must be >= 1, got {candidates}")
        self.posterior, self.candidates = posterior, candidates

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Draw n samples for each of the B observations.

        Args:
            obs: B observations.
            n: samples for each, at most `candidates`; they repeat where weights are few.
            generator: source of randomness.
            progress: show a progress bar over observations.

        Returns:
            samples, with the weights of all candidates as `proposal_log_weight`.

        Raises:
            ValueError: when n is out of range, or no candidate of an observation has a usable
                weight.
        """
        check_request(obs, n)
        if n > self.candidates:
            raise ValueError(
                f"solver.candidates must be >= n = {n} samples per observation, got "
                f"{self.candidates}; raise it"
            )
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        z = self.posterior.draw_noise(self.candidates, generator)
        x = self.posterior.decode(z)
        bar = tqdm(range(len(obs)), disable=not progress, desc="weighting")
        weight = torch.stack([rewards(self.posterior, x, obs[b]) for b in bar], 1)
        index = resample(weight, n, generator)
        used, seconds = self.posterior.prior_calls - calls, clock(obs.y.device) - start
        return Samples(x[index], z[index], None, used, seconds, proposal_log_weight=weight)


def rewards(posterior: Posterior, x: Tensor, obs: Observation) -> Tensor:
    """beta log r of all data x (m, *data_shape) under a single observation, in chunks: (m,)."""
    parts = (
        posterior.task.log_reward(piece, obs[torch.zeros(len(piece), dtype=torch.long)])
        for piece in x.split(posterior.chunk)
    )
    return posterior.beta * torch.cat(list(parts))
