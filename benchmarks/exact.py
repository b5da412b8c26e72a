"""The exactness table: objectives against problems whose posteriors are known.

    python -m benchmarks.exact --seconds 120 --rows default,objectives --out docs/exact.csv

Each finished cell is appended to the CSV file; the same command continues an interrupted run. The
table goes to the markdown file of the same name, and into README.md where that has the markers
`<!-- exact:start -->` and `<!-- exact:end -->`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.cells import Effort, Row, baseline, quiet, run_cell
from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.rows import GROUPS
from benchmarks.tables import Column, Record, markdown, write_csv
from outsourced.bank import PairBank
from outsourced.build import code_version

SECTION = "exact"
BASELINE = "exact draws"
QUICK = {"observations": 4, "paths": 64, "upper_paths": 8, "tests": 1, "draws": 40, "bank": 2048}
COLUMNS = (
    Column("problem", "problem"),
    Column("row", "objective"),
    Column("covariance", "covariance"),
    Column("steps", "K", ".0f"),
    Column("elbo_gap", "ELBO gap", ".3f"),
    Column("floor", "floor", ".3f"),
    Column("eubo_gap", "EUBO gap", ".3f"),
    Column("eubo_floor", "floor", ".3f"),
    Column("log_z_bias", "log Z bias", "+.4f"),
    Column("ess", "ESS", ".2f"),
    Column("c2st", "C2ST", ".3f"),
    Column("mode_error", "mode error", ".3f"),
    Column("train_steps", "steps", ".0f"),
    Column("train_cpu_seconds", "CPU s", ".0f"),
    Column("train_seconds", "wall s", ".0f"),
)


def conditions(effort: Effort) -> dict[str, object]:
    """What a figure depends on besides its cell; all cells of one file must share it."""
    return {
        "budget_seconds": effort.seconds,
        "seed": effort.seed,
        "observations": effort.observations,
        **surroundings(),
    }


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it how it was made."""
    names = list(PROBLEMS)
    ordered = sorted(records, key=lambda record: names.index(str(record["problem"])))
    first = records[0]
    return (
        f"{markdown(ordered, COLUMNS)}\n\n"
        f"{told(first)}, seed {first['seed']}, {first['observations']} observations."
    )


def report(record: Record, done: int, total: int) -> None:
    """One line of progress."""
    names = ("elbo_gap", "floor", "eubo_gap", "log_z_bias", "ess", "c2st", "mode_error")
    shown = {name: record[name] for name in names if record.get(name) is not None}
    figures = " ".join(f"{name}={float(str(value)):.3f}" for name, value in shown.items())
    took = float(str(record.get("train_seconds", 0))) + float(str(record["eval_seconds"]))
    cell = f"{record['problem']}: {record['row']}"
    print(f"[{done}/{total}] {cell}: {figures} ({took:.0f} s)", flush=True)


def run_row(problem: Problem, row: Row | None, bank: PairBank, effort: Effort) -> dict[str, object]:
    """The record of one cell; without a row, of exact draws."""
    record: dict[str, object] = {"problem": problem.name}
    if row is None:
        record |= {"row": BASELINE, **baseline(problem, effort)}
    else:
        record |= {"row": row.name, "covariance": row.sampler["covariance"]}
        record |= run_cell(problem, row, bank, effort)
    return record | {**conditions(effort), "code": code_version()}


def cells(path: Path, rows: list[Row | None], problems: list[str], effort: Effort) -> list[Record]:
    """Run every cell that the file does not hold yet, and append each as it ends."""
    records = kept(path, conditions(effort))
    total, done = len(rows) * len(problems), 0
    for name in problems:
        known = {r["row"] for r in records if r["problem"] == name}
        missing = [row for row in rows if (row.name if row else BASELINE) not in known]
        done += len(rows) - len(missing)
        if not missing:
            continue
        problem = PROBLEMS[name]()
        with tempfile.TemporaryDirectory() as folder:
            bank = PairBank.build(
                problem.posterior, folder, effort.bank, effort.seed, chunk=16_384, progress=False
            )
            for row in missing:
                records.append(run_row(problem, row, bank, effort))
                write_csv(path, records)
                done += 1
                report(records[-1], done, total)
    return records


def chosen(text: str, known: dict, option: str) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        ValueError: one of them is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"--{option} must be among {', '.join(known)}, got {name}")
    return names


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    groups = chosen(args.rows, GROUPS, "rows")
    problems = chosen(args.problems, PROBLEMS, "problems")
    effort = Effort(args.seconds, seed=args.seed)
    if args.quick:
        effort = replace(effort, **QUICK)
    quiet()
    rows = [row for group in groups for row in GROUPS[group]]
    records = cells(args.out, [None, *rows], problems, effort)
    told_rows = [{k: str(v) for k, v in r.items()} for r in records]
    short = {BASELINE, *(row.name for row in GROUPS["default"])}
    brief = table([row for row in told_rows if row["row"] in short])
    render(args, SECTION, table(told_rows), brief)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, threads=1, quick="tiny evaluation, for tests")
    add = arguments.add_argument
    add("--seconds", type=float, default=120.0, help="CPU time of a default row")
    add("--rows", default="default,objectives", help="of default, objectives")
    add("--problems", default=",".join(PROBLEMS), help=f"of {', '.join(PROBLEMS)}")
    add("--seed", type=int, default=0)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
