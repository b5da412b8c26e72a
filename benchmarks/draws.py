"""The temperature and the medoids that a search has chosen for a trained sampler, by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import Record, read_csv
from outsourced.posterior import Posterior
from outsourced.solvers.step_sizes import task_name

CHOSEN = Path(__file__).resolve().parents[1] / "docs" / "tune_draws.csv"
TEMPERATURE, MEDOID = "temperature", "medoid"


def best(rows: Sequence[Record], rivals: Sequence[Record]) -> Record:
    """Of some rows that of least Fréchet distance among those nearer to the truth than rivals.

    Args:
        rows: of one sampler, with `perceptual` and `frechet`.
        rivals: rows of other solvers, at least one.

    Returns:
        the row; where none is nearer than all rivals, that of least perceptual distance.
    """

    def number(row: Record, name: str) -> float:
        return float(str(row[name]))

    bound = min(number(row, "perceptual") for row in rivals)
    nearer = [row for row in rows if number(row, "perceptual") < bound]
    if not nearer:
        return min(rows, key=lambda row: number(row, "perceptual"))
    return min(nearer, key=lambda row: number(row, "frechet"))


def chosen(posterior: Posterior) -> dict[str, float | int]:
    """The settings of `configs/solver/amortized.yaml` that were chosen for a prior and a task.

    Raises:
        ValueError: none were.
    """
    measured: Any = posterior.task
    prior, task = getattr(posterior.prior, "path", ""), task_name(measured)
    for row in read_csv(CHOSEN):
        if (row["prior"], row["known_as"]) == (prior, task) and row["chosen"]:
            return {TEMPERATURE: float(row[TEMPERATURE]), MEDOID: int(row[MEDOID])}
    raise ValueError(
        f"{CHOSEN.name} holds nothing for {task} on {prior}; python -m benchmarks.tune_draws "
        "searches"
    )
