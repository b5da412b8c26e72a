"""Trainings of equal time: how many steps of each phase fit, measured on a short training."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import read_csv
from outsourced.run import Run

ROOT = Path(__file__).resolve().parents[1]
# Steps of each phase; the later half is timed, for the first ones start things up. The longer probe
# follows where it takes less than so many seconds.
PROBES, PATIENCE = (8, 40), 60.0
QUICKLY, SMALL = ("data.bank_size=256",), {"lookup": 128, "axes": 64}  # if a sampler has it


@dataclass(frozen=True)
class Plan:
    """Steps of the three phases of a training.

    Attributes:
        anchors, warm, balance: of each phase; the anchors are 0 without Gauss-Newton guidance.
    """

    anchors: int
    warm: int
    balance: int

    def overrides(self, points: int = 0) -> list[str]:
        """Arguments of `train.py`, with so many evaluations along the way; 0: not told."""
        warm = self.anchors + self.warm
        total = warm + self.balance
        every = [f"trainer.evaluate_every={max(1, total // points)}"] if points else []
        return [
            f"trainer.anchor_steps={self.anchors}",
            f"trainer.warm_steps={warm}",
            f"trainer.max_steps={total}",
            *every,
        ]


def train(run: Path, overrides: list[str], quiet: bool = False) -> None:
    """Call `train.py`, as a user would.

    Raises:
        ValueError: it failed.
    """
    call = [sys.executable, "train.py", f"run={run.resolve()}", *overrides]
    done = subprocess.run(call, cwd=ROOT, capture_output=quiet, text=True)
    if done.returncode:
        last = (done.stderr or "").strip().splitlines()[-1:]
        raise ValueError(f"`{' '.join(call[1:])}` failed: {' '.join(last) or 'see above'}")


def pace(overrides: list[str], steps: Plan) -> tuple[float, float, float]:
    """Seconds a step of the three phases, from a training of a few steps of each.

    Args:
        overrides: arguments of `train.py`.
        steps: of the recipe; a phase of one step at most is not timed, and said to take as long as
            the last one.
    """
    probed = steps.anchors > 1, steps.warm > 1, True
    for probe in PROBES:
        found = probe_pace(overrides, probe, probed)
        seconds = sum(each for each, known in zip(found, probed, strict=True) if known)
        if seconds * PROBES[-1] > PATIENCE:
            break
    return found


def probe_pace(
    overrides: list[str], probe: int, probed: tuple[bool, bool, bool]
) -> tuple[float, float, float]:
    """`pace`, from a training of so many steps of each probed phase."""
    plan = Plan(probe * probed[0], probe if probed[1] else 1, probe)
    silent = ["logger=csv", f"trainer.log_every={probe // 2}", "trainer.evaluate_every=0"]
    small = ["evaluate.observations=1", "evaluate.n=2", "trainer.save_every=1000"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "probe"
        train(run, [*overrides, *silent, *small, *plan.overrides()], quiet=True)
        return read_pace(run / "csv" / "metrics.csv", probe, probed)


def read_pace(
    path: Path, probe: int, probed: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[float, float, float]:
    """Seconds a step over the later half of each probed phase, from the log of a probe."""
    told = [(r["step"], r["seconds"]) for r in read_csv(path) if r.get("seconds")]
    seconds = {int(step): float(value) for step, value in told}
    ends = [probe * sum(probed[: phase + 1]) for phase in range(3)]
    last, half = ends[-1], probe // 2
    ends = [end if known else last for end, known in zip(ends, probed, strict=True)]
    found = [(seconds[end] - seconds[end - half]) / half for end in ends]
    return found[0], found[1], found[2]


def composed(overrides: list[str]) -> Any:
    """The configuration that `train.py` would take with these arguments."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=overrides)


def quickly(overrides: list[str]) -> list[str]:
    """Further arguments for a training that means nothing."""
    sampler = composed(overrides).sampler
    small = [f"sampler.{name}={value}" for name, value in SMALL.items() if name in sampler]
    return [*QUICKLY, *small]


def recipe(overrides: list[str]) -> Plan:
    """The steps of each phase that `train.py` would take with these arguments."""
    trainer = composed(overrides).trainer
    warm, anchors = min(trainer.warm_steps, trainer.max_steps), trainer.anchor_steps
    return Plan(anchors, max(0, warm - anchors), trainer.max_steps - warm)


def plan(seconds: float, paces: tuple[float, float, float], steps: Plan, anchored: bool) -> Plan:
    """A recipe that is stretched or cut to fill `seconds`, its phases alike.

    Args:
        seconds: of training in all.
        paces: seconds a step of each phase.
        steps: of the recipe.
        anchored: whether the encoder is trained alone first; else its steps are warm ones.
    """
    counts = (steps.anchors, steps.warm, steps.balance)
    if not anchored:
        counts = (0, steps.anchors + steps.warm, steps.balance)
    spent = sum(count * each for count, each in zip(counts, paces, strict=True))
    first, warm, balance = (count * seconds / spent for count in counts)
    return Plan(round(first), max(1, round(warm)), round(balance))


def trained(
    folder: Path, overrides: list[str], minutes: float, quick: bool = False, points: int = 0
) -> None:
    """Train a run for a time; one that was stopped goes on with the steps that it had, and a
    finished one is left.

    Args:
        folder: of the run.
        overrides: arguments of `train.py`.
        minutes: of training, in steps by the pace of a short one.
        quick: instead of that a few steps, on a small bank, for tests.
        points: evaluations along the way, 0 to leave that to the overrides.
    """
    if Run(folder).finished:
        return
    overrides = [*overrides, *(quickly(overrides) if quick else ())]
    if folder.exists():
        config = Run(folder).config["trainer"]
        names = ("anchor_steps", "warm_steps", "max_steps")
        steps = [f"trainer.{name}={config[name]}" for name in (*names, "evaluate_every")]
    elif quick:
        steps = Plan(0, 2, 2).overrides(points)
    else:
        whole = recipe(overrides)
        paces = pace(overrides, whole)
        anchored = paces[0] < paces[1] / 2
        steps = plan(60 * minutes, paces, whole, anchored).overrides(points)
    train(folder, [*overrides, *steps])
