"""What tables of solvers side by side share: kept rows, cells that are filled, and arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import AMORTISED, Contender
from benchmarks.driver import add_device, kept
from benchmarks.reach import REACH, reachable, reached
from benchmarks.setting import Setting
from benchmarks.solver_cells import begin, measure
from benchmarks.solver_report import REAL
from benchmarks.tables import Record, write_csv
from outsourced.build import code_version

KEY = ("prior", "task", "solver")


class Table:
    """The rows of the CSV file, by prior, task and solver.

    Args:
        path: of the file.
        asked: the conditions that its rows share.

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

    def has(self, about: Record) -> bool:
        """Whether there is a row of the same settings."""
        known = self.rows.get(self.key(about))
        return known is not None and known["settings"] == about["settings"]

    def put(self, row: Record) -> None:
        """Write a row, in place of one of other settings."""
        self.rows[self.key(row)] = {**row, **self.asked, "code": code_version()}
        write_csv(self.path, list(self.rows.values()))


def fill(table: Table, contenders: Sequence[Contender], setting: Setting, args: Any) -> None:
    """Run the cells of a prior and a task that the table does not have."""
    about = {**setting.name, "solver": REAL, "settings": ""}
    if not table.has(about):
        table.put({**about, **setting.judge.truth(setting.posterior, setting.obs)})
    about = {**about, "solver": REACH}
    if reachable(setting.posterior) and not table.has(about):
        table.put({**about, **reached(setting.judge, setting.posterior, setting.obs)})
    where, left_out = " | ".join(map(str, setting.name.values())), []
    for contender in contenders:
        setting.seconds = amortised_seconds(table, setting)
        begun = begin(contender, setting)
        if begun is None:
            left_out.append(contender.name)
        if begun is None or table.has(begun[1]):
            continue
        row = measure(contender, *begun, setting, args)
        table.put(row)
        names = ("psnr", "frechet", "residual", "seconds")
        shown = [f"{name} {float(str(row[name])):.4g}" for name in names if name in row]
        text = ", ".join(shown) or str(row["note"])
        print(f"{where} | {contender.name} | {text}", flush=True)
    if left_out:
        print(f"{where} | not for this prior and task, or untrained: {'; '.join(left_out)}")


def amortised_seconds(table: Table, setting: Setting) -> float | None:
    """How long the amortised sampler takes for all of its samples, if its row is known."""
    row = table.rows.get(table.key({**setting.name, "solver": AMORTISED}), {})
    if not row.get("seconds"):
        return None
    return float(str(row["seconds"])) * float(str(row["draws"])) * len(setting.obs)


def named(known: Sequence[Contender], names: Sequence[str] | None) -> list[Contender]:
    """The solvers of these names, or all.

    Raises:
        ValueError: an unknown name.
    """
    by_name = {contender.name: contender for contender in known}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"--solvers knows {'; '.join(by_name)}; got {name!r}")
    return [contender for name, contender in by_name.items() if not names or name in names]


def add_cells(arguments: argparse.ArgumentParser, runs: str, images: int, n: int) -> None:
    """The arguments of cells, but for the priors and tasks.

    Args:
        arguments: of the command.
        runs: default folder of run folders.
        images: default number of observations.
        n: default number of samples.
    """
    add = arguments.add_argument
    add("--solvers", nargs="+", help="names in the table; all by default")
    add("--runs", type=Path, default=Path(runs), help="run folders PRIOR-TASK")
    add("--minutes", type=float, default=0.0, help="of each missing training; 0: none")
    add("--train", nargs="*", default=[], help="overrides of train.py, e.g. sampler.climb=20")
    add("--images", type=int, default=images, help="held-out images")
    add("--n", type=int, default=n, help="samples of each")
    add("--sigma", type=float, default=0.05, help="of the noise, on [-1, 1]")
    add("--seed", type=int, default=0, help="of observations and samples")
    add("--progress", action="store_true", help="show progress bars")
    add_device(arguments)
