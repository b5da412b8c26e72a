"""The table of priors: one quick row from training to figure."""

import pytest

from benchmarks.budget import composed
from benchmarks.priors import WEIGHTED, main
from benchmarks.tables import read_csv


@pytest.mark.parametrize(
    "prior", ["vae", "hvae", "gan", "flow", "cnf", "sd"], ids=lambda name: f"fashion_{name}"
)
def test_every_row_has_log_weights(prior):
    """Mutant: a sampler without them, whose evidence does not exist."""
    name = f"fashion_{prior}"
    config = composed([f"prior={name}", *WEIGHTED.get(name, ())])
    assert config.sampler._target_.endswith(".NoiseSampler")
    assert not config.objective._target_.endswith(".PathLikelihood")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_table_of_the_shipped_prior(tmp_path, monkeypatch):
    """Mutant: rows of one kind of observation only, a run trained again, a budget that is ignored,
    a figure without the prior."""
    monkeypatch.chdir(tmp_path)
    call = ["--priors", "fashion_vae", "--runs", str(tmp_path / "runs"), "--quick"]
    call += [
        "--out",
        str(tmp_path / "docs" / "priors.csv"),
        "--readme",
        str(tmp_path / "README.md"),
    ]
    main(call)
    rows = read_csv(tmp_path / "docs" / "priors.csv")
    assert [row["kind"] for row in rows] == ["simulated", "real"]
    assert rows[0]["informed"] == "gauss_newton"
    assert rows[0]["noise"] == "16"
    assert 0 < float(rows[0]["minutes"]) < 0.5
    assert float(rows[0]["gap"]) > 0
    assert 0.9 < float(rows[0]["residual"]) < 20
    figure = tmp_path / "docs" / "figures" / "priors.png"
    written = figure.stat().st_mtime_ns
    trained = (tmp_path / "runs" / "fashion_vae" / "metrics.json").stat().st_mtime_ns
    main(call)
    assert figure.stat().st_mtime_ns > written
    assert (tmp_path / "runs" / "fashion_vae" / "metrics.json").stat().st_mtime_ns == trained
