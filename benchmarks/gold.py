"""Long MALA chains from two kinds of starts: posterior draws to hold against those of a sampler."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.run import read_tensors, write_tensors
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.diagnostics import bulk_ess, split_rhat
from outsourced.solvers.mala import Mala
from outsourced.solvers.resampling import pick, resample
from outsourced.tasks.base import Observation

CHAINS, THIN = 4, 10  # chains from each kind of start, and moves between states that are kept
PROPOSALS = 256  # of the sampler, of which the first kind of starts are resampled


@dataclass
class Gold:
    """States of chains on B observations.

    Attributes:
        own: of chains that start at weighted draws of the sampler, (m, B, d).
        other: of chains that start at Laplace approximations about the modes that prior draws
            climb to: they know nothing of the sampler, (m, B, d).
        rhat: of all chains together, worst coordinate, (B,).
        ess: effective number of all states, worst coordinate, (B,).
        costs: prior calls and seconds of all, (2,).
    """

    own: Tensor
    other: Tensor
    rhat: Tensor
    ess: Tensor
    costs: Tensor

    def draws(self, n: int) -> Tensor:
        """n states of each observation, evenly over time, in turn of either kind of start."""
        half = -(-n // 2)
        both = torch.stack([spaced(self.own, half), spaced(self.other, half)], 1)
        return both.flatten(0, 1)[:n]


def spaced(states: Tensor, n: int) -> Tensor:
    """n of the states (m, ...), evenly up to the last.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(states):
        raise ValueError(f"--n needs {n} states of chains, got {len(states)}; raise --moves")
    return states[torch.linspace(0, len(states) - 1, n).round().long()]


@torch.no_grad()
def run_gold(
    sampler: NoiseSampler,
    posterior: Posterior,
    obs: Observation,
    moves: int,
    burn_in: int,
    generator: torch.Generator,
) -> Gold:
    """Run the chains.

    Args:
        sampler: gives the starts of half of them.
        posterior: the target; its prior is differentiable, its noise a vector.
        obs: B observations.
        moves: of each chain after burn-in.
        burn_in: moves before.
        generator: source of randomness, on the device of obs.
    """
    proposals = Amortized(sampler, posterior)(obs, PROPOSALS, generator)
    assert proposals.proposal_log_weight is not None
    assert proposals.z is not None
    start = pick(proposals.z, resample(proposals.proposal_log_weight, CHAINS, generator))
    kept, parts, costs = moves // THIN, [], torch.zeros(2)
    for where in (start, "laplace"):
        solver = Mala(posterior, moves, burn_in, CHAINS, THIN, where, True)
        samples = solver(obs, CHAINS * kept, generator, progress=True)
        assert samples.z is not None
        parts.append(samples.z.unflatten(0, (kept, CHAINS)))
        costs += torch.tensor([samples.prior_calls, samples.seconds])
    both = torch.cat(parts, 1)
    rhat, ess = split_rhat(both).flatten(1), bulk_ess(both).flatten(1)
    own, other = (part.flatten(0, 1) for part in parts)
    return Gold(own, other, rhat.amax(1), ess.amin(1), costs)


def stored_gold(
    path: Path,
    sampler: NoiseSampler,
    posterior: Posterior,
    obs: Observation,
    moves: int,
    burn_in: int,
    generator: torch.Generator,
) -> Gold:
    """`run_gold`, from a file if it holds chains of the same observations and length.

    Args:
        path: a safetensors file; written when it is missing or holds others.
        sampler, posterior, obs, moves, burn_in, generator: see `run_gold`.
    """
    made_for = {"moves": json.dumps([moves, burn_in]), "prior": posterior.prior.fingerprint()}
    given = {f"observation.{name}": value for name, value in obs.state_dict().items()}
    if path.is_file():
        tensors, metadata = read_tensors(path)
        same = all(k in tensors and torch.equal(tensors[k], v.cpu()) for k, v in given.items())
        if metadata == made_for and same:
            names = [field.name for field in fields(Gold)]
            return Gold(**{name: tensors[name].to(obs.y.device) for name in names})
    gold = run_gold(sampler, posterior, obs, moves, burn_in, generator)
    write_tensors(path, {**vars(gold), **given}, made_for)
    return gold
