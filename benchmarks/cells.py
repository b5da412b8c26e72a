"""One cell of the exactness table: train a sampler for a fixed time, compare it with the truth."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.floor import diagonal_floor
from benchmarks.problems import Problem
from benchmarks.training import train_quietly
from outsourced.bank import PairBank
from outsourced.metrics import c2st, elbo, ess, eubo, log_z
from outsourced.objectives import Objective
from outsourced.paths import PathMixture
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.stepdata import PairData
from outsourced.tasks.base import Observation
from outsourced.training import SamplerTraining

NETWORK = {"informed": "none", "width": 128, "depth": 2, "embedding": 64}
START_STEPS, PROBE_STEPS = 5, 20
PRESENT = 0.05  # modes of a smaller posterior weight are too rare to be judged by 4096 draws


@dataclass(frozen=True)
class Row:
    """How to train: an objective and everything that goes with it.

    Attributes:
        name: as it appears in the table.
        objective: builds the objective of the balance phase.
        sampler: number of steps, covariance, flow.
        paths: arguments of `PathMixture`.
        warm: share of the time given to the `PathLikelihood` warm start.
        settings: further arguments of `Settings`.
        share: of the effort, both of the training time and of the sampler paths, that it is given;
            of paths at least as many as the two-sample tests draw.
    """

    name: str
    objective: Callable[[], Objective]
    sampler: dict[str, Any]
    paths: dict[str, Any]
    warm: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0

    def part(self, effort: Effort) -> Effort:
        """The share of the effort that this row is given."""
        return replace(
            effort,
            seconds=self.share * effort.seconds,
            paths=max(effort.draws, round(self.share * effort.paths)),
        )


@dataclass(frozen=True)
class Effort:
    """How long to train and how finely to measure.

    Attributes:
        seconds: of CPU time of training, which other work on the machine does not shorten.
        observations, paths: y and sampler paths for each, behind the evidence figures.
        upper_paths: posterior paths for each y, behind the EUBO.
        tests, draws: y and draws of each side for each, behind C2ST.
        bank: pairs (z, f(z)).
        seed: of everything.
    """

    seconds: float
    observations: int = 64
    paths: int = 4096
    upper_paths: int = 128
    tests: int = 2
    draws: int = 1000
    bank: int = 131_072
    seed: int = 0


def quiet() -> None:
    """Keep Lightning's advice about devices and workers out of the progress report."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def fit(
    problem: Problem, row: Row, bank: PairBank, settings: Settings
) -> tuple[SamplerTraining, float]:
    """Train a fresh sampler as `train.py` does.

    Returns:
        the module, with the averaged weights in `.average`, and the CPU seconds that it took.
    """
    started = time.process_time()
    torch.manual_seed(settings.seed)
    posterior = problem.posterior
    sampler = NoiseSampler(
        posterior.prior.noise_shape,
        posterior.task.feature_shape,  # type: ignore[arg-type]
        posterior,
        **{**NETWORK, **problem.grid, **row.sampler},
    )
    mixture = PathMixture(sampler, posterior, ReplayBuffer(), **row.paths)
    module = SamplerTraining(sampler, posterior, row.objective(), mixture, settings)
    train_quietly(module, PairData(bank, None, settings), settings.max_steps)
    return module, time.process_time() - started


def settings_of(row: Row, seed: int, steps: int, warm_steps: int) -> Settings:
    """Training settings of a row for a given number of steps."""
    return Settings(
        max_steps=steps,
        warm_steps=warm_steps,
        observations="simulated",
        seed=seed,
        **row.settings,
    )


def schedule(problem: Problem, row: Row, bank: PairBank, effort: Effort) -> Settings:
    """Numbers of steps for about `effort.seconds` of CPU time, by a probe of each phase.

    The probe is the difference between a run of few steps and one of 20 more: the first steps pay
    for what is set up once.
    """

    def count(seconds: float, warm: bool) -> int:
        if seconds <= 0:
            return 0
        clocks = []
        for steps in (START_STEPS, START_STEPS + PROBE_STEPS):
            probe = settings_of(row, effort.seed, steps, steps if warm else 0)
            clocks.append(fit(problem, row, bank, probe)[1])
        pace = max(clocks[1] - clocks[0], 1e-3) / PROBE_STEPS
        return max(1, round(seconds / pace))

    warm_steps = count(row.warm * effort.seconds, True)
    steps = count((1 - row.warm) * effort.seconds, False)
    return settings_of(row, effort.seed, warm_steps + steps, warm_steps)


