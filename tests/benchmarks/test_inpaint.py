"""The inpainting command: its rows, its files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import inpaint
from benchmarks.merit import Effort, real
from benchmarks.runs import rows_of, stages
from benchmarks.tables import read_csv
from outsourced.build import build
from outsourced.run import WARM, Run, write_tensors


def config() -> dict[str, Any]:
    """A small sampler for the embedded prior."""
    return {
        "prior": {
            "_target_": "outsourced.priors.vae.VAE.from_weights",
            "path_or_name": "fashion_vae",
        },
        "task": {"_target_": "outsourced.tasks.inpaint.Inpaint", "data_shape": None, "sigma": 0.2},
        "posterior": {},
        "sampler": {
            "_target_": "outsourced.sampler.NoiseSampler",
            **{"steps": 3, "width": 16, "depth": 1, "embedding": 8},
            **{"informed": "none", "covariance": "diagonal"},
        },
        "objective": {"_target_": "outsourced.objectives.LogVariance"},
        "trainer": {"warm_steps": 4, "max_steps": 9},
        "data": {"test": {"_target_": "outsourced.data.fashion_images", "split": "test"}},
    }


def finish(folder: Path, warm: bool, **changes: Any) -> Path:
    """A finished run of an untrained sampler."""
    settings = config() | changes
    run, problem = Run(folder), build(settings)
    run.create(settings)
    metadata = {"prior": problem.posterior.prior.fingerprint()}
    weights = problem.sampler.state_dict()
    if warm:
        write_tensors(folder / WARM, weights, metadata)
    run.finish(weights, metadata, {"train_seconds": 90.0, "train_prior_calls": 1234.0})
    return folder


def test_command_fills_its_table_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutant: rows of the warm start under the final weights' costs, rows run twice, other
    effort in the same file."""
    folder, out = finish(tmp_path / "a", warm=True), tmp_path / "docs" / "inpaint.csv"
    arguments = ["--quick", "--runs", str(folder), "--out", str(out)]
    arguments += ["--readme", str(tmp_path / "README.md")]
    monkeypatch.setitem(inpaint.QUICK, "observations", 12)
    inpaint.main(arguments)
    records = read_csv(out)
    kinds = [(r["stage"], r["kind"]) for r in records]
    assert kinds == [(s, k) for s in ("balance", "warm start") for k in ("simulated", "real")]
    assert [r["minutes"] for r in records] == ["1.5", "1.5", "", ""]
    assert all(0 < float(r["std_observed"]) < float(r["std_hidden"]) * 3 for r in records)
    assert [r["residual_truth"] != "" for r in records] == [True, False, True, False]
    for name in ("inpaint.png", "inpaint-ranks.png"):
        assert (out.parent / "figures" / name).stat().st_size > 10_000
    assert "R-hat median" in capsys.readouterr().out
    text = (out.parent / "inpaint.md").read_text()
    assert "| a | none | 3 | balance | simulated |" in text
    assert "nan" not in text  # a chain of 60 moves may not converge
    monkeypatch.setattr(inpaint, "measure", None)
    inpaint.main(arguments)  # every row is known
    with pytest.raises(SystemExit, match="rows with observations = 12, this call has 512"):
        inpaint.main([a for a in arguments if a != "--quick"])


def test_rows_name_the_stage_that_the_weights_are_of(tmp_path: Path) -> None:
    """Mutant: the end of a likelihood-only run called balance."""
    plain = finish(tmp_path / "plain", warm=False)
    assert [name for name, _ in stages(plain)] == ["balance"]
    trainer = {"warm_steps": 9, "max_steps": 9}
    assert [n for n, _ in stages(finish(tmp_path / "w", False, trainer=trainer))] == ["warm start"]
    likelihood = {"_target_": "outsourced.objectives.PathLikelihood"}
    run = finish(tmp_path / "l", warm=False, objective=likelihood)
    assert [name for name, _ in stages(run)] == ["warm start"]


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Mutant: an unfinished run is skipped in silence, or two tasks share one table."""
    folder = finish(tmp_path / "a", warm=False)
    other = json.loads((folder / "config.json").read_text())
    other["task"]["sigma"] = 0.3
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"task of .*b differs"):
        rows_of([folder, tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match="is not finished"):
        rows_of([tmp_path / "b"])
    posterior = build(config()).posterior
    with pytest.raises(ValueError, match="must be <= 3, the number of held-out images, got 16"):
        real(posterior, torch.zeros(3, 1, 32, 32), Effort(16, 8, chain=0))
