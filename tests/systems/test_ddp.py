"""Two processes on one machine: the gradients are shared, the data are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "prior=linear_gaussian prior.dim=3 task=linear task.dim=3 task.measurements=2 logger=none "
    "data.bank_size=256 evaluate.observations=2 evaluate.n=4 sampler.width=16 sampler.depth=1 "
    "sampler.embedding=8 sampler.steps=4 sampler.informed=none trainer.max_steps=6 "
    "trainer.warm_steps=3 trainer.batch=8 trainer.groups=4 trainer.evaluate_every=0 "
    "lightning.accelerator=cpu"
)


def train(folder: Path, *extra: str) -> dict:
    command = [sys.executable, str(ROOT / "train.py"), *TINY.split(), "run=run", *extra]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    folder.mkdir()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=240)
    return load_file(folder / "run" / "sampler.safetensors")


DDP = ("+lightning.strategy=ddp_find_unused_parameters_true", "lightning.devices=2")


@pytest.mark.slow
def test_two_processes_train_one_sampler_on_different_data(tmp_path):
    """Both phases run under DDP with gloo and leave one finished run. Mutant: a sampler that splits
    the steps between the processes, or ranks that see equal data (the result of one process)."""
    both, one = train(tmp_path / "two", *DDP), train(tmp_path / "one")
    assert both.keys() == one.keys()
    assert any(not value.equal(one[name]) for name, value in both.items())
    assert all(value.isfinite().all() for value in both.values())


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path):
    """The first process evaluates, both return to the end of the warm start, and the run ends.

    Mutant: a process that waits for ever, since the other one does not tell what it has decided.
    """
    ruin = ("trainer.balance_lr=3", "trainer.clip=1e9", "trainer.collapse=0.5", "trainer.ramp=1")
    often = ("trainer.evaluate_every=8", "evaluate.observations=16", "evaluate.n=64")
    long = ("trainer.max_steps=16", "trainer.warm_steps=8")
    final = train(tmp_path / "two", *DDP, *ruin, *often, *long)
    folder = tmp_path / "two" / "run"
    assert json.loads((folder / "metrics.json").read_text())["restarts"] == 1
    warm = load_file(folder / "warm.safetensors")
    assert all(warm[name].equal(value) for name, value in final.items())
