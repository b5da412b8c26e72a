"""Samplers of few steps, taught by trained ones: on problems with a truth, and by run folders."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.budget import train
from benchmarks.cells import NETWORK, Effort, fit, schedule
from benchmarks.problems import Problem
from benchmarks.rows import DEFAULT, FULL
from benchmarks.training import train_quietly
from outsourced.bank import PairBank
from outsourced.distilling import inherit, sampler_name
from outsourced.objectives import PathLikelihood
from outsourced.paths import PathMixture
from outsourced.replay import ReplayBuffer
from outsourced.run import Run, read_tensors, write_tensors
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.stepdata import PairData
from outsourced.training import SamplerTraining

LESSON: dict[str, Any] = {"batch": 128, "teacher_draws": 8, "lr": 2e-3, "ema": 0.99}


@dataclass(frozen=True)
class Student:
    """How many steps, and of how many Gaussians each.

    Attributes:
        steps: kernels; 0 stands for the teacher itself.
        components: Gaussians of a kernel.
    """

    steps: int
    components: int = 1

    @classmethod
    def parse(cls, text: str) -> Student:
        """From 4, or 1x8 for a step of a mixture of 8.

        Raises:
            ValueError: neither.
        """
        found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
        if found is None:
            raise ValueError(f"--students must be like 4 or 1x8 (steps x components), got {text!r}")
        return cls(int(found[1]), int(found[2] or 1))

    @property
    def name(self) -> str:
        """As in a run folder's name."""
        return "teacher" if not self.steps else sampler_name(vars(self))


TEACHER = Student(0)


def new_sampler(problem: Problem, student: Student) -> NoiseSampler:
    """The untrained teacher of an exact problem, or an untrained student of it."""
    torch.manual_seed(0)
    options = {**NETWORK, **problem.grid, **FULL}
    if student.steps:
        options |= {"grid": FULL["steps"], **vars(student)}
    posterior = problem.posterior
    shape = posterior.task.feature_shape
    return NoiseSampler(posterior.prior.noise_shape, shape, posterior, **options)  # type: ignore[arg-type]


def teacher_of(problem: Problem, bank: PairBank, effort: Effort, path: Path) -> NoiseSampler:
    """The default sampler of an exact problem, from a file if it is there, else trained."""
    sampler = new_sampler(problem, TEACHER)
    if not path.is_file():
        row = replace(DEFAULT[1], sampler=FULL)
        module, _ = fit(problem, row, bank, schedule(problem, row, bank, effort))
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = {"train_seconds": str(module.seconds), "asked": str(effort.seconds)}
        write_tensors(path, module.average, seconds)
    weights, metadata = read_tensors(path)
    if float(metadata["asked"]) != effort.seconds:
        raise ValueError(
            f"{path} was trained for {metadata['asked']} s, this call asks for {effort.seconds}; "
            "delete it, or give its --seconds"
        )
    sampler.load_state_dict(weights)
    return sampler


def teach(
    problem: Problem, teacher: NoiseSampler, student: Student, bank: PairBank, steps: int, seed: int
) -> tuple[NoiseSampler, float]:
    """A student of an exact problem, and the seconds that it took."""
    sampler, posterior = new_sampler(problem, student), problem.posterior
    inherit(sampler, teacher)
    settings = Settings(
        max_steps=steps,
        warm_steps=steps,
        anchor_steps=0,
        observations="simulated",
        seed=seed,
        **LESSON,
    )
    mixture = PathMixture(sampler, posterior, ReplayBuffer(), {"on_policy": 1.0})
    parts = sampler, posterior, PathLikelihood(), mixture, settings
    module = SamplerTraining(*parts, teacher=teacher)
    train_quietly(module, PairData(bank, None, settings), steps)
    sampler.load_state_dict(module.average)
    return sampler, module.seconds


def student_run(teacher: Path, student: Student, steps: int, more: list[str]) -> Path:
    """The run folder of a student of a trained run, beside it; trained if it is not finished.

    Args:
        teacher: folder of a finished run.
        student: what to train.
        steps: of the training.
        more: further arguments of `train.py`.
    """
    run = Run(teacher.parent / f"{teacher.name}-{student.name}")
    if not run.finished:
        overrides = [f"distill={teacher.resolve()}", f"sampler.steps={student.steps}"]
        overrides += [f"sampler.components={student.components}", f"trainer.max_steps={steps}"]
        train(run.folder, [*overrides, "logger=none", *more])
    return run.folder
