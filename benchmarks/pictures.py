"""Pictures of the side-by-side table: samples that its cells leave on disk, and the figure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from benchmarks.contenders import AMORTISED
from outsourced.figures import Case, comparison_figure
from outsourced.run import read_tensors, write_tensors
from outsourced.tasks.base import Observation
from outsourced.tasks.measurement import Measurement

SHOWN = 2  # observations of a task
COLUMNS = (
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


def place(folder: Path, about: Mapping[str, object]) -> Path:
    """Where the samples of a cell lie."""
    name = "-".join(str(about[key]) for key in ("prior", "task", "solver"))
    return folder / "pictures" / f"{re.sub('[^a-z0-9_-]+', '_', name)}.safetensors"


def store(
    folder: Path, about: Mapping[str, object], samples: Tensor, spread: Tensor | None
) -> None:
    """Keep a sample of each shown observation.

    Args:
        folder: of all runs.
        about: what identifies the cell.
        samples: (SHOWN, C, H, W).
        spread: pixelwise standard deviation of many samples, (SHOWN, H, W), if known.
    """
    path = place(folder, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"samples": samples} | ({} if spread is None else {"spread": spread})
    write_tensors(path, tensors, {})


def cases(
    folder: Path, name: Mapping[str, object], task: Measurement, obs: Observation, x: Tensor
) -> list[Case]:
    """The rows of the figure for a prior and a task, of the cells that have left samples.

    Args:
        folder: of all runs.
        name: of prior and task.
        task: that measured.
        obs: B observations.
        x: images behind them.
    """
    paths = {solver: place(folder, {**name, "solver": solver}) for solver in COLUMNS}
    kept = {solver: read_tensors(path)[0] for solver, path in paths.items() if path.is_file()}
    spread, mask = kept.get(AMORTISED, {}).get("spread"), obs.params.get("mask")
    shown = min([SHOWN, len(obs), *(len(tensors["samples"]) for tensors in kept.values())])
    flat = obs.y if obs.y.ndim == 4 else task.adjoint(obs.y, obs.params)
    return [
        Case(
            x[i],
            flat[i],
            None if mask is None else mask[i],
            {solver: tensors["samples"][i] for solver, tensors in kept.items()},
            None if spread is None else spread[i],
        )
        for i in range(shown)
    ]


def draw(rows: Mapping[str, list[Case]], path: Path) -> None:
    """One figure a prior; that of the first has the plain name."""
    for index, (prior, all_cases) in enumerate(rows.items()):
        target = path if index == 0 else path.with_stem(f"{path.stem}-{prior}")
        comparison_figure(all_cases, target)
