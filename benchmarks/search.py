"""A search for step sizes: full grids that move and shrink, and the memory of what was tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.driver import kept
from benchmarks.tables import Column, Record, markdown, write_csv
from outsourced.build import code_version

Sizes = dict[str, float]
COLUMNS = (
    Column("task", "task"),
    Column("solver", "solver"),
    Column("steps", "steps", ".0f"),
    Column("omega", "omega", ".3g"),
    Column("gamma", "gamma", ".3g"),
    Column("rate", "rate", ".3g"),
    Column("psnr", "PSNR", ".2f"),
    Column("residual", "residual / sigma", ".3f"),
)


def score(record: Record, metric: str) -> float:
    """How good a setting is; diverged ones are worst."""
    if record.get("psnr") in (None, ""):
        return -math.inf
    if metric == "psnr":
        return float(str(record["psnr"]))
    return -abs(math.log(float(str(record["residual"]))))


def search(
    values: Callable[[list[Sizes]], list[float]],
    start: Sizes,
    reach: int,
    tolerance: float,
    together: bool = False,
) -> Sizes:
    """The best settings that full grids find: one of half decades that moves until its best is
    inside, then one of quarter decades and one step to each side.

    Args:
        values: what to raise, of each of many settings.
        start: positive step sizes, the first centre.
        reach: settings to each side of the centre of the first grids.
        tolerance: a gain below it moves nothing: sizes that do not matter stay where they are.
        together: one factor for all sizes: a line in the place of a grid.
    """
    centre, stride = (0,) * len(start), 2
    while True:
        offsets = sorted(range(-reach, reach + 1), key=abs)
        lines = itertools.product(offsets, repeat=1 if together else len(centre))
        around = (one * len(centre) for one in lines) if together else lines
        grid = [tuple(c + stride * o for c, o in zip(centre, one, strict=True)) for one in around]
        scores = values([sizes_at(start, index) for index in grid])
        best = max(range(len(grid)), key=scores.__getitem__)  # the first of equals: the centre
        before = centre
        if scores[best] > scores[0] + tolerance:
            centre = grid[best]
        if any(abs(a - b) == reach * stride for a, b in zip(centre, before, strict=True)):
            continue
        if stride == 1:
            return sizes_at(start, centre)
        stride, reach = 1, 1


def sizes_at(start: Sizes, index: tuple[int, ...]) -> Sizes:
    """The sizes that lie so many quarters of a decade from the start.

    Three digits, so that the file tells what was run and a grid that moved meets its old points.
    """
    pairs = zip(start.items(), index, strict=True)
    return {name: float(f"{value * 10 ** (k / 4):.3g}") for (name, value), k in pairs}


class Trials:
    """Settings that were tried, in a CSV file; a known one is not run again.

    Args:
        path: of the file.
        asked: the conditions that its rows share.

    Raises:
        ValueError: the file holds rows of other conditions.
    """

    def __init__(self, path: Path, asked: dict[str, object]) -> None:
        self.path, self.asked = path, asked
        self.records = kept(path, asked)

    def find(self, about: Record) -> Record | None:
        """The row of a setting, if it was tried."""
        for record in self.records:
            if all(str(record.get(name, "")) == str(value) for name, value in about.items()):
                return record
        return None

    def get(
        self, about: Sequence[Record], run: Callable[[Sequence[Record]], Sequence[Record]]
    ) -> list[Record]:
        """The rows of settings, from the file or from one run of those that are missing."""
        missing = [one for one in about if self.find(one) is None]
        if missing:
            found = zip(missing, run(missing), strict=True)
            told_by = {**self.asked, "code": code_version()}
            fresh = [{**one, **figures, **told_by} for one, figures in found]
            self.records += fresh
            write_csv(self.path, self.records)
            print(markdown(fresh, COLUMNS).split("\n", 2)[2], flush=True)
        return [record for one in about if (record := self.find(one)) is not None]
