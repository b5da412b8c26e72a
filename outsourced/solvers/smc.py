"""Sequential Monte Carlo from the prior to the posterior, through a rising share of log r."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.annealing import conditional_ess
from outsourced.moves import Preconditioner, RobbinsMonro
from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples, check_request, clock, tile
from outsourced.solvers.resampling import ess_share, log_z_std, pick, resample
from outsourced.solvers.transition import LEAPFROG, Transition, check_kernel
from outsourced.tasks.base import Observation

BISECTIONS = 40
ROWS_PER_DIMENSION = 4  # particles that a covariance of one dimension needs


@dataclass
class _Cloud:
    """m particles for each of B observations, equally weighted.

    Attributes:
        z: (m, B, *noise_shape).
        log_reward: whole log r of each, (m, B).
        ancestor: the first particle that each descends from, (m, B).
        share: share of log r that has been let in, (B,).
        log_z, error: estimate so far and its standard deviation, (B,).
        rounds: number of resamplings, (B,).
        mixed: part of the variance of log_z that no move can take away, (B,).
        step: of the moves, (B,).
        acceptance: of the last stage's moves, (B,).
    """

    z: Tensor
    log_reward: Tensor
    ancestor: Tensor
    share: Tensor
    log_z: Tensor
    error: Tensor
    rounds: Tensor
    mixed: Tensor
    step: Tensor
    acceptance: Tensor


class Smc:
    """Annealed sequential Monte Carlo: particles from the prior, resampled and moved in stages.

    exp(log_z) is unbiased for Z(y) and samples are exact in the limit of many particles (the
    adapted steps and matrices of a stage vanish from that limit: Beskos, Jasra, Kantas & Thiery,
    2016). Every observation has its own stages: the next share of log r is the largest whose
    conditional effective sample size is still `ess` (Zhou, Johansen & Aston, 2016).

    Args:
        posterior: prior and task.
        particles: for each observation.
        kernel: `pcn`, `mala` or `hmc`; by default pcn for black boxes, else mala.
        moves: of every particle after each resampling.
        ess: conditional effective sample size of a stage, as a share in (0, 1).
        precondition: propose with mean and covariance of the observation's particles; by default
            where the noise is a vector and there are 4 particles for each dimension.
        step: first step size > 0; it follows the mean acceptance of the observation's particles.
        leapfrog: largest number of leapfrog steps of a move of `hmc`.
        stages: most stages before giving up.

    Raises:
        ValueError: out-of-range arguments, a kernel that the prior does not allow, or
            precondition=true where there is no covariance.

    Source: Del Moral, Doucet & Jasra, 2006; Chopin, 2002.
    """

    def __init__(
        self,
        posterior: Posterior,
        particles: int = 512,
        kernel: str | None = None,
        moves: int = 6,
        ess: float = 0.5,
        precondition: bool | None = None,
        step: float | None = None,
        leapfrog: int = LEAPFROG,
        stages: int = 200,
    ) -> None:
        for name, value, least in (("particles", particles, 2), ("moves", moves, 1)):
            if value < least:
                raise ValueError(f"solver.{name} must be >= {least}, got {value}")
        if not 0 < ess < 1:
            raise ValueError(f"solver.ess must lie in (0, 1), got {ess}")
        if stages < 1:
            raise ValueError(f"solver.stages must be >= 1, got {stages}")
        name = kernel or ("mala" if posterior.differentiable else "pcn")
        known = check_kernel(name, posterior, step, leapfrog)
        shape = posterior.prior.noise_shape
        fits = len(shape) == 1 and particles >= ROWS_PER_DIMENSION * shape[0]
        if precondition and not fits:
            raise ValueError(
                f"solver.precondition needs vector noise and {ROWS_PER_DIMENSION} particles for "
                f"each dimension, got noise {shape} and {particles} particles"
            )
        self.posterior, self.particles, self.kernel, self.moves = posterior, particles, name, moves
        self.ess, self.leapfrog, self.stages = ess, leapfrog, stages
        self.precondition = fits if precondition is None else precondition
        self.step = known.step if step is None else step

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Anneal the particles and pick n of them at random for each of the B observations.

        Args:
            obs: B observations.
            n: samples for each, at most `particles`.
            generator: source of randomness.
            progress: show a progress bar over the shares of log r that observations have reached.

        Returns:
            samples with the diagnostics `log_z`, its estimated standard deviation `log_z_std`,
            `stages`, `acceptance` and `step` of the last stage, (B,) each.

        Raises:
            ValueError: when n is out of range, or an observation needs more than `stages` stages,
                or has no particle of a usable reward.
        """
        check_request(obs, n)
        if n > self.particles:
            raise ValueError(
                f"solver smc has {self.particles} particles per observation, got n = {n}; raise "
                "solver.particles"
            )
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        width = max(1, self.posterior.chunk // self.particles)
        with tqdm(total=float(len(obs)), disable=not progress, desc="smc") as bar:
            pieces = [
                self._draw(obs[first : first + width], n, generator, bar)
                for first in range(0, len(obs), width)
            ]
        z = torch.cat([piece.pop("z") for piece in pieces], 1)
        x = self.posterior.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        diagnostics = {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
        used = self.posterior.prior_calls - calls
        return Samples(x, z, None, used, clock(obs.y.device) - start, diagnostics=diagnostics)

    def _draw(
        self, obs: Observation, n: int, generator: torch.Generator | None, bar: tqdm
    ) -> dict[str, Tensor]:
        """n particles of observations that fit one chunk, `z`, and what is known of them."""
        cloud = self._anneal(obs, generator, bar)
        # Neighbours descend from one particle: a random choice, for each observation.
        device = cloud.z.device if generator is None else generator.device
        shape = (self.particles, len(obs))
        order = torch.rand(shape, generator=generator, device=device).argsort(0)
        return {
            "z": pick(cloud.z, order[:n].to(cloud.z.device)),
            "log_z": cloud.log_z,
            "log_z_std": cloud.error,
            "stages": cloud.rounds.double(),
            "acceptance": cloud.acceptance,
            "step": cloud.step,
        }

    def _anneal(self, obs: Observation, generator: torch.Generator | None, bar: tqdm) -> _Cloud:
        cloud = self._begin(obs, generator)
        for _ in range(self.stages):
            active = (cloud.share < 1).nonzero().flatten()
            if not len(active):
                return cloud
            before = float(cloud.share.sum())
            self._reweight(cloud, active, generator)
            self._move(cloud, obs, active, generator)
            bar.update(float(cloud.share.sum()) - before)
        slow = (cloud.share < 1).nonzero().flatten().tolist()
        if slow:
            raise ValueError(
                f"smc did not reach the posterior within solver.stages = {self.stages}, for "
                f"{len(slow)} observations; raise solver.stages or lower solver.ess"
            )
        return cloud

    def _begin(self, obs: Observation, generator: torch.Generator | None) -> _Cloud:
        m, batch = self.particles, len(obs)
        z = self.posterior.draw_noise(m * batch, generator)
        value = self.posterior.log_reward(z, tile(obs, m)).unflatten(0, (m, batch))
        ancestor = torch.arange(m, device=z.device)[:, None].repeat(1, batch)
        zero = torch.zeros(batch, device=z.device, dtype=torch.float64)
        step = torch.full((batch,), self.step, device=z.device, dtype=z.dtype)
        whole = z.unflatten(0, (m, batch))
        return _Cloud(whole, value, ancestor, zero, zero, zero, zero.long(), zero, step, zero)

    def _reweight(self, cloud: _Cloud, active: Tensor, generator: torch.Generator | None) -> None:
        """Let in more of log r, add to log Z, and resample, all for the active observations."""
        value = cloud.log_reward[:, active].double()
        share = next_share(cloud.share[active], value, self.ess)
        increment = (share - cloud.share[active]) * value
        index = resample(increment, self.particles, generator)
        ancestor, rounds = cloud.ancestor[:, active], cloud.rounds[active]
        mixed = cloud.mixed[active]
        gained = increment.logsumexp(0) - math.log(self.particles)
        error = log_z_std(increment, ancestor, rounds, mixed)
        mixed = mixed + (1 / ess_share(increment) - 1) / self.particles
        cloud.share = cloud.share.index_copy(0, active, share)
        cloud.log_z = cloud.log_z.index_add(0, active, gained)
        cloud.error = cloud.error.index_copy(0, active, error)
        cloud.rounds = cloud.rounds.index_copy(0, active, rounds + 1)
        cloud.mixed = cloud.mixed.index_copy(0, active, mixed)
        for name in ("z", "log_reward", "ancestor"):
            old = getattr(cloud, name)
            setattr(cloud, name, old.index_copy(1, active, pick(old[:, active], index)))

    def _move(
        self,
        cloud: _Cloud,
        obs: Observation,
        active: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        """Move the particles of the active observations at their present share of log r."""
        m, z = self.particles, cloud.z[:, active]
        share = cloud.share[active].to(z.dtype).repeat(m)
        matrix = _spread_of(z) if self.precondition else None
        rows = tile(obs[active], m)
        transition = Transition(self.kernel, self.posterior, rows, matrix, share, self.leapfrog)
        state = transition.begin(z.flatten(0, 1))
        kernel = transition.kernel
        adaptation = RobbinsMonro(cloud.step[active], kernel.target, kernel.largest)
        accepted = torch.zeros_like(adaptation.step)
        for _ in range(self.moves):
            state, probability = transition(state, adaptation.step.repeat(m), generator)
            mean = probability.unflatten(0, (m, -1)).mean(0)
            accepted = accepted + mean / self.moves
            adaptation.update(mean)
        shape = (m, len(active))
        value = (state.log_reward / share).unflatten(0, shape)
        cloud.z = cloud.z.index_copy(1, active, state.z.unflatten(0, shape))
        cloud.log_reward = cloud.log_reward.index_copy(1, active, value)
        cloud.step = cloud.step.index_copy(0, active, adaptation.settled)
        cloud.acceptance = cloud.acceptance.index_copy(0, active, accepted.double())


def next_share(share: Tensor, log_reward: Tensor, ess: float) -> Tensor:
    """Largest share in (share, 1] of log r whose conditional ESS is >= ess, float64 (B,).

    Args:
        share: present share of each observation, (B,).
        log_reward: log r of its m equally weighted draws, (m, B).
        ess: wanted effective sample size, as a share in (0, 1).
    """
    flat = torch.zeros_like(log_reward)

    def enough(value: Tensor) -> Tensor:
        return conditional_ess(flat, (value - share) * log_reward) >= ess

    low, high = share, torch.ones_like(share)
    done = enough(high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        ok = enough(middle)
        low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
    # Where a part of the draws has reward zero, no share is small enough: take the least.
    return torch.where(done, 1.0, torch.where(low > share, low, high))


def _spread_of(z: Tensor) -> Preconditioner:
    """Mean and covariance of the m draws of each observation (m, B, d), for all m B rows."""
    m = len(z)
    mean = z.mean(0)
    centred = (z - mean).double()
    covariance = torch.einsum("nbi,nbj->bij", centred, centred) / m
    variance, basis = torch.linalg.eigh(covariance)
    # Copies of few particles span few directions; the others keep a small spread.
    floor = 1e-6 * variance[:, -1:].clamp_min(1e-12)
    scale = torch.maximum(variance, floor).sqrt().to(z.dtype)
    return Preconditioner(basis.to(z.dtype).repeat(m, 1, 1), scale.repeat(m, 1), mean.repeat(m, 1))
