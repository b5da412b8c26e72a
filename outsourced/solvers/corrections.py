"""What makes the draws of an amortised sampler exact, or more exact; each says what it promises.

All of them work on every observation alone. `Draws.log_weight` is the log-weight of all proposals,
so that effective sample size and evidence can be reported after any correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from outsourced.guidance import Context
from outsourced.moves import Preconditioner, RobbinsMonro
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.solvers.base import tile
from outsourced.solvers.chains import Trace, check_start, gaussian, run_chains
from outsourced.solvers.resampling import ess_share, log_z_std, pick, resample
from outsourced.solvers.transition import Transition
from outsourced.tasks.base import Observation
from outsourced.transport import NoiseTransport

KEPT = 32  # most states of a chain that R-hat reads


@dataclass
class Draws:
    """Draws for each of B observations.

    Attributes:
        z, x: noise and data, (n, B, ...); z is (0, B, ...) where x was decoded from latents.
        log_weight: of all proposals, nats (m, B); (0, B) where the sampler's have none.
        diagnostics: as in `Samples`.
    """

    z: Tensor
    x: Tensor
    log_weight: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Target:
    """A sampler, the posterior it was trained for, and B observations that are encoded once.

    Attributes:
        sampler, posterior: the pair.
        obs: B observations.
        context: of the sampler.
        generator: source of randomness.
        options: of every draw, such as a transport's temperature.
    """

    sampler: NoiseSampler | NoiseTransport
    posterior: Posterior
    obs: Observation
    context: Context
    generator: torch.Generator | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def propose(self, m: int) -> Draws:
        """m draws of the sampler with log_weight = beta log r - log_ratio of their paths."""
        how = {"context": self.context, **self.options}
        path = self.sampler.forward_path(self.obs, m, self.generator, **how)
        x, log_reward = self.evaluate(path.end)
        if path.log_ratio is None:
            return Draws(path.end, x, log_reward[:0])
        return Draws(path.end, x, log_reward - path.log_ratio)

    def propose_data(self, m: int) -> Draws:
        """m draws of a transport as data alone, decoded from their latents."""
        assert isinstance(self.sampler, NoiseTransport)
        _, h = self.sampler.draw(self.obs, m, self.generator, self.context, **self.options)
        x = self.posterior.decode_latents(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return Draws(h[:0], x, x.new_empty(0, len(self.obs)))

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f(z) of z (m, B, ...), and beta log r of it, (m, B): one pass through the prior."""
        x = self.posterior.decode(z.flatten(0, 1))
        value = self.posterior.task.log_reward(x, tile(self.obs, len(z)))
        shape = z.shape[:2]
        return x.unflatten(0, shape), self.posterior.beta * value.unflatten(0, shape)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal noise."""
        shape, device = like.shape, like.device
        return torch.randn(shape, generator=self.generator, device=device, dtype=like.dtype)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise on [0, 1)."""
        shape, device = like.shape, like.device
        return torch.rand(shape, generator=self.generator, device=device, dtype=like.dtype)


def importance(target: Target, n: int, candidates: int) -> Draws:
    """Resample n of the candidates by their weights.

    Consistent: the bias vanishes as 1 / candidates, times the variance of the weights. Samples
    repeat where weights are few. Source: Rubin, 1988.
    """
    proposals = target.propose(candidates)
    index = resample(proposals.log_weight, n, target.generator)
    return Draws(pick(proposals.z, index), pick(proposals.x, index), proposals.log_weight)


