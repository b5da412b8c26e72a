"""The exactness table: objectives against problems whose posteriors are known.

    python -m benchmarks.exact --seconds 120 --rows default,objectives --out docs/exact.csv

Each finished cell is appended to the CSV file; the same command continues an interrupted run. The
table goes to the markdown file of the same name, and into README.md where that has the markers
`<!-- exact:start -->` and `<!-- exact:end -->`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cells import Effort, Row, baseline, quiet, run_cell
from benchmarks.problems import PROBLEMS
from benchmarks.rows import GROUPS
from benchmarks.tables import (
    Column,
    Record,
    has_section,
    machine,
    markdown,
    read_csv,
    write_csv,
    write_section,
)
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
    Column("train_seconds", "seconds", ".0f"),
)


def conditions(effort: Effort) -> dict[str, object]:
    """What a figure depends on besides its cell; all cells of one file must share it."""
    return {
        "budget_seconds": effort.seconds,
        "seed": effort.seed,
        "observations": effort.observations,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }


def check_conditions(path: Path, records: list[dict[str, str]], effort: Effort) -> None:
    """Refuse to mix cells of different effort or machines in one file.

    Raises:
        ValueError: the file holds cells of other conditions.
    """
    for record in records:
        for name, value in conditions(effort).items():
            if record.get(name) != str(value):
                raise ValueError(
                    f"{path} holds cells with {name} = {record.get(name)}, this run has {value}; "
                    "choose another --out, or delete the file"
                )


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it how it was made."""
    names = list(PROBLEMS)
    ordered = sorted(records, key=lambda record: names.index(str(record["problem"])))
    first = records[0]
    return (
        f"{markdown(ordered, COLUMNS)}\n\n"
        f"{first['machine']}, {first['threads']} thread(s), torch {first['torch']}, seed "
        f"{first['seed']}, {first['observations']} observations."
    )


def render(path: Path, records: list[dict[str, str]], readme: Path) -> None:
    """Write the table beside the CSV file, and into the README where it has the markers."""
    text = table(records)
    write_section(path.with_suffix(".md"), SECTION, text)
    if has_section(readme, SECTION):
        write_section(readme, SECTION, text)


def report(record: Record, done: int, total: int) -> None:
    """One line of progress."""
    names = ("elbo_gap", "floor", "eubo_gap", "log_z_bias", "ess", "c2st", "mode_error")
    figures = " ".join(f"{n}={float(str(record[n])):.3f}" for n in names if record.get(n) is not None)
    took = float(str(record.get("train_seconds", 0))) + float(str(record["eval_seconds"]))
    print(f"[{done}/{total}] {record['problem']}: {record['row']}: {figures} ({took:.0f} s)", flush=True)


def cells(path: Path, rows: list[Row | None], problems: list[str], effort: Effort) -> list[Record]:
    """Run every cell that the file does not hold yet, and append each as it ends."""
    records: list[Record] = [*read_csv(path)]
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
                record: dict[str, object] = {"problem": name}
                if row is None:
                    record |= {"row": BASELINE, **baseline(problem, effort)}
                else:
                    record |= {"row": row.name, **run_cell(problem, row, bank, effort)}
                record |= {**conditions(effort), "code": code_version()}
                records.append(record)
                write_csv(path, records)
                done += 1
                report(record, done, total)
    return records
