"""Cells of the side-by-side table: a prior, a task and a solver, run and judged."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import merit
from benchmarks.budget import trained
from benchmarks.calibrating import against_draws
from benchmarks.contenders import DISTILLED, Contender, described
from benchmarks.counting import Peak, counted
from benchmarks.limits import lengthened
from benchmarks.merit import Cases
from benchmarks.pictures import SHOWN, store
from benchmarks.posteriors import configuration, load
from benchmarks.tables import Record
from benchmarks.worth import Judge
from outsourced.build import Problem, load_run
from outsourced.classifiers import FashionFeatures
from outsourced.evaluation import residuals
from outsourced.posterior import Posterior
from outsourced.run import METRICS, Run
from outsourced.sampler import NoiseSampler
from outsourced.solvers.base import Samples, Solver, clock
from outsourced.tasks.base import Observation

SPREAD = 32  # samples behind the standard deviation that the figure shows
TIMINGS = 3  # of what takes milliseconds, after a call that warms up


@dataclass(frozen=True)
class Trained:
    """A trained sampler.

    Attributes:
        problem: the sampler and the posterior that guides it, on the device of the work.
        minutes: that all of its training took; a student's with its teacher's.
        told: what tells it from another one.
    """

    problem: Problem
    minutes: float
    told: str


@dataclass
class Setting:
    """A prior and a task, and what their solvers are given and judged by.

    Attributes:
        name: of prior and task.
        posterior: the pair, on the device of the work.
        obs: B observations.
        judge: knows the images behind them.
        trained: samplers, by what comes after PRIOR-TASK in the name of their run folder.
        simulated: as many observations of the prior's own images, if asked for.
        seconds: that the amortised sampler took for all of its samples, once it is known.
    """

    name: dict[str, object]
    posterior: Posterior
    obs: Observation
    judge: Judge
    trained: dict[str, Trained] = field(default_factory=dict)
    simulated: Cases | None = None
    seconds: float | None = None

    def problem(self, contender: Contender) -> tuple[Posterior, NoiseSampler | None]:
        """The posterior that a solver works on, whose calls count, and its sampler, if any."""
        if contender.amortised and contender.run in self.trained:
            found = self.trained[contender.run].problem
            return found.posterior, found.sampler
        return self.posterior, None


def prepare(prior: str, task: str, args: argparse.Namespace, simulate: bool = False) -> Setting:
    """Observations of the first held-out images, and the trained samplers that there are.

    Args:
        prior, task: names of their configurations.
        args: of the command.
        simulate: also draw observations whose posterior draws are known.

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
        add_trained(setting, folder)
    if simulate:
        cases = merit.simulated(
            setting.posterior, merit.Effort(args.images, chain=0, seed=args.seed)
        )
        found = cases.obs.to(args.device), cases.x.to(args.device)
        setting.simulated = Cases("simulated", *found)
    setting.posterior.to(args.device)
    for found in setting.trained.values():
        found.problem.posterior.to(args.device)
        found.problem.sampler.to(args.device)
    return setting


def add_trained(setting: Setting, folder: Path) -> None:
    """The sampler of a run folder, and its student in the folder named after it, if there is one.

    Raises:
        ValueError: the student is of another prior or task.
    """
    problem, minutes, told = opened(folder)
    setting.posterior = problem.posterior
    setting.trained[""] = Trained(problem, minutes, told)
    place = folder.with_name(f"{folder.name}-{DISTILLED}")
    if Run(place).finished:
        check_run(place, Run(folder).config)
        student, more, told = opened(place)
        setting.trained[DISTILLED] = Trained(student, minutes + more, told)


def opened(folder: Path) -> tuple[Problem, float, str]:
    """What a run has trained, in how many minutes, and what tells it from another."""
    minutes = float(json.loads((folder / METRICS).read_text())["train_seconds"]) / 60
    config = Run(folder).config
    steps = f"{config['trainer']['max_steps']} steps"
    kernels = f", K = {config['sampler']['steps']}" if config.get("distill") else ""
    return load_run(str(folder)), minutes, f"trained {steps}, {minutes:.3g} min{kernels}"


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
    check_run(folder, configuration(prior, task, names[2:]))
    return folder


