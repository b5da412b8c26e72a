"""Seconds of n samples of one observation: parts, rival, and the command."""

from pathlib import Path

import pytest
import torch

from benchmarks import latency
from benchmarks.latency import measure
from benchmarks.tables import read_csv
from outsourced.build import Problem
from outsourced.posterior import Posterior
from outsourced.priors import LatentDiffusionPrior
from outsourced.sampler import NoiseSampler
from outsourced.tasks import SuperResolution
from outsourced.transport import NoiseTransport


def build(weighted: bool) -> Problem:
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, SuperResolution(prior.data_shape, 4, 0.1))
    shapes = prior.noise_shape, posterior.task.feature_shape
    if weighted:
        sampler = NoiseSampler(*shapes, posterior, steps=2, width=8, embedding=8, informed="none")
        return Problem(posterior, sampler)
    return Problem(posterior, NoiseTransport(*shapes, posterior, width=8))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return build(weighted=False)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_whole_is_its_parts(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: seconds of one sample for those of the call, f of other rows, a ratio upside down,
    the sampler's samples judged in the place of PSLD's, images by f where latents were drawn."""
    monkeypatch.setattr(latency, "REPEATS", 1)
    problem, seen = build(weighted), []
    decode = problem.posterior.decode
    monkeypatch.setattr(problem.posterior, "decode", lambda z: seen.append(len(z)) or decode(z))
    _, _, obs = problem.posterior.simulate(1, torch.Generator().manual_seed(0))
    row = measure(problem, obs, 3, 2, 0)
    assert set(seen) == {1, 3}  # 1: what was simulated
    parts = row["encode"] + row["paths"] + row["decode"]
    assert 0.5 * parts < row["seconds"] < 2 * parts + 0.05
    assert row["ratio"] == pytest.approx(row["rival_seconds"] / row["seconds"])
    assert row["own"] == pytest.approx(row["seconds"] / row["f"] - 1)
    assert row["residual"] != row["rival_residual"]


def test_command_measures_once(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mutant: rows that are measured again, or of another number of samples."""
    monkeypatch.setattr(latency, "REPEATS", 1)
    monkeypatch.setattr(latency, "load_run", lambda _: problem)
    monkeypatch.setattr(latency, "held_out", lambda _: torch.zeros(2, 1, 32, 32))
    out = tmp_path / "latency.csv"
    call = ["--quick", "--run", "r", "--out", str(out), "--readme", str(tmp_path / "R.md")]
    latency.main([*call, "--samples", "1", "2", "5"])
    assert [row["n"] for row in read_csv(out)] == ["1", "2"]
    assert "PSLD with 3 steps" in (tmp_path / "latency.md").read_text()
    monkeypatch.setattr(latency, "measure", None)
    latency.main([*call, "--samples", "2", "1"])
    with pytest.raises(SystemExit, match="--samples must be >= 1, got 0"):
        latency.main([*call, "--samples", "0"])
