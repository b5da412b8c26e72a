"""What each part of the recipe is worth: one part changed, at equal time and at equal calls.

    python -m benchmarks.ablation --minutes 5

Each variant is a `train.py` run of the same time on the same prior and task; its evaluations along
the way give the evidence bound within half of the prior calls that the median variant made.
The reference is the recipe of the paper, one sampler for each of the observations that the others
are evaluated on. Runs lie in --runs and are used again; finished rows are in the CSV file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.budget import trained
from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.posteriors import load
from benchmarks.published import steps_within, train_published
from benchmarks.tables import Column, Record, markdown, read_csv, write_csv
from benchmarks.variants import Variant, variants_of
from outsourced.bank import PairBank
from outsourced.build import code_version
from outsourced.evaluation import Evaluator
from outsourced.loggers import csv_folders
from outsourced.run import Run, write_text
from outsourced.sampler import NoiseSampler

SECTION = "ablation"
PUBLISHED = "published recipe, per y"
QUICK, QUICK_MINUTES = {"observations": 2, "n": 8}, 0.02
BANK = 256  # pairs, of which the reference uses none
COLUMNS = (
    Column("prior", "prior"),
    Column("task", "task"),
    Column("variant", "variant"),
    Column("steps", "steps", ".0f"),
    Column("minutes", "min", ".1f"),
    Column("prior_calls", "prior calls", ".3g"),
    Column("elbo", "ELBO", ".1f"),
    Column("at_calls", "at equal calls", ".1f"),
    Column("gap", "gap", ".1f"),
    Column("ess", "ESS", ".3f"),
    Column("residual", "residual", ".3f"),
    Column("to_reference", "calls to the reference's ELBO", ".3g"),
)


def curve_of(rows: Sequence[Record]) -> list[dict[str, float]]:
    """Evaluations of a run on simulated observations, and what each had cost, from its log.

    Args:
        rows: of the log; an evaluation stands beside or behind the costs of its step.
    """
    prefix, found = "eval/simulated/", []
    costs: dict[str, float] = {}
    for row in rows:
        for name in ("seconds", "prior_calls"):
            if row.get(name):
                costs[name] = float(str(row[name]))
        if row.get(prefix + "elbo"):
            figures = {
                name.removeprefix(prefix): float(str(value))
                for name, value in row.items()
                if name.startswith(prefix) and value not in ("", None)
            }
            figures.pop("seconds", None)
            found.append({"step": float(str(row["step"])), **figures, **costs})
    return found


def logged(folder: Path) -> list[Record]:
    """The rows of a run's log: what a resumed run did again is told once, by its last log."""
    rows: list[Record] = []
    for place in takewhile(Path.exists, csv_folders(folder)):
        more = read_csv(place / "metrics.csv")
        first = min((int(row["step"]) for row in more), default=0)
        before = [row for row in rows if not more or int(str(row["step"])) < first]
        rows = [*before, *more]
    return rows


def folder_of(args: argparse.Namespace) -> Path:
    """Where what was trained for so long, and evaluated so, lies."""
    folder: Path = args.runs / f"{args.minutes:g}min-{args.observations}x{args.n}"
    return folder


def run_variant(
    variant: Variant, prior: str, task: str, args: argparse.Namespace
) -> list[dict[str, float]]:
    """Train a variant and read its curve, whose calls include the bank's pairs."""
    folder = folder_of(args) / f"{prior}-{task}-{variant.folder}"
    silent = ["logger=csv", "trainer.log_every=1"]
    small = [f"evaluate.observations={args.observations}", f"evaluate.n={args.n}"]
    names = [f"prior={prior}", f"task={task}", *variant.changes, *silent, *small]
    trained(folder, names, args.minutes, args.quick, args.points)
    bank = Run(folder).config["data"]["bank_size"]
    curve = curve_of(logged(folder))
    return [{**point, "prior_calls": point["prior_calls"] + bank} for point in curve]


