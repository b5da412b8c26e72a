"""The table of priors: one quick row from training to figure."""

import pytest

from benchmarks.priors import main
from benchmarks.tables import read_csv


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
