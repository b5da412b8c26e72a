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

from benchmarks.contenders import CONTENDERS
from benchmarks.driver import call, parser, render, surroundings
from benchmarks.pictures import cases, draw
from benchmarks.side_by_side import Table, add_cells, fill, named
from benchmarks.solver_cells import prepare
from benchmarks.solver_report import report
from benchmarks.tables import read_csv
from outsourced.figures import Case

SECTION = "solvers"
PRIORS, TASKS = ("fashion_sd", "fashion_vae"), ("inpaint", "superres", "gaussian_deblur")
QUICK = {"images": 3, "n": 2}


def run(args: argparse.Namespace) -> None:
    """Fill the cells that the arguments ask for; write table and figures of them and the others."""
    contenders = named(CONTENDERS, args.solvers)
    if args.quick:
        vars(args).update(QUICK)
        contenders = [contender.quick() for contender in contenders]
    names = ("sigma", "images", "n", "seed", "quick")
    asked = {name: getattr(args, name) for name in names}
    table = Table(args.out, {**asked, **surroundings(args.device)})
    pictures: dict[str, list[Case]] = {}
    for prior in args.priors:
        for task in args.tasks:
            setting = prepare(prior, task, args)
            fill(table, contenders, setting, args)
            about = setting.name, setting.posterior.task, setting.obs, setting.judge.x
            pictures.setdefault(prior, []).extend(cases(args.runs, *about))
    render(args, SECTION, report(read_csv(args.out)))
    draw(pictures, args.out.parent / "figures" / f"{SECTION}.png")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "few images, steps and moves, for tests")
    add = arguments.add_argument
    add("--priors", nargs="+", default=PRIORS, help="names in configs/prior")
    add("--tasks", nargs="+", default=TASKS, help="names in configs/task")
    add_cells(arguments, "runs/solvers", images=64, n=2)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
