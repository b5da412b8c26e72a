"""Rows of the inpainting table: stages of trained runs, on simulated and on real observations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outsourced.run import METRICS, WARM, WEIGHTS, Run, read_tensors

WARM_STAGE, LAST_STAGE = "warm start", "balance"
KINDS = ("simulated", "real")


@dataclass(frozen=True)
class Row:
    """A trained sampler and a kind of observation.

    Attributes:
        folder: of the run.
        stage: of its training that the weights are from.
        weights: their file.
        kind: of observations.
    """

    folder: Path
    stage: str
    weights: str
    kind: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the row in the CSV file."""
        return self.folder.resolve().name, self.stage, self.kind


def stages(folder: Path) -> list[tuple[str, str]]:
    """Stages of a finished run that have weights: (name, file).

    Raises:
        FileNotFoundError: not a run folder, or not finished.
    """
    run = Run(folder)
    config = run.config
    if not run.finished:
        raise FileNotFoundError(
            f"{folder} is not finished (no {WEIGHTS}); `python train.py run={folder}` resumes it"
        )
    if (folder / WARM).is_file():
        return [(WARM_STAGE, WARM), (LAST_STAGE, WEIGHTS)]
    trainer = config["trainer"]
    likelihood = str(config["objective"]["_target_"]).endswith("PathLikelihood")
    only_warm = likelihood or trainer["warm_steps"] >= trainer["max_steps"]
    return [(WARM_STAGE if only_warm else LAST_STAGE, WEIGHTS)]


def rows_of(folders: list[Path]) -> list[Row]:
    """All rows of the runs, the finished sampler of the first run at the top.

    Raises:
        ValueError: two runs of one name, or of other priors or tasks.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"--runs must have different folder names, got {', '.join(names)}")
    first = Run(folders[0]).config
    for folder in folders[1:]:
        for part in ("prior", "task", "posterior"):
            if Run(folder).config[part] != first[part]:
                raise ValueError(
                    f"--runs must share prior, task and posterior, but {part} of {folder} differs "
                    f"from that of {folders[0]}; give them tables of their own with --out"
                )
    return [
        Row(folder, stage, weights, kind)
        for folder in folders
        for stage, weights in reversed(stages(folder))
        for kind in KINDS
        if kind == "simulated" or Run(folder).config["data"]["test"] is not None
    ]


def costs(row: Row) -> dict[str, float]:
    """Minutes and prior calls of the training up to the row's stage, where they are known."""
    if row.weights == WEIGHTS:
        path = row.folder / METRICS
        told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    else:
        told = dict(read_tensors(row.folder / row.weights)[1])
    if "train_seconds" not in told:
        return {}
    return {
        "minutes": float(told["train_seconds"]) / 60,
        "train_prior_calls": float(told["train_prior_calls"]),
    }


def described(row: Row) -> dict[str, Any]:
    """What the row is about."""
    sampler = Run(row.folder).config["sampler"]
    name, stage, kind = row.key
    told = {key: sampler[key] for key in ("informed", "covariance", "steps") if key in sampler}
    return {"run": name, "stage": stage, "kind": kind, **told}
