"""Long MALA chains on a few observations: the posterior to compare an amortised sampler with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.merit import Cases, Effort
from outsourced.evaluation import residuals
from outsourced.metrics import evidence
from outsourced.posterior import Posterior
from outsourced.run import read_tensors, write_tensors
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import tile
from outsourced.solvers.diagnostics import bulk_ess, split_rhat
from outsourced.solvers.mala import Mala
from outsourced.solvers.resampling import resample
from outsourced.tasks.base import Observation

CHAINS = 2  # from each of two starts, so that R-hat compares four
THIN = 10
WIDTH = 32  # observations at once
KEPT = 64  # states of an observation that are stored
CONVERGED = 1.05  # largest R-hat of a coordinate


@dataclass
class Chains:
    """Posterior draws of B observations.

    Attributes:
        z: states, evenly over chains and time, (m, B, *noise_shape).
        residual: mean over all states, units of sigma, (B,).
        rhat: worst coordinate, (B,).
        ess: effective number of states, worst coordinate, (B,).
        acceptance: mean over chains, (B,).
    """

    z: Tensor
    residual: Tensor
    rhat: Tensor
    ess: Tensor
    acceptance: Tensor

    @property
    def converged(self) -> Tensor:
        """Where chains from different starts agree, (B,)."""
        return self.rhat <= CONVERGED

    def report(self) -> str:
        """One line about convergence."""
        worst, median = float(self.rhat.max()), float(self.rhat.median())
        return (
            f"R-hat median {median:.3f}, worst {worst:.3f}; {int(self.converged.sum())} of "
            f"{len(self.rhat)} observations <= {CONVERGED}; effective states median "
            f"{float(self.ess.median()):.0f}; acceptance {float(self.acceptance.mean()):.2f}"
        )


@torch.no_grad()
def run_chains(
    sampler: NoiseSampler, posterior: Posterior, obs: Observation, effort: Effort
) -> Chains:
    """Chains from the sampler's weighted draws, and as many from Laplace approximations.

    The second ones know nothing of the sampler: where it misses a mode that they find, R-hat says
    so.

    Args:
        sampler: gives the first starts.
        posterior: the target; its prior is differentiable, its noise a vector.
        obs: B observations.
        effort: number of moves, and the seed.
    """
    generator = torch.Generator().manual_seed(effort.seed + 1)
    pieces = [
        _piece(sampler, posterior, obs[first : first + WIDTH], effort, generator)
        for first in tqdm(range(0, len(obs), WIDTH), desc="chains", leave=False)
    ]
    joined = [torch.cat([getattr(p, k) for p in pieces], int(k == "z")) for k in vars(pieces[0])]
    return Chains(*joined)


def _piece(
    sampler: NoiseSampler,
    posterior: Posterior,
    obs: Observation,
    effort: Effort,
    generator: torch.Generator,
) -> Chains:
    proposals = Amortized(sampler, posterior)(obs, effort.n, generator)
    assert proposals.proposal_log_weight is not None
    assert proposals.z is not None
    index = resample(proposals.proposal_log_weight, CHAINS, generator)
    start = proposals.z[index, torch.arange(len(obs))]
    kept = effort.moves // THIN
    draws, residual, acceptance = [], [], []
    for where in (start, "laplace"):
        solver = Mala(posterior, effort.moves, effort.burn_in, CHAINS, THIN, where, True)
        samples = solver(obs, CHAINS * kept, generator, progress=True)
        assert samples.z is not None
        draws.append(samples.z.unflatten(0, (kept, CHAINS)))
        residual.append(residuals(posterior, samples, obs).double().mean(0))
        acceptance.append(samples.diagnostics["acceptance"].mean(1))
    both = torch.cat(draws, 1)
    states = both.flatten(0, 1)
    some = torch.linspace(0, len(states) - 1, min(KEPT, len(states))).round().long()
    return Chains(
        states[some],
        torch.stack(residual).mean(0),
        split_rhat(both).flatten(1).amax(1),
        bulk_ess(both).flatten(1).amin(1),
        torch.stack(acceptance).mean(0),
    )


def stored_chains(
    path: Path, sampler: NoiseSampler, posterior: Posterior, cases: Cases, effort: Effort
) -> Chains:
    """Chains on the first `effort.chain` observations, from a file if it holds the same ones.

    Args:
        path: a safetensors file; written when missing or made for another y or other moves.
        sampler, posterior, cases, effort: see `run_chains`.
    """
    obs = cases.obs[: effort.chain]
    settings = json.dumps([effort.moves, effort.burn_in, effort.seed])
    made_for = {"settings": settings, "prior": posterior.prior.fingerprint()}
    given = {f"observation.{name}": value for name, value in obs.state_dict().items()}
    if path.is_file():
        tensors, metadata = read_tensors(path)
        same = given.keys() <= tensors.keys()
        if metadata == made_for and same and all(_equal(tensors[k], v) for k, v in given.items()):
            return Chains(**{k: v for k, v in tensors.items() if k not in given})
    chains = run_chains(sampler, posterior, obs, effort)
    write_tensors(path, {**vars(chains), **given}, made_for)
    return chains


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.cpu())


@torch.no_grad()
def against_chains(
    sampler: NoiseSampler,
    posterior: Posterior,
    cases: Cases,
    chains: Chains,
    paths: int,
    seed: int,
) -> dict[str, Tensor]:
    """Residual and EUBO by the chains, (B,) each; NaN where they have not converged, or not run.

    Args:
        sampler, posterior: the pair under test.
        cases: B observations, the first of which the chains ran on.
        chains: as returned by `run_chains`.
        paths: backward paths for each observation, each from another state.
        seed: of the paths.
    """
    generator, count = torch.Generator().manual_seed(seed), len(chains.rhat)
    some = torch.linspace(0, len(chains.z) - 1, min(paths, len(chains.z))).round().long()
    figures = {"residual_chain": chains.residual, "eubo_chain": torch.zeros(count).double()}
    for first in range(0, count, WIDTH):
        piece = slice(first, first + WIDTH)
        z, obs = chains.z[some][:, piece], cases.obs[:count][piece]
        reward = posterior.log_reward(z.flatten(0, 1), tile(obs, len(z))).unflatten(0, z.shape[:2])
        path = sampler.backward_path(z, generator)
        bound = evidence.eubo(reward - sampler.log_ratio(path, obs))
        figures["eubo_chain"][piece] = bound
    missing = torch.full((len(cases.obs) - count,), math.nan).double()
    return {
        name: torch.cat([value.where(chains.converged, math.nan), missing])
        for name, value in figures.items()
    }
