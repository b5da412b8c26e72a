"""The amortised sampler: one roll-out in noise space and one pass of the generator per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.solvers.base import Samples, check_request, clock, tile
from outsourced.tasks.base import Observation

CORRECTIONS = (None, "importance")


class Amortized:
    """Samples of a trained noise sampler, with their weights, or corrected by them.

    Args:
        sampler: the trained sampler.
        posterior: prior and task that it was trained for.
        correct: None returns the sampler's draws with log_weight = beta log r - log_ratio of their
            paths; `importance` proposes more and resamples by weight, which removes the sampler's
            bias as the number of candidates grows. Corrected samples repeat where weights are few.
        candidates: proposals per observation, `importance` only; max(4 n, 64) by default.
        chunk: most paths rolled out at once; whole observations at a time, so that one observation
            with more candidates still fits one chunk. posterior.chunk by default.

    Raises:
        ValueError: unknown correction, candidates without it, or numbers below 1.
    """

    def __init__(
        self,
        sampler: NoiseSampler,
        posterior: Posterior,
        correct: str | None = None,
        candidates: int | None = None,
        chunk: int | None = None,
    ) -> None:
        if correct not in CORRECTIONS:
            raise ValueError(f"solver.correct must be null or importance, got {correct!r}")
        if candidates is not None and (correct is None or candidates < 1):
            raise ValueError(
                "solver.candidates must be >= 1 and needs solver.correct=importance, got "
                f"candidates={candidates} with correct={correct}"
            )
        if chunk is not None and chunk < 1:
            raise ValueError(f"solver.chunk must be >= 1, got {chunk}")
        self.sampler, self.posterior = sampler, posterior
        self.correct, self.candidates = correct, candidates
        self.chunk = posterior.chunk if chunk is None else chunk

    def _proposals(self, n: int) -> int:
        if self.correct is None:
            return n
        count = max(4 * n, 64) if self.candidates is None else self.candidates
        if count < n:
            raise ValueError(
                f"solver.candidates must be >= n = {n} samples per observation, got {count}; "
                "raise it or leave it out"
            )
        return count

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
            n: samples for each.
            generator: source of randomness, on the device of obs.
            progress: show a progress bar over chunks of observations.

        Raises:
            ValueError: when n < 1, there are fewer candidates than n, or no candidate of an
                observation has a usable weight.
        """
        check_request(obs, n)
        proposals = self._proposals(n)
        width = max(1, self.chunk // proposals)
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        pieces = [
            self._draw(obs[first : first + width], n, proposals, generator)
            for first in tqdm(range(0, len(obs), width), disable=not progress, desc="sampling")
        ]
        x, z, weight = (torch.cat(part, 1) for part in zip(*pieces, strict=True))
        return Samples(
            x,
            z,
            log_weight=weight if self.correct is None else None,
            prior_calls=self.posterior.prior_calls - calls,
            seconds=clock(obs.y.device) - start,
            proposal_log_weight=weight,
        )

    def _draw(
        self, obs: Observation, n: int, proposals: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        path = self.sampler.forward_path(obs, proposals, generator)
        assert path.log_ratio is not None  # forward_path scores as it draws
        z, shape = path.end, path.log_ratio.shape
        x = self.posterior.decode(z.flatten(0, 1))
        # The reward of the data at hand: posterior.log_reward would pass z through f again.
        log_reward = self.posterior.beta * self.posterior.task.log_reward(x, tile(obs, proposals))
        weight = log_reward.reshape(shape) - path.log_ratio
        x = x.unflatten(0, shape)
        if self.correct is None:
            return x, z, weight
        index = resample(weight, n, generator)
        column = torch.arange(shape[1], device=index.device)
        return x[index, column], z[index, column], weight


def resample(log_weight: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return indices of n systematic draws per observation, each column on its own, (n, B).

    Candidate i appears n w_i times, rounded down or up, w_i the self-normalised weights of its
    column. Douc, Cappé & Moulines, 2005, section 2.4; Kitagawa, 1996.

    Args:
        log_weight: (m, B) nats; -inf is a weight of zero.
        n: number of draws.
        generator: source of randomness, one uniform number per observation.

    Raises:
        ValueError: when a weight is NaN or +inf, or all weights of an observation are zero.
    """
    broken = log_weight.isnan() | (log_weight == math.inf)
    bad = broken.any(0) | (log_weight.amax(0) == -math.inf)
    if bad.any():
        raise ValueError(
            "resampling needs weights below infinity and one above zero per observation, got none "
            f"for observations {bad.nonzero().flatten().tolist()}; look at their log_reward, or "
            "use solver.correct=null"
        )
    cumulative = torch.softmax(log_weight.double(), 0).cumsum(0).T.contiguous()
    cumulative = cumulative / cumulative[:, -1:]
    device = log_weight.device if generator is None else generator.device
    batch = log_weight.shape[1]
    u = torch.rand(batch, 1, generator=generator, device=device, dtype=torch.float64)
    position = (torch.arange(n, device=log_weight.device) + u.to(log_weight.device)) / n
    # Strictly below 1, so that rounding never picks a last candidate of weight zero.
    position = position.clamp_max(1 - 2**-53)
    return torch.searchsorted(cumulative, position, right=True).T
