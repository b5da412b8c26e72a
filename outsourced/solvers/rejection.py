"""Exact, independent posterior draws where the reward is bounded: accept x with odds r / bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples, check_request, clock
from outsourced.solvers.importance import rewards
from outsourced.tasks.base import Observation


@dataclass
class _Tally:
    """What one observation has accepted so far."""

    z: list[Tensor] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    accepted: int = 0
    proposed: int = 0
    largest: float = -math.inf  # beta log r seen


class Rejection:
    """Prior draws x = f(z), accepted with probability exp(log r(x, y) - bound)^beta.

    Accepted z are exact, independent posterior draws. It takes 1 / (Z(y) exp(-beta bound)) prior
    calls for each, so it suits weak observations only: labels, low dimensions, large noise. All
    observations share the draws: each one's samples are as good as those of a single call, but
    those of different observations are not independent.

    Args:
        posterior: prior and task.
        bound: of log r(x, y), at beta = 1, in nats for all observations; by default what the task
            knows (`task.log_bound(obs)`: Gaussian likelihoods do).
        budget: most prior calls.
        batch: prior calls at once.

    Raises:
        ValueError: numbers below 1, or neither a bound nor a task that knows one.

    Source: von Neumann, 1951.
    """

    def __init__(
        self,
        posterior: Posterior,
        bound: float | None = None,
        budget: int = 1_000_000,
        batch: int = 4096,
    ) -> None:
        for name, value in (("budget", budget), ("batch", batch)):
            if value < 1:
                raise ValueError(f"solver.{name} must be >= 1, got {value}")
        if bound is None and not hasattr(posterior.task, "log_bound"):
            raise ValueError(
                f"{type(posterior.task).__name__} knows no bound of its log_reward; give one as "
                "solver.bound (nats, at beta = 1), or use solver=importance or smc"
            )
        if bound is not None and not math.isfinite(bound):
            raise ValueError(f"solver.bound must be finite, got {bound}")
        self.posterior, self.bound, self.budget, self.batch = posterior, bound, budget, batch

    def _bounds(self, obs: Observation) -> list[float]:
        """Bound of beta log r for each observation."""
        if self.bound is not None:
            return [self.posterior.beta * self.bound] * len(obs)
        known: Tensor = self.posterior.task.log_bound(obs)  # type: ignore[operator]
        return (self.posterior.beta * known.double()).tolist()

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Draw until each of the B observations has n samples.

        Args:
            obs: B observations.
            n: samples for each.
            generator: source of randomness.
            progress: show a progress bar over accepted draws.

        Returns:
            samples with the diagnostics `acceptance`, `log_z` (the bound plus the log of it; bias
            1 / n), its standard deviation `log_z_std`, and `ess_bulk` = n, (B,) each.

        Raises:
            ValueError: when n < 1, the budget is spent first, a reward exceeds the bound, or one
                is NaN.
        """
        check_request(obs, n)
        bounds, tallies = self._bounds(obs), [_Tally() for _ in range(len(obs))]
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        with tqdm(total=n * len(obs), disable=not progress, desc="accepted") as bar:
            self._fill(obs, n, bounds, tallies, generator, bar)
        z = torch.stack([torch.cat(tally.z)[:n] for tally in tallies], 1)
        x = torch.stack([torch.cat(tally.x)[:n] for tally in tallies], 1)
        used, seconds = self.posterior.prior_calls - calls, clock(obs.y.device) - start
        return Samples(x, z, None, used, seconds, diagnostics=_diagnose(tallies, bounds, n))

    def _fill(
        self,
        obs: Observation,
        n: int,
        bounds: list[float],
        tallies: list[_Tally],
        generator: torch.Generator | None,
        bar: tqdm,
    ) -> None:
        """Draw until every tally holds n."""
        spent = 0
        while open_ := [b for b, tally in enumerate(tallies) if tally.accepted < n]:
            count = min(self.batch, self.budget - spent)
            if count < 1:
                raise ValueError(self._complaint(open_, tallies, bounds, n))
            spent += count
            z = self.posterior.draw_noise(count, generator)
            x = self.posterior.decode(z)
            device = z.device if generator is None else generator.device
            # One uniform number a draw, shared too: a call on one observation sees the same.
            uniform = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
            threshold = uniform.to(z.device).log()
            for b in open_:
                bar.update(self._accept(tallies[b], bounds[b], threshold, z, x, obs[b], n))

    def _accept(
        self,
        tally: _Tally,
        bound: float,
        threshold: Tensor,
        z: Tensor,
        x: Tensor,
        obs: Observation,
        n: int,
    ) -> int:
        """Let one observation take what it accepts; returns how many of its n it lacked."""
        value = rewards(self.posterior, x, obs).double()
        top = float(value.max())
        # A task's own bound may round the other way than its rewards, which are float32.
        slack = 1e-5 * max(1.0, abs(bound))
        if math.isnan(top) or top > bound + slack:
            raise ValueError(
                f"a reward of {top:.6g} nats is above the bound of {bound:.6g}, so that accepted "
                "draws would not be exact; give a larger solver.bound"
            )
        accepted = threshold < value - bound
        before = tally.accepted
        tally.accepted += int(accepted.sum())
        tally.proposed += len(z)
        tally.largest = max(tally.largest, top)
        tally.z.append(z[accepted])
        tally.x.append(x[accepted])
        return min(tally.accepted, n) - before

    def _complaint(
        self, rest: list[int], tallies: list[_Tally], bounds: list[float], n: int
    ) -> str:
        worst = min(rest, key=lambda b: (tallies[b].accepted, tallies[b].largest - bounds[b]))
        tally = tallies[worst]
        short = bounds[worst] - tally.largest
        return (
            f"rejection spent solver.budget = {self.budget} prior calls with {len(rest)} of "
            f"{len(tallies)} observations short of n = {n}; observation {worst} accepted "
            f"{tally.accepted}, and its largest log-reward lies {short:.1f} "
            "nats below the bound; raise solver.budget, give a lower solver.bound if you know "
            "one, or use solver=smc"
        )


def _diagnose(tallies: list[_Tally], bounds: list[float], n: int) -> dict[str, Tensor]:
    accepted = torch.tensor([float(t.accepted) for t in tallies], dtype=torch.float64)
    proposed = torch.tensor([float(t.proposed) for t in tallies], dtype=torch.float64)
    share = accepted / proposed
    return {
        "acceptance": share,
        "log_z": torch.tensor(bounds, dtype=torch.float64) + share.log(),
        "log_z_std": ((1 - share) / accepted).sqrt(),
        "ess_bulk": torch.full_like(share, float(n)),
    }
