"""The recipe of the paper: one sampler for one observation, which it does not see, from scratch.

Log-variance on on-policy, reference and replayed paths, Adam at 3e-5 with a cosine schedule,
gradients clipped at 0.1, 64 paths a step, no average of the weights, no gradient of f.
Source: Venkatraman et al., 2025, arXiv 2502.06999, and its authors' code.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import train_quietly
from outsourced.bank import PairBank
from outsourced.evaluation import summary
from outsourced.objectives import LogVariance
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.solvers.amortized import Amortized
from outsourced.stepdata import PairData
from outsourced.tasks.base import Observation, Task
from outsourced.training import SamplerTraining

PATHS = 64
WEIGHTS = {"on_policy": 0.6, "reference": 0.25, "replay": 0.15}
SAMPLER: dict[str, Any] = {"steps": 25, "schedule": "cosine", "informed": "none"}
PROBE = 20  # steps, of which the later half is timed
POINTS = 8  # of a curve, by default


class OneObservation(Task):
    """A task whose observation is always the same one."""

    def __init__(self, task: Task, obs: Observation) -> None:
        super().__init__()
        self.task, self.obs = task, obs
        self.feature_shape = task.feature_shape
        self.differentiable = task.differentiable

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Observation:
        """Return the observation, once for each x."""
        return self.obs[torch.zeros(len(x), dtype=torch.long)]

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """Return log r(x, y)."""
        return self.task.log_reward(x, obs)

    def features(self, obs: Observation) -> Tensor:
        """Return nothing of y."""
        shape: Any = self.feature_shape
        return torch.zeros(len(obs), *shape)


def settings_of(steps: int, evaluate_every: int = 0, seed: int = 0) -> Settings:
    """The paper's, for so many steps."""
    sizes: dict[str, Any] = {"max_steps": steps, "batch": 1, "groups": 1}
    sizes |= {"anchor_steps": 0, "warm_steps": 0, "observations": "simulated"}
    sizes |= {"balance_lr": 3e-5, "final_lr": 0.0, "ramp": 1, "clip": 0.1, "ema": 0.0}
    return Settings(**sizes, evaluate_every=evaluate_every, seed=seed)


def fresh(posterior: Posterior, seed: int) -> tuple[NoiseSampler, PathMixture]:
    """An untrained sampler, and its paths."""
    torch.manual_seed(seed)
    task: Any = posterior.task
    shapes = posterior.prior.noise_shape, task.feature_shape
    sampler = NoiseSampler(*shapes, posterior, **SAMPLER)
    return sampler, PathMixture(sampler, posterior, ReplayBuffer(slots=PATHS), WEIGHTS, PATHS)


def steps_within(posterior: Posterior, bank: PairBank, minutes: float) -> int:
    """Steps that fit into a time."""
    sampler, mixture = fresh(posterior, 0)
    clocks: list[float] = []
    settings = settings_of(PROBE, PROBE // 2)

    def evaluate(_: int) -> dict[str, float]:
        clocks.append(time.perf_counter())
        return {}

    module = SamplerTraining(sampler, posterior, LogVariance(), mixture, settings, evaluate)
    train_quietly(module, PairData(bank, None, settings), PROBE)
    return max(POINTS, round(60 * minutes / (clocks[1] - clocks[0]) * (PROBE // 2)))


def train_published(
    posterior: Posterior,
    obs: Observation,
    bank: PairBank,
    steps: int,
    n: int,
    seed: int,
    points: int = POINTS,
) -> list[dict[str, float]]:
    """Train on one observation; its figures along the way, with the calls that they cost.

    Args:
        posterior: prior and task.
        obs: one observation.
        bank: pairs of the prior, of which nothing is used.
        steps: of the optimiser.
        n: samples behind each ELBO.
        seed: of the training.
        points: of the curve, evenly spaced.
    """
    one = Posterior(posterior.prior, OneObservation(posterior.task, obs), chunk=posterior.chunk)
    sampler, mixture = fresh(one, seed)
    settings = settings_of(steps, max(1, steps // points), seed)
    curve: list[dict[str, float]] = []

    def evaluate(step: int) -> dict[str, float]:
        calls, generator = one.prior_calls, torch.Generator().manual_seed(seed)
        samples = Amortized(sampler, one)(obs, n, generator)
        figures = {k: float(v.mean()) for k, v in summary(posterior, samples, obs).items()}
        one.prior_calls = calls  # evaluation is not training
        curve.append({"step": step, "prior_calls": calls, **figures})
        return {}

    module = SamplerTraining(sampler, one, LogVariance(), mixture, settings, evaluate)
    train_quietly(module, PairData(bank, None, settings), steps)
    return [{**point, "seconds": module.seconds * point["step"] / steps} for point in curve]
