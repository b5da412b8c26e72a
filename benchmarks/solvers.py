"""All solvers side by side: the same prior, observations and figures, in one run.

    python -m benchmarks.solvers --minutes 10 --device cuda

A cell is a prior, a task and a solver. It is a row of the CSV file; the same command goes on where
it was stopped, and runs again what has other settings by now. Amortised samplers are those of the
run folders RUNS/PRIOR-TASK; where one is missing, `train.py` makes it in --minutes of training.
Solvers that do not apply to a prior are left out. Step sizes of diffusion samplers are those that
`benchmarks.tune_solvers --install` has written, or else published.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.driver import call, parser, render, surroundings
from benchmarks.pictures import cases, draw
from benchmarks.setting import prepare
from benchmarks.side_by_side import Table, add_cells, fill, named
from benchmarks.solver_report import report
from benchmarks.tables import read_csv
from outsourced.figures import Case

SECTION = "solvers"
PRIORS, TASKS = ("fashion_sd", "fashion_vae"), ("inpaint", "superres", "gaussian_deblur")
QUICK = {"images": 3, "n": 2, "n_slow": 1}


def chosen(args: argparse.Namespace) -> list[Contender]:
    """The solvers that are asked for, each with its number of samples.

    Raises:
        ValueError: an unknown name, or fewer than one sample.
    """
    for name in ("n", "n_slow"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(args, name)}")
    sizes = {True: args.n_slow, False: args.n}
    sized = [replace(c, samples=sizes[c.slow]) for c in named(CONTENDERS, args.solvers)]
    return [contender.quick() for contender in sized] if args.quick else sized


def run(args: argparse.Namespace) -> None:
    """Fill the cells that the arguments ask for; write table and figures of them and the others."""
    if args.quick:
        vars(args).update(QUICK)
    contenders = chosen(args)
    names = ("sigma", "images", "n", "n_slow", "seed", "quick")
    asked = {name: getattr(args, name) for name in names}
    table = Table(args.out, {**asked, **surroundings(args.device)})
    pictures: dict[str, list[Case]] = {}
    for prior in args.priors:
        for task in args.tasks:
            setting = prepare(prior, task, args)
            fill(table, contenders, setting, args)
            measured: Any = setting.posterior.task
            about = setting.name, measured, setting.obs, setting.judge.x
            pictures.setdefault(prior, []).extend(cases(args.runs, *about))
    render(args, SECTION, report(read_csv(args.out)))
    draw(pictures, args.out.parent / "figures" / f"{SECTION}.png")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "few images, steps and moves, for tests")
    add = arguments.add_argument
    add("--priors", nargs="+", default=PRIORS, help="names in configs/prior")
    add("--tasks", nargs="+", default=TASKS, help="names in configs/task")
    add(
        "--n-slow",
        type=int,
        default=1,
        help="samples of each, of solvers of 1000 steps, DAPS and ReSample",
    )
    add_cells(arguments, "runs/solvers", images=64, n=2)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
