"""Which draws of a trained sampler to keep for a task: a search on validation images.

    python -m benchmarks.tune_draws --prior fashion_sd --runs runs/inverse --tasks inpaint superres

A draw of the posterior is as far from the truth as another draw would be; draws of a temperature
below 1, or the medoids of several, are nearer, and smoother. For each task the refined sampler of
RUNS/PRIOR-TASK draws at every temperature and with every number of medoids in `SETTINGS`. Chosen is
the setting of least Fréchet distance among those whose perceptual distance is below that of both
variants of PSLD, of 100 steps, on the same observations, and where there is none, that of least
perceptual distance.
Validation images are the last of the held-out ones, which the tables, that use the first, never
see. `benchmarks.inverse` reads the choice where this writes it by default; the same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import CONTENDERS, REFINEMENT
from benchmarks.draws import CHOSEN, MEDOID, TEMPERATURE, best
from benchmarks.driver import add_device, call, kept, parser, render, surroundings, told
from benchmarks.posteriors import configuration, load
from benchmarks.setting import check_run, opened
from benchmarks.tables import Column, Record, markdown, write_csv
from benchmarks.tune_solvers import RESERVED, validation
from benchmarks.worth import Judge
from outsourced.build import Problem, code_version
from outsourced.classifiers import FashionFeatures
from outsourced.posterior import Posterior
from outsourced.run import Run
from outsourced.solvers import Amortized
from outsourced.solvers.step_sizes import task_name

SECTION = "tune_draws"
SETTINGS: tuple[dict[str, Any], ...] = (
    *({TEMPERATURE: t, MEDOID: 1} for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2)),
    *({TEMPERATURE: t, MEDOID: 16} for t in (1.0, 0.8, 0.6)),
)
QUICK: tuple[dict[str, Any], ...] = SETTINGS[0], {TEMPERATURE: 0.5, MEDOID: 2}
RIVALS = ("psld, 100", "psld paper, 100")
DISTANCES = ("perceptual", "frechet")  # infinite where a solver gives up
KEY = ("prior", "task", "solver", TEMPERATURE, MEDOID)
COLUMNS = (
    Column("prior", "prior"),
    Column("task", "task"),
    Column("solver", "solver"),
    Column(TEMPERATURE, "temperature", "g"),
    Column(MEDOID, "medoid of", ".0f"),
    Column("draws", "samples", ".0f"),
    Column("psnr", "PSNR", ".2f"),
    Column("perceptual", "perceptual", ".3f"),
    Column("frechet", "Fréchet", ".1f"),
    Column("residual", "residual / σ", ".3f"),
    Column("chosen", "chosen"),
)


class Rows:
    """The rows of the CSV file; those it has are not measured again.

    Raises:
        ValueError: the file holds rows of other conditions.
    """

    def __init__(self, path: Path, asked: dict[str, object]) -> None:
        self.path, self.asked = path, asked
        self.rows = {self.key(row): row for row in kept(path, asked)}

    @staticmethod
    def key(row: Record) -> tuple[str, ...]:
        """What identifies a row."""
        return tuple(str(row[name]) for name in KEY)

    def get(self, about: Record, run: Callable[[], Record]) -> Record:
        """The row of a solver and its settings, measured if it is missing."""
        if self.key(about) not in self.rows:
            self.put({**about, **run(), **self.asked, "code": code_version()})
        return self.rows[self.key(about)]

    def put(self, row: Record) -> None:
        """Write a row, in place of an older one."""
        self.rows[self.key(row)] = row
        write_csv(self.path, list(self.rows.values()))


def rivals_of(posterior: Posterior, quick: bool) -> dict[str, Any]:
    """The per-instance solvers to beat that apply to a posterior, by name."""
    found = {}
    for contender in CONTENDERS:
        if contender.name in RIVALS:
            with suppress(ValueError):
                solver = (contender.quick() if quick else contender).build(posterior, None)
                found[contender.name] = solver
    return found


def problem_of(task: str, args: argparse.Namespace) -> tuple[Problem, Tensor]:
    """The trained sampler of a task on the device, and the held-out images.

    Raises:
        ValueError: it is not trained, or of another noise level.
    """
    changes = [f"task.sigma={args.sigma}"]
    folder = args.runs / f"{args.prior}-{task}"
    if not Run(folder).finished:
        raise ValueError(f"{folder} holds no finished run; train it, or choose another --runs")
    check_run(folder, configuration(args.prior, task, changes))
    problem = opened(folder)[0]
    problem.posterior.to(args.device)
    problem.sampler.to(args.device)
    return problem, load(args.prior, task, changes)[1].to(args.device)


def tune(task: str, rows: Rows, args: argparse.Namespace) -> None:
    """Measure all settings and the rivals on a task, and mark the best one."""
    problem, images = problem_of(task, args)
    posterior: Any = problem.posterior
    x, obs = validation(posterior, images, args.images, args.seed)
    judge = Judge(x, images[RESERVED : -args.images], FashionFeatures.from_weights())
    about = {"prior": args.prior, "task": task, "known_as": task_name(posterior.task)}

    def get(own: Record, solver: Any, n: int) -> Record:
        def run() -> Record:
            generator = torch.Generator(args.device).manual_seed(args.seed)
            try:
                samples = solver(obs, n, generator)
            except ValueError as error:  # it diverges
                return {"draws": 0, **dict.fromkeys(DISTANCES, math.inf), "note": str(error)}
            return {"draws": n, "chosen": "", **judge(posterior, samples, obs)}

        row = rows.get({**about, **own}, run)
        settings = " ".join(str(value) for value in own.values())
        distances = ", ".join(f"{name} {float(str(row[name])):.4g}" for name in DISTANCES)
        print(f"{task} | {settings} | {distances}", flush=True)
        return row

    none = {TEMPERATURE: "", MEDOID: ""}
    rivals = [
        get({"solver": name, **none}, solver, 1)
        for name, solver in rivals_of(posterior, args.quick).items()
    ]
    ours = []
    for settings in QUICK if args.quick else SETTINGS:
        refined = Amortized(problem.sampler, posterior, **REFINEMENT, **settings)
        ours.append(get({"solver": "refined", **settings}, refined, args.n))
    taken = best(ours, rivals)
    for row in ours:
        rows.put({**row, "chosen": "yes" if row is taken else ""})


def run(args: argparse.Namespace) -> None:
    """Search on every task, and write the table."""
    if args.n < 1:
        raise ValueError(f"--n must be >= 1, got {args.n}")
    if args.quick:
        args.images, args.n = 3, 1
    names = ("sigma", "images", "n", "seed", "quick")
    asked = {**{name: getattr(args, name) for name in names}, **surroundings(args.device)}
    rows = Rows(args.out, asked)
    for task in args.tasks:
        tune(task, rows, args)
    notes = (
        f"`solver.refine={list(REFINEMENT['refine'])}` with other temperatures and medoids, and "
        f"the solvers to be beaten: {args.images} validation images, sigma = {args.sigma}, seed "
        f"{args.seed}, {told(asked)}. Distances as in docs/inverse.md. Chosen: of those of less "
        "perceptual distance than all of the others, that of least Fréchet distance; where there "
        "is none, that of least perceptual distance."
    )
    render(args, SECTION, f"{markdown(list(rows.rows.values()), COLUMNS)}\n\n{notes}")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "three images and two settings, for tests")
    add = arguments.add_argument
    arguments.set_defaults(out=CHOSEN)
    add("--prior", default="fashion_sd", help="name in configs/prior")
    add("--tasks", nargs="+", default=["inpaint"], help="in configs/task")
    add("--runs", type=Path, default=Path("runs/inverse"), help="run folders PRIOR-TASK")
    add("--images", type=int, default=128, help="validation images")
    add("--n", type=int, default=2, help="samples of each, of the trained sampler")
    add("--sigma", type=float, default=0.05, help="of the noise, on [-1, 1]")
    add("--seed", type=int, default=0, help="of observations and samples")
    add_device(arguments)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