def smc(target: Target, n: int, candidates: int, least: float = 0.5) -> Draws:
    """Resample candidates along their paths, led by a twist, wherever few of them carry the weight.

    Consistent as `importance`, which it equals where nothing is resampled before the end, and exp
    of `log_z` is unbiased for Z. State k is weighed by psi_k(z_k), an estimate of E[r(z_K)^beta |
    z_k]: the learned flow where the sampler has one, else the closed form of its Gauss-Newton
    approximation. Source: Guarniero, Johansen & Lee, 2017; Chopin & Papaspiliopoulos, 2020, ch. 10.

    Args:
        target: what to sample.
        n: samples of each observation.
        candidates: particles of each observation.
        least: share of effective particles below which an observation is resampled.
    """
    sampler, rows = target.sampler, target.context.repeat(candidates)
    assert isinstance(sampler, NoiseSampler)  # `check_weighted`
    shape = (candidates, len(target.obs))
    z = target.noise(rows.embedding.new_empty(shape[0] * shape[1], *sampler.noise_shape))
    level = _twist(sampler, rows, z, 0).unflatten(0, shape)
    weight, total = level, level.new_zeros(shape[1], dtype=torch.float64)
    ancestor = torch.arange(shape[0], device=z.device)[:, None].repeat(1, shape[1])
    rounds, mixed = torch.zeros_like(total).long(), torch.zeros_like(total)
    for step in range(sampler.steps):
        k = torch.tensor([step], device=z.device)
        choice = sampler.choices(len(z), target.generator, z)
        z, ratio, _ = sampler.transition(z, k, rows, 0.0, target.noise(z), choice)
        if step == sampler.steps - 1:
            x, following = target.evaluate(z.unflatten(0, shape))
        else:
            following = _twist(sampler, rows, z, step + 1).unflatten(0, shape)
        weight, level = weight + following - level - ratio.unflatten(0, shape), following
        share = ess_share(weight)
        low = share < least
        if step == sampler.steps - 1:
            break
        identity = torch.arange(shape[0], device=z.device)[:, None]
        index = torch.where(low, resample(weight, shape[0], target.generator), identity)
        z = pick(z.unflatten(0, shape), index).flatten(0, 1)
        level, ancestor = pick(level, index), pick(ancestor, index)
        total = torch.where(low, total + _log_mean(weight), total)
        mixed = torch.where(low, mixed + (1 / share - 1) / shape[0], mixed)
        weight, rounds = torch.where(low, 0.0, weight), rounds + low
    diagnostics = {
        "log_z": total + _log_mean(weight),
        "log_z_std": log_z_std(weight, ancestor, rounds, mixed),
        "resampled": rounds.double(),
    }
    index = resample(weight, n, target.generator)
    z = z.unflatten(0, shape)
    return Draws(pick(z, index), pick(x, index), (weight + total).to(weight.dtype), diagnostics)


def check_weighted(sampler: NoiseSampler | NoiseTransport, what: str) -> None:
    """Refuse what needs the density of a sampler's paths where there is none.

    Raises:
        ValueError: naming what needs it.
    """
    if not sampler.weighted:
        raise ValueError(
            f"{what} needs samples with weights, but those of sampler=transport have none; use "
            "solver.correct=pcn, mala or hmc with as many candidates as samples"
        )


def check_twist(sampler: NoiseSampler) -> None:
    """Refuse a sampler that has neither a flow nor a Gauss-Newton approximation.

    Raises:
        ValueError: it has not.
    """
    if sampler.flow is None and sampler.control.informed != "gauss_newton":
        raise ValueError(
            "solver.correct=smc needs a sampler that knows how good a state on the way is: train "
            "with sampler.flow=true or sampler.informed=gauss_newton, or use solver.correct="
            "importance"
        )


def _twist(sampler: NoiseSampler, rows: Context, z: Tensor, k: int) -> Tensor:
    """log psi_k of states z (N, *noise_shape) of N rows, up to a constant of the row: (N,)."""
    if sampler.flow is not None:
        return sampler.log_flow_at(z[None], torch.tensor([k], device=z.device), rows)[0]
    assert rows.laplace is not None  # `check_twist`
    rho, spread = float(sampler.reference.rho[k]), float(sampler.reference.spread[k])
    return rows.laplace.log_smoothed(z, rho, spread)


