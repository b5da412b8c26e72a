"""Cells of the side-by-side table: a prior, a task and a solver, run and judged."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.budget import trained
from benchmarks.contenders import AMORTISED, Contender, described
from benchmarks.counting import Peak, counted
from benchmarks.pictures import SHOWN, store
from benchmarks.posteriors import configuration, load
from benchmarks.tables import Record
from benchmarks.worth import Judge
from outsourced.build import load_run
from outsourced.classifiers import FashionFeatures
from outsourced.posterior import Posterior
from outsourced.run import METRICS, Run
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples, clock
from outsourced.tasks.base import Observation

SPREAD = 32  # samples behind the standard deviation that the figure shows
TIMINGS = 3  # of what takes milliseconds, after a call that warms up


@dataclass
class Setting:
    """A prior and a task, and what their solvers are given and judged by.

    Attributes:
        name: of prior and task.
        posterior: the pair, on the device of the work.
        obs: B observations.
        judge: knows the images behind them.
        sampler: the trained one, if any.
        minutes: that its training took.
        training: what tells it from another one.
    """

    name: dict[str, object]
    posterior: Posterior
    obs: Observation
    judge: Judge
    sampler: NoiseSampler | None = None
    minutes: float | None = None
    training: str = ""


def prepare(prior: str, task: str, args: argparse.Namespace) -> Setting:
    """Observations of the first held-out images, and the trained sampler if there is one.

    Raises:
        ValueError: there are too few images, or the sampler is of another prior or task.
    """
    posterior, images = load(prior, task, [f"task.sigma={args.sigma}"])
    if not 1 <= args.images < len(images) - 1:
        raise ValueError(f"--images must be >= 1 and < {len(images) - 1}, got {args.images}")
    generator = torch.Generator().manual_seed(args.seed)
    obs = posterior.task.sample(images[: args.images], generator=generator)  # type: ignore[operator]
    images = images.to(args.device)
    judge = Judge(images[: args.images], images[args.images :], FashionFeatures.from_weights())
    setting = Setting({"prior": prior, "task": task}, posterior, obs.to(args.device), judge)
    folder = run_folder(prior, task, args)
    if folder is not None:
        problem, told = load_run(str(folder)), json.loads((folder / METRICS).read_text())
        setting.posterior, setting.sampler = problem.posterior, problem.sampler.to(args.device)
        setting.minutes = float(told["train_seconds"]) / 60
        steps = Run(folder).config["trainer"]["max_steps"]
        setting.training = f"trained {steps} steps, {setting.minutes:.3g} min"
    setting.posterior.to(args.device)
    return setting


def run_folder(prior: str, task: str, args: argparse.Namespace) -> Path | None:
    """The run of a prior and a task, trained where it is missing and there is time for it.

    Raises:
        ValueError: it was trained for another prior or task.
    """
    folder = args.runs / f"{prior}-{task}"
    names = [f"prior={prior}", f"task={task}", f"task.sigma={args.sigma}"]
    if not Run(folder).finished:
        if not args.minutes:
            return None
        kind = "gpu" if args.device.type == "cuda" else "cpu"
        silent = ["logger=csv", "trainer.evaluate_every=0", f"lightning.accelerator={kind}"]
        small = ["evaluate.observations=4", "evaluate.n=8"]
        trained(folder, [*names, *silent, *small, *args.train], args.minutes, args.quick)
    config, asked = Run(folder).config, configuration(prior, task, names[2:])
    for part in ("prior", "task"):
        other = [k for k, value in config[part].items() if asked[part].get(k, value) != value]
        if other:
            raise ValueError(
                f"{folder} was trained with {part}.{other[0]} = {config[part][other[0]]}, this "
                f"call has {asked[part][other[0]]}; choose another --runs, or delete the folder"
            )
    return folder


def begin(contender: Contender, setting: Setting) -> tuple[Any, dict[str, object]] | None:
    """A solver and what identifies its row; None where it does not apply."""
    try:
        solver = contender.build(setting.posterior, setting.sampler)
    except ValueError:
        return None
    told = described(contender, solver, setting.posterior)
    if contender.amortised:
        told = f"{setting.training} {told}".strip()
    return solver, {**setting.name, "solver": contender.name, "settings": told}


def measure(
    contender: Contender,
    solver: Any,
    about: dict[str, object],
    setting: Setting,
    args: argparse.Namespace,
) -> Record:
    """The row of a cell; one with a note where the solver gives up."""
    posterior, obs = setting.posterior, setting.obs
    calls, count = posterior.prior_calls, args.n * len(obs)
    try:
        with counted(posterior.prior) as counts, Peak(args.device) as peak:
            samples = solver(obs, args.n, generator_of(args), progress=args.progress)
    except ValueError as error:
        return {**about, "note": str(error)}
    record = {
        **about,
        "seconds": samples.seconds / count,
        "f_calls": (posterior.prior_calls - calls) / count,
        **{name: value / count for name, value in counts.items()},
        "megabytes": peak.megabytes,
        **setting.judge(posterior, samples, obs),
        **converged(samples),
    }
    if contender.amortised:
        record["minutes"] = setting.minutes
    spread = None
    if contender.name == AMORTISED:
        record |= timed(solver, setting, samples, args)
        many = solver(obs[:SHOWN], SPREAD, generator_of(args))
        spread = many.x.var(0).mean(1).sqrt()
    store(args.runs, about, samples.x[0, :SHOWN], spread)
    return record


def generator_of(args: argparse.Namespace) -> torch.Generator:
    """The source of randomness of a cell."""
    return torch.Generator(args.device).manual_seed(args.seed)


def converged(samples: Samples) -> dict[str, float]:
    """The worst coordinate's R-hat, median over observations, where chains were long enough."""
    if "rhat" not in samples.diagnostics:
        return {}
    rhat = samples.diagnostics["rhat"].nan_to_num(nan=math.inf)  # of chains that never moved
    return {"rhat": float(rhat.flatten(1).amax(1).median())}


def timed(
    solver: Amortized, setting: Setting, samples: Samples, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds a sample of the sampler, and of f(z) alone, once both are warm."""
    z: Tensor = samples.z.flatten(0, 1)

    def seconds(work: Callable[[], object]) -> float:
        clocks = []
        for _ in range(1 + TIMINGS):
            start = clock(args.device)
            work()
            clocks.append(clock(args.device) - start)
        return median(clocks[1:]) / len(z)

    with torch.no_grad():
        return {
            "seconds": seconds(lambda: solver(setting.obs, args.n, generator_of(args))),
            "seconds_f": seconds(lambda: setting.posterior.decode(z)),
        }