@torch.no_grad()
def draw(
    sampler: NoiseSampler, problem: Problem, obs: Observation, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x of n sampler draws for each y, and their log-weights: (n, B, *data_shape) and (n, B)."""
    xs, weights = [], []
    for i in range(len(obs)):
        path = sampler.forward_path(obs[i], n, generator)
        assert path.log_ratio is not None
        x = problem.posterior.decode(path.end[:, 0])
        reward = problem.posterior.task.log_reward(x, obs[i].repeat(n))
        xs.append(x)
        weights.append(reward - path.log_ratio[:, 0])
    return torch.stack(xs, 1), torch.stack(weights, 1)


@torch.no_grad()
def upper_weights(
    sampler: NoiseSampler, problem: Problem, obs: Observation, z: Tensor, generator: torch.Generator
) -> Tensor:
    """log-weights of backward paths from posterior draws z (n, B, d), (n, B)."""
    path = sampler.backward_path(z, generator)
    reward = problem.posterior.log_reward(
        z.flatten(0, 1), obs[torch.arange(len(obs)).repeat(len(z))]
    )
    return reward.reshape(z.shape[:2]) - sampler.log_ratio(path, obs)


def two_sample(x: Tensor, exact: Tensor, seed: int) -> float:
    """C2ST of x against exact draws, both (n, B, d), for each y apart; the mean over y."""
    scores = [c2st(x[:, i], exact[:, i], seed, folds=2) for i in range(x.shape[1])]
    return sum(scores) / len(scores)


def mode_error(label: Tensor, weights: Tensor) -> float:
    """Relative error of the weight of a mode: root mean square over y, for the worst mode.

    Counts of n exact draws would scatter with relative variance (1 - w) / (n w), which is taken
    off. Weights below `PRESENT` are left out; a mode that is never visited scores 1.

    Args:
        label: mode of each draw, (n, B).
        weights: exact weight of each mode for each y, (B, modes).
    """
    n, modes = len(label), weights.shape[1]
    found = torch.stack([(label == m).double().mean(0) for m in range(modes)], -1)
    present = weights >= PRESENT
    safe = weights.clamp_min(PRESENT)
    excess = (found / safe - 1).square() - (1 - safe) / (n * safe)
    counts = present.sum(0)
    mean = torch.where(present, excess, 0.0).sum(0) / counts.clamp_min(1)
    return math.sqrt(max(0.0, float(mean[counts > 0].max())))


def observe(problem: Problem, effort: Effort) -> Observation:
    """The observations that all rows meet: they depend on the seed alone."""
    generator = torch.Generator().manual_seed(effort.seed + 1)
    return problem.posterior.simulate(effort.observations, generator)[2]


def sample_figures(
    problem: Problem, obs: Observation, x: Tensor, effort: Effort
) -> dict[str, float]:
    """Figures of draws x (n, B, d) of the posteriors of obs: C2ST and the weights of modes."""
    generator = torch.Generator().manual_seed(effort.seed + 3)
    some, n = obs[torch.arange(effort.tests)], effort.draws
    z = problem.truth.sample(some, n, generator).flatten(0, 1)
    exact = problem.posterior.decode(z).unflatten(0, (n, effort.tests))
    figures = {"c2st": two_sample(x[:n, : effort.tests], exact, effort.seed)}
    if problem.modes is not None and problem.mode_weights is not None:
        label = problem.modes(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        figures["mode_error"] = mode_error(label, problem.mode_weights(obs))
    return figures


def evaluate(problem: Problem, sampler: NoiseSampler, effort: Effort) -> dict[str, float]:
    """Figures of a trained sampler against the truth, each a mean over observations."""
    generator = torch.Generator().manual_seed(effort.seed + 4)
    obs = observe(problem, effort)
    exact = problem.truth.log_z(obs)
    z = problem.truth.sample(obs, effort.upper_paths, generator)
    upper = upper_weights(sampler, problem, obs, z, generator)
    x, weight = draw(sampler, problem, obs, effort.paths, generator)
    figures = {
        "elbo_gap": float((exact - elbo(weight)).mean()),
        "eubo_gap": float((eubo(upper) - exact).mean()),
        "log_z_bias": float((log_z(weight) - exact).mean()),
        "ess": float(ess(weight).mean()),
    }
    return figures | sample_figures(problem, obs, x, effort)


def baseline(problem: Problem, effort: Effort) -> dict[str, float]:
    """What exact draws score in the place of the sampler's: how far chance alone goes."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(effort.seed + 2)
    obs = observe(problem, effort)
    z = problem.truth.sample(obs, effort.paths, generator)
    x = problem.posterior.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    figures = sample_figures(problem, obs, x, effort)
    return figures | {"eval_seconds": time.perf_counter() - started}


def run_cell(problem: Problem, row: Row, bank: PairBank, effort: Effort) -> dict[str, float]:
    """Train, then evaluate: all figures of one cell of the table."""
    effort = row.part(effort)
    settings = schedule(problem, row, bank, effort)
    module, cpu_seconds = fit(problem, row, bank, settings)
    sampler = module.sampler
    sampler.load_state_dict(module.average)
    started = time.perf_counter()
    figures = evaluate(problem, sampler, effort)
    figures["train_steps"], figures["warm_steps"] = settings.max_steps, settings.warm_steps
    figures["train_seconds"], figures["paths"] = module.seconds, effort.paths
    figures["steps"], figures["train_cpu_seconds"] = sampler.steps, cpu_seconds
    figures["eval_seconds"] = time.perf_counter() - started
    if problem.matrix is not None and not sampler.control.full:
        reverse, forward = diagonal_floor(problem.matrix, problem.sigma, sampler.reference)
        figures |= {"floor": reverse, "eubo_floor": forward}
    return figures