def check_run(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse the run folder of another prior or task than the asked ones.

    Raises:
        ValueError: naming the first setting that differs.
    """
    config = Run(folder).config
    for part in ("prior", "task"):
        other = [k for k, value in config[part].items() if asked[part].get(k, value) != value]
        if other:
            raise ValueError(
                f"{folder} was trained with {part}.{other[0]} = {config[part][other[0]]}, this "
                f"call has {asked[part][other[0]]}; choose another --runs, or delete the folder"
            )


def begin(contender: Contender, setting: Setting) -> tuple[Any, dict[str, object]] | None:
    """A solver and what identifies its row; None where it does not apply."""
    trained = setting.trained.get(contender.run)
    if contender.limited and setting.seconds is None:
        return None
    try:
        solver = contender.build(*setting.problem(contender))
    except ValueError:
        return None
    told = described(contender, solver, setting.posterior)
    if contender.limited:
        told = "1 chain"
    if trained and (contender.amortised or contender.limited):
        told = f"{trained.told} {told}".strip()
    return solver, {**setting.name, "solver": contender.name, "settings": told}


def measure(
    contender: Contender,
    solver: Any,
    about: dict[str, object],
    setting: Setting,
    args: argparse.Namespace,
) -> Record:
    """The row of a cell; one with a note where the solver gives up."""
    posterior, obs = setting.problem(contender)[0], setting.obs
    n = contender.samples or args.n
    try:
        if contender.limited:
            assert setting.seconds is not None
            solver = lengthened(solver, obs, n, setting.seconds, generator_of(args))
        calls, count = posterior.prior_calls, n * len(obs)
        with counted(posterior.prior) as counts, Peak(args.device) as peak:
            samples = solver(obs, n, generator_of(args), progress=args.progress)
        calls = posterior.prior_calls - calls
    except ValueError as error:
        return {**about, "note": str(error)}
    record = {
        **about,
        "draws": n,
        "seconds": samples.seconds / count,
        "seconds_one": samples.seconds / (len(obs) if contender.shared else count),
        "f_calls": calls / count,
        **{name: value / count for name, value in counts.items()},
        "megabytes": peak.megabytes,
        **setting.judge(posterior, samples, obs),
        **converged(samples),
    }
    if contender.calibrated:
        record |= calibrated(solver, posterior, n, setting, args)
    if contender.limited:
        record["moves"] = solver.burn_in + solver.steps
    if contender.amortised:
        record["minutes"] = setting.trained[contender.run].minutes
    if contender.plain:
        record |= timed(solver, setting, contender.timing or n, args)
    draws = samples.x[:1, :SHOWN]
    if contender.plain and not contender.estimate:
        draws = solver(obs[:SHOWN], SPREAD, generator_of(args)).x
    store(args.runs, about, obs, draws)
    return record


def calibrated(
    solver: Any, posterior: Posterior, n: int, setting: Setting, args: argparse.Namespace
) -> Record:
    """What samples of simulated observations say about the truth behind them, and how they fit.

    Where the solver gives up on them, a note instead.

    Raises:
        ValueError: there are no simulated observations.
    """
    cases = setting.simulated
    if cases is None:
        raise ValueError("calibration needs simulated observations; prepare(simulate=True)")
    try:
        samples = solver(cases.obs, n, generator_of(args), progress=args.progress)
    except ValueError as error:
        return {"note": f"on simulated images: {error}"}
    residual = residuals(posterior, samples, cases.obs).double().mean()
    spread = against_draws(samples.x, cases.x, torch.Generator().manual_seed(args.seed))
    return {**spread, "residual_simulated": float(residual)}


def generator_of(args: argparse.Namespace) -> torch.Generator:
    """The source of randomness of a cell."""
    return torch.Generator(args.device).manual_seed(args.seed)


def converged(samples: Samples) -> dict[str, float]:
    """The worst coordinate's R-hat, median over observations, where chains were long enough."""
    if "rhat" not in samples.diagnostics:
        return {}
    rhat = samples.diagnostics["rhat"].nan_to_num(nan=math.inf)  # of chains that never moved
    return {"rhat": float(rhat.flatten(1).amax(1).median())}


def timed(solver: Solver, setting: Setting, n: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds a sample of a solver, and of f(z) alone, n of each observation at once, both warm."""
    posterior, count = setting.posterior, n * len(setting.obs)
    z = posterior.draw_noise(count, torch.Generator().manual_seed(args.seed))

    def seconds(work: Callable[[], object]) -> float:
        clocks = []
        for _ in range(1 + TIMINGS):
            start = clock(args.device)
            work()
            clocks.append(clock(args.device) - start)
        return median(clocks[1:]) / count

    with torch.no_grad():
        own = seconds(lambda: solver(setting.obs, n, generator_of(args)))
        return {
            "seconds": own,
            "seconds_one": own,
            "seconds_f": seconds(lambda: posterior.decode(z)),
        }
