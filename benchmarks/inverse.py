"""One trained sampler for every observation of a task, beside solvers that start anew each time.

    python -m benchmarks.inverse --runs runs/inverse --minutes 10 --device cuda

A cell is a prior, a task and a solver; it is a row of the CSV file, and the same command goes on
where it was stopped, as `benchmarks.solvers` does, whose rows these are. Amortised samplers are
those of the run folders RUNS/PRIOR-TASK, which `train.py` makes in --minutes of training where they
are missing; their students are in RUNS/PRIOR-TASK-distilled, as `python train.py
distill=RUNS/PRIOR-TASK run=RUNS/PRIOR-TASK-distilled sampler.steps=4` makes them (of transports:
sampler=transport sampler.steps=1 sampler.refine=2 trainer=transport_student), and are left out
where they are missing. Calibration is measured on as many observations of the prior's own images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from benchmarks.contenders import AMORTISED, INVERSE, TUNED, Contender
from benchmarks.driver import call, parser, render, surroundings
from benchmarks.inverse_report import headline, report
from benchmarks.pictures import cases, draw
from benchmarks.setting import prepare
from benchmarks.side_by_side import Table, add_cells, fill, named
from benchmarks.tables import read_csv
from outsourced.figures import Case

SECTION = "inverse"
PRIORS = ("fashion_sd", "fashion_vae", "fashion_gan", "fashion_hvae", "fashion_cnf")
TASKS = (
    *("inpaint", "inpaint_pixels", "superres", "gaussian_deblur", "motion_deblur", "denoise"),
    *("destripe", "compressed_sensing"),
)
# Columns of the figure, and samples in each.
SHOWN = (("psld, 1000", 1), (TUNED, 1), (AMORTISED, 3))
INSTEAD = {"psld, 1000": "psld paper, 1000"}  # where the official variant has no transpose
QUICK = {"images": 3, "n": 2, "others": 2}
QUICK_CELLS = {"priors": ("fashion_sd", "fashion_vae"), "tasks": ("inpaint", "superres")}
FULL_CELLS = {"priors": PRIORS, "tasks": TASKS}


def chosen(args: argparse.Namespace) -> list[Contender]:
    """The solvers that are asked for, each with its number of samples.

    Chains have as many states as the amortised sampler has samples, for the same price; solvers
    that pay for each sample have fewer. Every time is that of as many samples at once.

    Raises:
        ValueError: an unknown name, or numbers below 1.
    """
    for name in ("n", "others"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be >= 1, got {getattr(args, name)}")
    return [_sized(contender, args) for contender in named(INVERSE, args.solvers)]


def _sized(contender: Contender, args: argparse.Namespace) -> Contender:
    contender = contender.quick() if args.quick else contender
    judged = contender.amortised or args.calibrate == "all"
    cheap = contender.amortised or (contender.shared and not contender.limited)
    return replace(
        contender,
        samples=contender.samples or (args.n if cheap else args.others),
        timing=min(contender.samples or args.others, args.others),
        calibrated=judged and not contender.estimate,
    )


def run(args: argparse.Namespace) -> None:
    """Fill the cells that the arguments ask for; write table and figures of them and the others."""
    if args.quick:
        vars(args).update(QUICK)
    contenders = chosen(args)
    for name, default in (QUICK_CELLS if args.quick else FULL_CELLS).items():
        setattr(args, name, getattr(args, name) or default)
    names = ("sigma", "images", "n", "others", "calibrate", "seed", "quick")
    asked = {name: getattr(args, name) for name in names}
    table = Table(args.out, {**asked, **surroundings(args.device)})
    pictures: dict[str, list[Case]] = {}
    for prior in args.priors:
        for task in args.tasks:
            setting = prepare(prior, task, args, simulate=True)
            fill(table, contenders, setting, args)
            measured: Any = setting.posterior.task
            about = setting.name, measured, setting.obs, setting.judge.x
            pictures.setdefault(prior, []).extend(cases(args.runs, *about, SHOWN, 1, INSTEAD))
    records = read_csv(args.out)
    render(args, SECTION, report(records), headline(records))
    draw(pictures, args.out.parent / "figures" / f"{args.out.stem}.png")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "few images, steps, moves and cells, for tests")
    add = arguments.add_argument
    add("--priors", nargs="+", help=f"names in configs/prior; by default {' '.join(PRIORS)}")
    add("--tasks", nargs="+", help=f"names in configs/task; by default {' '.join(TASKS)}")
    add("--others", type=int, default=2, help="samples of each, of solvers that pay for each")
    add("--calibrate", choices=("all", AMORTISED), default="all", help="solvers")
    add_cells(arguments, "runs/inverse", images=128, n=16)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
