"""Pictures of the side-by-side table: samples that its cells leave on disk, and the figure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.contenders import AMORTISED
from outsourced.figures import Case, comparison_figure
from outsourced.run import read_tensors, write_tensors
from outsourced.tasks.base import Observation
from outsourced.tasks.measurement import Measurement

SHOWN = 2  # observations of a task
KEPT = 3  # samples of each
NAMES = (
    *(AMORTISED, f"{AMORTISED} + mala", "psld, 1000", "psld paper, 1000", "gml_dps, 1000"),
    *(
        "latent_dps, 1000",
        "dps, 1000",
        "resample",
        "daps",
        "flow_dps",
        "flow_chef",
        "mala",
        "hmc",
        "smc",
    ),
)
COLUMNS = tuple((name, 1) for name in NAMES)


def place(folder: Path, about: Mapping[str, object], obs: Observation) -> Path:
    """Where the samples of a cell lie: other observations of the same task have files of their
    own."""
    name = "-".join(str(about[key]) for key in ("prior", "task", "solver"))
    digest = hashlib.sha256(obs.y[:1].cpu().contiguous().numpy().tobytes()).hexdigest()[:8]
    return folder / "pictures" / f"{re.sub('[^a-z0-9_-]+', '_', name)}-{digest}.safetensors"


def store(folder: Path, about: Mapping[str, object], obs: Observation, draws: Tensor) -> None:
    """Keep samples of each shown observation, and their spread where there are many.

    Args:
        folder: of all runs.
        about: what identifies the cell.
        obs: its observations.
        draws: (n, SHOWN, C, H, W); the first are kept.
    """
    path = place(folder, about, obs)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"samples": draws[:KEPT].contiguous()}
    if len(draws) > KEPT:
        tensors["spread"] = draws.var(0).mean(1).sqrt()
    write_tensors(path, tensors, {})


def cases(
    folder: Path,
    name: Mapping[str, object],
    task: Measurement,
    obs: Observation,
    x: Tensor,
    columns: Sequence[tuple[str, int]] = COLUMNS,
    shown: int = SHOWN,
    instead: Mapping[str, str] | None = None,
) -> list[Case]:
    """The rows of the figure for a prior and a task, of the cells that have left samples.

    Args:
        folder: of all runs.
        name: of prior and task.
        task: that measured.
        obs: B observations.
        x: images behind them.
        columns: solvers, and how many samples of each are shown.
        shown: most observations.
        instead: who takes the column of a solver that has left none.
    """
    paths = {solver: place(folder, {**name, "solver": solver}, obs) for solver, _ in columns}
    for solver, other in (instead or {}).items():
        if not paths[solver].is_file():
            paths[solver] = place(folder, {**name, "solver": other}, obs)
    kept = {solver: read_tensors(path)[0] for solver, path in paths.items() if path.is_file()}
    spread, mask = kept.get(AMORTISED, {}).get("spread"), obs.params.get("mask")
    pictures = {
        f"{solver}, {i + 1}" if count > 1 else solver: kept[solver]["samples"][i]
        for solver, count in columns
        if solver in kept
        for i in range(count)
    }
    shown = min([shown, len(obs), *(len(x) for x in pictures.values())])
    flat = obs.y if obs.y.ndim == 4 else task.adjoint(obs.y, obs.params)
    return [
        Case(
            x[i],
            flat[i],
            None if mask is None else mask[i],
            {title: images[i] for title, images in pictures.items()},
            None if spread is None else spread[i],
            str(name["task"]) if i == 0 else "",
        )
        for i in range(shown)
    ]


def draw(rows: Mapping[str, list[Case]], path: Path) -> None:
    """One figure a prior; that of the first has the plain name."""
    for index, (prior, all_cases) in enumerate(rows.items()):
        target = path if index == 0 else path.with_stem(f"{path.stem}-{prior}")
        comparison_figure(all_cases, target)
