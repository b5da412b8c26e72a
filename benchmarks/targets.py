"""What the side-by-side table was to show: break-even numbers of images, and targets met or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.contenders import AMORTISED, COOLED, DISTILLED, REFINED, TUNED
from benchmarks.reach import REACH
from benchmarks.solver_report import REAL, SLOW
from benchmarks.tables import Record

PRIOR, TASKS = "fashion_sd", 8  # whose targets, and how many tasks they are about
FASTER, DISTILLED_FASTER, BETTER, IMAGES = 200, 500, 6, 500
RESIDUAL, COVERED = 0.1, (0.85, 0.95)


def figure(row: Record | None, name: str) -> float | None:
    """A number of a row, None where there is none."""
    value = (row or {}).get(name, "")
    if value in ("", None):
        return None
    number = float(str(value))
    return None if math.isnan(number) else number


def per_instance(rows: Iterable[Record]) -> list[Record]:
    """The rows of solvers that were not trained for the task."""
    ours = (AMORTISED, DISTILLED, REAL, REACH)
    return [row for row in rows if not str(row["solver"]).startswith(ours)]


def least(rows: Iterable[Record], name: str) -> Record | None:
    """The row with the smallest figure of a name; None where no row has it."""
    known = [row for row in rows if figure(row, name) is not None]
    return min(known, key=lambda row: figure(row, name) or 0.0, default=None)


def break_even(row: Record, rival: Record | None) -> float | None:
    """Images of which training and sampling take as long as a rival's sampling.

    Args:
        row: of a trained sampler, corrected or not.
        rival: of a solver that was not trained.

    Returns:
        training seconds / (seconds of the rival - seconds), for one sample an image; infinite where
        the sampler is not faster, None where a figure is missing.
    """
    minutes, own, other = (
        figure(*pair) for pair in ((row, "minutes"), (row, "seconds_one"), (rival, "seconds_one"))
    )
    if minutes is None or own is None or other is None:
        return None
    return 60 * minutes / (other - own) if other > own else math.inf


def with_break_even(records: Sequence[Record]) -> list[Record]:
    """The records with `break_even`, against the solver of least perceptual distance to the truth.

    Only solvers that were not trained, on the same prior and task, are rivals.
    """
    found: list[Record] = []
    for row in records:
        same = [r for r in records if (r["prior"], r["task"]) == (row["prior"], row["task"])]
        images = break_even(row, least(per_instance(same), "perceptual"))
        found.append({**row, "break_even": "" if images is None else images})
    return found


@dataclass(frozen=True)
class Target:
    """A bound on a figure of each task.

    Attributes:
        text: what is wanted.
        value: figure of the rows of a task by solver; None where a row is missing.
        met: whether a figure is within the bound.
        distance: how far a figure is from the bound, to find the worst.
        needed: tasks on which it must hold.
        form: of a figure.
    """

    text: str
    value: Callable[[dict[str, Record]], float | None]
    met: Callable[[float], bool]
    distance: Callable[[float], float]
    needed: int = TASKS
    form: str = ".3g"

    def line(self, tasks: dict[str, dict[str, Record]]) -> str:
        """Whether the target is met, on how many tasks, and how far off the worst of them is.

        Args:
            tasks: rows by solver, by task.
        """
        every = {task: self.value(rows) for task, rows in tasks.items()}
        values = {task: value for task, value in every.items() if value is not None}
        good = [task for task, value in values.items() if self.met(value)]
        if len(good) >= self.needed:
            verdict = "met"
        elif len(good) + TASKS - len(values) >= self.needed:
            verdict = "open"
        else:
            verdict = "missed"
        if not values:
            return f"- **{verdict}**: {self.text}; no task has the rows for it."
        worst = max(values, key=lambda task: self.distance(values[task]))
        return (
            f"- **{verdict}**: {self.text}; so on {len(good)} of {len(values)} measured tasks, "
            f"worst {worst}: {values[worst]:{self.form}}."
        )


def psld(rows: dict[str, Record], name: str) -> float | None:
    """A figure of PSLD at 1000 steps among the rows of a task by solver: the smaller one of its two
    variants, so that the rival is the better of them in each figure."""
    return figure(least((rows[solver] for solver in SLOW if solver in rows), name), name)


def ratio(solver: str, name: str) -> Callable[[dict[str, Record]], float | None]:
    """How much larger a figure of PSLD at 1000 steps is than that of a solver, on a task."""

    def value(rows: dict[str, Record]) -> float | None:
        own, other = figure(rows.get(solver), name), psld(rows, name)
        return None if own is None or other is None else other / own

    return value


def _own(name: str, solver: str = AMORTISED) -> Callable[[dict[str, Record]], float | None]:
    """A figure of a trained sampler."""
    return lambda rows: figure(rows.get(solver), name)


def psld_break_even(rows: dict[str, Record]) -> float | None:
    """Of the default sampler, against the variant of PSLD at 1000 steps that is nearer to the
    truth."""
    rival = least((rows[solver] for solver in SLOW if solver in rows), "perceptual")
    return break_even(rows.get(AMORTISED, {}), rival)


def _lower(bound: float) -> tuple[Callable[[float], bool], Callable[[float], float]]:
    """Met and distance of figures that are to be at least a bound."""
    return lambda value: value >= bound, lambda value: -value


def _upper(bound: float) -> tuple[Callable[[float], bool], Callable[[float], float]]:
    """Met and distance of figures that are to be at most a bound."""
    return lambda value: value <= bound, lambda value: value


def _whose(solver: str) -> str:
    return "" if solver == AMORTISED else f", of `{solver}`"


def _better(name: str, solver: str) -> Target:
    text = f"{name} better than the better PSLD's on {BETTER} of {TASKS} tasks (ratio > 1)"
    text += _whose(solver)
    above, off = (lambda value: value > 1), (lambda value: -value)
    return Target(text, ratio(solver, name), above, off, BETTER)


def _fits(images: str, name: str, solver: str) -> Target:
    text = f"residual within {RESIDUAL:.0%} of sigma on {images} images{_whose(solver)}"
    return Target(
        text,
        _own(name, solver),
        lambda value: abs(value - 1) <= RESIDUAL,
        lambda value: abs(value - 1),
    )


LOW, HIGH = COVERED
TARGETS = (
    Target(
        f"the default sampler at least {FASTER} times faster a sample than the faster PSLD of 1000 "
        "steps",
        ratio(AMORTISED, "seconds"),
        *_lower(FASTER),
    ),
    Target(
        f"the same{_whose(REFINED)}",
        ratio(REFINED, "seconds"),
        *_lower(FASTER),
    ),
    Target(
        f"the distilled sampler at least {DISTILLED_FASTER} times faster",
        ratio(DISTILLED, "seconds"),
        *_lower(DISTILLED_FASTER),
    ),
    *(
        _better(name, solver)
        for solver in (AMORTISED, REFINED, TUNED, COOLED)
        for name in ("frechet", "perceptual")
    ),
    *(
        _fits(images, name, solver)
        for images, name in (("real", "residual"), ("simulated", "residual_simulated"))
        for solver in (AMORTISED, REFINED)
    ),
    Target(
        f"90 % intervals hold {LOW:.0%} to {HIGH:.0%} of the pixels of simulated images",
        _own("cover_90"),
        lambda value: LOW <= value <= HIGH,
        lambda value: max(LOW - value, value - HIGH),
        form=".1%",
    ),
    Target(
        f"break-even with the better PSLD of 1000 steps after at most {IMAGES} images",
        psld_break_even,
        *_upper(IMAGES),
        form=".0f",
    ),
)


def by_task(records: Iterable[Record], prior: str) -> dict[str, dict[str, Record]]:
    """The rows of a prior by solver, by task."""
    tasks: dict[str, dict[str, Record]] = {}
    for row in records:
        if row["prior"] == prior:
            tasks.setdefault(str(row["task"]), {})[str(row["solver"])] = row
    return tasks


def targets(records: Sequence[Record], prior: str = PRIOR) -> str:
    """A line for each target, from the rows of a prior."""
    tasks = by_task(records, prior)
    return "\n".join([f"Targets, on {prior}:", "", *(target.line(tasks) for target in TARGETS)])


def not_met(records: Sequence[Record], prior: str = PRIOR) -> str:
    """How many targets are met, and the lines of the others."""
    lines = targets(records, prior).splitlines()[2:]
    others = [line for line in lines if not line.startswith("- **met**")]
    told = f"Of {len(lines)} targets {len(lines) - len(others)} are met"
    return "\n".join([f"{told}; the others:", "", *others] if others else [f"{told}."])