def run_published(prior: str, task: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """The reference's curve, from its file where it has been trained before."""
    path = folder_of(args) / f"{prior}-{task}-published-{args.reference_steps or 'as-long'}.json"
    if not path.is_file():
        curve = train_reference(prior, task, args)
        write_text(path, json.dumps(curve, indent=1) + "\n")
    found: list[dict[str, float]] = json.loads(path.read_text())
    return found


def train_reference(prior: str, task: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """Curves of one sampler for each observation, averaged point by point."""
    posterior, _ = load(prior, task, [])
    measured: Any = posterior.task
    shapes = posterior.prior.noise_shape, measured.feature_shape
    # The observations of every run's own evaluations.
    known = Evaluator(NoiseSampler(*shapes, posterior), posterior, None, args.observations, args.n)
    bank = PairBank.build(posterior, str(args.runs / "banks"), BANK, 0, BANK)
    steps = args.reference_steps or steps_within(posterior, bank, args.minutes)
    curves = [
        train_published(posterior, known.simulated[i], bank, steps, args.n, i, args.points)
        for i in range(args.observations)
    ]
    return [
        {name: sum(point[name] for point in points) / len(points) for name in points[0]}
        for points in zip(*curves, strict=True)
    ]


def summarise(curves: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The last figures of each curve, its ELBO within half of the calls that the median variant but
    the reference made in all, and the calls that it took to the reference's last ELBO.

    Args:
        curves: by variant; points in order.
    """
    totals = [c[-1]["prior_calls"] for name, c in curves.items() if name != PUBLISHED]
    shared = float(np.median(totals)) / 2
    goal = curves[PUBLISHED][-1]["elbo"] if PUBLISHED in curves else float("inf")
    found = {}
    for name, curve in curves.items():
        figures = {k: v for k, v in curve[-1].items() if k != "step"}
        within = [point["elbo"] for point in curve if point["prior_calls"] <= shared]
        if within:
            figures["at_calls"] = within[-1]
        there = [point["prior_calls"] for point in curve if point["elbo"] >= goal]
        if there:
            figures["to_reference"] = there[0]
        found[name] = {**figures, "steps": curve[-1]["step"], "shared_calls": shared}
    return found


def cell(prior: str, task: str, wanted: Sequence[str], args: argparse.Namespace) -> list[Record]:
    """Train all variants that are wanted of a prior and task: their rows."""
    curves = {}
    for variant in (v for v in variants_of(prior) if v.name in wanted):
        curves[variant.name] = run_variant(variant, prior, task, args)
    if PUBLISHED in wanted:
        curves[PUBLISHED] = run_published(prior, task, args)
    about = {"prior": prior, "task": task, "code": code_version()}
    return [
        {**about, "variant": name, **row, "minutes": row["seconds"] / 60}
        for name, row in summarise(curves).items()
    ]


def report(records: Sequence[Record]) -> str:
    """The markdown table, and how it was made."""
    first = records[0]
    steps = int(str(first["reference_steps"]))
    length = f", in {steps} steps" if steps else ""
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        f"`train.py` for {float(str(first['budget_minutes'])):g} minutes each, evaluated on "
        f"{first['observations']} simulated observation(s) with {first['n']} samples; nats. At "
        "equal calls: the bound at the last evaluation within half of the prior calls that the "
        "median variant of the prior and task made in all. Calls to the reference's ELBO: at the "
        "first evaluation that reached what the published recipe ends with, which spends its calls "
        f"(and its time) on each observation anew{length}. Calls include the pairs of the bank, "
        "which all tasks of a prior share; the published recipe has none. Of samplers that "
        "gradients guide, `reverse_kl` and `adjoint_sampling`, whose own gradient passes through "
        f"the path, have no guidance and a diagonal variance. {told(first)}."
    )


def chosen(prior: str, names: Sequence[str] | None) -> list[str]:
    """Names of the variants to train of a prior, all by default.

    Raises:
        ValueError: one that the prior does not have.
    """
    known = [PUBLISHED, *(variant.name for variant in variants_of(prior))]
    for name in names or ():
        if name not in known:
            raise ValueError(f"--variants of {prior} are {', '.join(known)}, got {name!r}")
    return list(names or known)


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    steps, points = args.reference_steps, args.points
    if steps and steps < points:
        raise ValueError(f"--reference-steps must be 0 or >= --points = {points}, got {steps}")
    if args.quick:
        vars(args).update(QUICK)
        args.minutes = QUICK_MINUTES
    conditions = {"budget_minutes": args.minutes, "reference_steps": args.reference_steps}
    conditions |= {"observations": args.observations, "n": args.n}
    asked = {**conditions, **surroundings()}
    records = kept(args.out, asked)
    plan = {prior: chosen(prior, args.variants) for prior in args.priors}
    for prior, wanted in plan.items():
        for task in args.tasks:
            known = [r for r in records if (r["prior"], r["task"]) == (prior, task)]
            if {r["variant"] for r in known} >= set(wanted):
                continue
            # Figures at equal calls depend on all variants of a prior and task.
            records = [r for r in records if r not in known]
            records += [{**row, **asked} for row in cell(prior, task, wanted, args)]
            write_csv(args.out, records)
            print(markdown(records, COLUMNS), flush=True)
    render(args, SECTION, report(records))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, 1, "two observations, two seconds each, for tests")
    add = arguments.add_argument
    add("--priors", nargs="+", default=["fashion_vae", "fashion_hvae"], help="in configs/prior")
    add("--tasks", nargs="+", default=["inpaint", "superres"], help="in configs/task")
    add("--variants", nargs="+", help="by default all, and the published recipe")
    add("--minutes", type=float, default=5.0, help="of training each")
    add("--reference-steps", type=int, default=0, help="of the published recipe; 0: the same time")
    add("--observations", type=int, default=8, help="simulated ones to evaluate on")
    add("--n", type=int, default=256, help="samples of each")
    add("--points", type=int, default=8, help="evaluations along the way")
    add("--runs", type=Path, default=Path("runs/ablation"), help="run folders")
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