def imh(target: Target, n: int, moves: int) -> Draws:
    """n independence Metropolis chains over whole paths, each of `moves` proposals.

    Exact: each chain leaves the posterior over paths invariant, so that its last state is a
    posterior draw in the limit of many moves, and its total variation distance falls at least as
    (1 - Z / sup w)^moves. Nothing but proposals of the sampler is ever drawn: modes that it misses
    stay missed. Source: Mengersen & Tweedie, 1996, theorem 2.1.

    Args:
        target: what to sample.
        n: chains, and samples, of each observation.
        moves: proposals of each chain after its first state.
    """
    current = target.propose(n)
    batch, weights = len(target.obs), [current.log_weight]
    _check_weights(current.log_weight)
    kept, accepted = [], torch.zeros_like(current.log_weight)
    thin = max(1, (moves // 2) // KEPT)
    width = max(1, target.posterior.chunk // (n * batch))
    for first in range(0, moves, width):
        count = min(width, moves - first)
        fresh = target.propose(n * count)
        _check_weights(fresh.log_weight)
        weights.append(fresh.log_weight)
        for i in range(count):
            one = slice(i * n, (i + 1) * n)
            gain = fresh.log_weight[one] - current.log_weight
            # -inf - (-inf) is NaN: from nothing to nothing, where no comparison holds.
            accept = target.uniform(gain).log() < gain
            current = _choose(accept, fresh, one, current)
            accepted = accepted + gain.clamp_max(0).exp().nan_to_num(0.0) / moves
            if first + i >= moves // 2 and (moves - 1 - first - i) % thin == 0:
                kept.append(current.z)
    rates = accepted.flatten()
    summary = Trace(torch.stack(kept).flatten(1, 2), rates, rates).summary(batch)
    del summary["step"]
    return Draws(current.z, current.x, torch.cat(weights), summary)


def _choose(accept: Tensor, fresh: Draws, one: slice, current: Draws) -> Draws:
    def pair(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accept.reshape(*accept.shape, *[1] * (old.ndim - 2)), new[one], old)

    z, x = pair(fresh.z, current.z), pair(fresh.x, current.x)
    return Draws(z, x, pair(fresh.log_weight, current.log_weight))


def finish(
    target: Target, n: int, candidates: int, kernel: str, moves: int, step: float | None
) -> Draws:
    """End with a few moves of `pcn`, `mala` or `hmc`, each chain on its own.

    Every move with a frozen step leaves the posterior invariant, so that it never takes a draw's
    law further from the posterior in total variation; draws are exact in the limit of many moves
    within the modes that they started in. Steps adapt in the first half of the moves, unless given.
    Where the sampler has a Gauss-Newton approximation, moves are proposed with its covariance.

    Args:
        target: what to sample.
        n: chains, and samples, of each observation.
        candidates: proposals of each observation; where there are more than n, chains start at n
            that are resampled by weight.
        kernel: `pcn`, `mala` or `hmc`.
        moves: of each chain.
        step: step size > 0; None adapts it.
    """
    proposals = target.propose(candidates)
    start = proposals.z
    if candidates > n:
        start = pick(start, resample(proposals.log_weight, n, target.generator))
    rows, batch = tile(target.obs, n), len(target.obs)
    matrix = _matrix(target.context, n)
    transition = Transition(kernel, target.posterior, rows, matrix)
    state = transition.begin(start.flatten(0, 1))
    check_start(state, batch, f"solver.correct={kernel}")
    known = transition.kernel
    first = torch.full_like(state.log_reward, known.step if step is None else step)
    warm_up = moves // 2 if step is None else 0
    thin = max(1, (moves - warm_up) // KEPT)
    adaptation = RobbinsMonro(first, known.target, known.largest)
    trace = run_chains(
        transition, state, adaptation, warm_up, moves - warm_up, thin, target.generator
    )
    z = trace.z[-1].unflatten(0, (n, batch))
    return Draws(z, target.evaluate(z)[0], proposals.log_weight, trace.summary(batch))


def _matrix(context: Context, n: int) -> Preconditioner | None:
    laplace = context.repeat(n).laplace
    return None if laplace is None else gaussian(laplace)


def _log_mean(weight: Tensor) -> Tensor:
    return weight.double().logsumexp(0) - math.log(len(weight))


def _check_weights(weight: Tensor) -> None:
    bad = (weight.isnan() | (weight == math.inf)).any(0)
    if bad.any():
        raise ValueError(
            "solver.correct=imh needs weights below infinity, got others for observations "
            f"{bad.nonzero().flatten().tolist()}; look at their log_reward"
        )
