"""`train.py prior=diffusion` on a Stable Diffusion folder: the same command as for every prior."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "task=inpaint", "logger=none", "data.bank_size=64", "data.observations=simulated",
    "posterior.chunk=16", "prior.steps=2", "sampler.steps=4", "sampler.width=8",
    "sampler.embedding=8", "trainer.max_steps=3", "trainer.warm_steps=2", "trainer.batch=4",
    "trainer.groups=2", "trainer.evaluate_every=0", "evaluate.observations=2", "evaluate.n=2",
]  # fmt: skip


@pytest.mark.slow
def test_trains_and_samples(sd_folder, tmp_path):
    """Mutant: a control network for vectors on spatial noise, or a bank without its folder."""
    run = tmp_path / "run"
    banks = [f"data.bank_folder={tmp_path / 'banks'}", f"run={run}"]
    for call in (
        ["train.py", "prior=diffusion", f"prior.path={sd_folder}", *banks, *SMALL],
        ["sample.py", f"run={run}", "n=2", "observations=2", "source=simulated"],
    ):
        done = subprocess.run([sys.executable, *call], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((run / "config.json").read_text())
    assert config["sampler"]["informed"] == "gradient"
    assert (run / "samples" / "metrics.json").is_file()
