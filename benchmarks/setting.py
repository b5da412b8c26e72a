"""What the cells of the side-by-side table share: a prior, a task, trained samplers, a judge."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import merit
from benchmarks.budget import trained
from benchmarks.contenders import ALL, DISTILLED, Contender
from benchmarks.merit import Cases
from benchmarks.posteriors import configuration, load
from benchmarks.worth import Judge
from outsourced.build import Problem, load_run
from outsourced.classifiers import FashionFeatures
from outsourced.posterior import Posterior
from outsourced.run import METRICS, Run
from outsourced.sampler import NoiseSampler
from outsourced.tasks.base import Observation

# What a task is called among those of configs/task/all.yaml, if not the same.
KINDS = {"inpaint_pixels": "inpaint", "superres": "superres_x4"}


@dataclass(frozen=True)
class Trained:
    """A trained sampler.

    Attributes:
        problem: the sampler and the posterior that guides it, on the device of the work.
        minutes: that all of its training took; a student's with its teacher's.
        told: what tells it from another one.
        kind: of a mixture's, the operator that the setting's task is among its own.
    """

    problem: Problem
    minutes: float
    told: str
    kind: str | None = None


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

    def seen(self, contender: Contender, obs: Observation) -> Observation:
        """Observations as a solver's own task has them."""
        if contender.run not in self.trained or self.trained[contender.run].kind is None:
            return obs
        found = self.trained[contender.run]
        mixture: Any = found.problem.posterior.task
        return mixture.adopt(found.kind, self.posterior.task, obs)


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
    add_general(setting, args.runs / f"{prior}-{ALL}")
    if simulate:
        cases = merit.simulated(
            setting.posterior, merit.Effort(args.images, chain=0, seed=args.seed)
        )
        found = cases.obs.to(args.device), cases.x.to(args.device)
        setting.simulated = Cases("simulated", *found)
    setting.posterior.to(args.device)
    for each in setting.trained.values():
        each.problem.posterior.to(args.device)
        each.problem.sampler.to(args.device)
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


def add_general(setting: Setting, folder: Path) -> None:
    """The sampler of a mixture of operators, where it is trained and the task is among them.

    Raises:
        ValueError: it was trained for another prior.
    """
    if not Run(folder).finished:
        return
    check_run(folder, configuration(str(setting.name["prior"]), ALL, []), ("prior",))
    problem, minutes, told = opened(folder)
    task: Any = problem.posterior.task
    kind = KINDS.get(str(setting.name["task"]), str(setting.name["task"]))
    if kind in task.switch.tasks:
        setting.trained[ALL] = Trained(problem, minutes, told, kind)


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


def check_run(
    folder: Path, asked: Mapping[str, Any], parts: Sequence[str] = ("prior", "task")
) -> None:
    """Refuse the run folder of another prior or task than the asked ones.

    Raises:
        ValueError: naming the first setting that differs.
    """
    config = Run(folder).config
    for part in parts:
        other = [k for k, value in config[part].items() if asked[part].get(k, value) != value]
        if other:
            raise ValueError(
                f"{folder} was trained with {part}.{other[0]} = {config[part][other[0]]}, this "
                f"call has {asked[part][other[0]]}; choose another --runs, or delete the folder"
            )
