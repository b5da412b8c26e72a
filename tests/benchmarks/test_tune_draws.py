"""The search for the draws of a task: its rule, what reads the choice, and the command."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import draws, tune_draws
from benchmarks.contenders import INVERSE, TUNED, Contender
from benchmarks.draws import best, chosen
from benchmarks.tables import write_csv
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.tasks import Denoise

BY_NAME = {contender.name: contender for contender in INVERSE}


def row(perceptual: float, frechet: float) -> dict[str, float]:
    return {"perceptual": perceptual, "frechet": frechet}


def test_best_is_the_most_real_among_the_nearer() -> None:
    """Mutants: the least Fréchet distance of all, the least perceptual one, one as near as the
    rival, and the most real where none is nearer, one that is nearer than one rival only."""
    rows = [row(0.3, 30), row(0.2, 35), row(0.15, 33), row(0.1, 40)]
    assert best(rows, [row(0.25, 99)]) is rows[2]
    assert best(rows, [row(0.15, 1), row(0.9, 0)]) is rows[3]
    assert best(rows, [row(0.05, 99)]) is rows[3]
    assert best([{k: str(v) for k, v in r.items()} for r in rows], [row(9, 0)])["frechet"] == "30"


def written(path: Path) -> None:
    shared = {"prior": "fashion_sd", "known_as": "Denoising"}
    write_csv(
        path,
        [
            {**shared, "solver": "psld, 100", "temperature": "", "medoid": "", "chosen": ""},
            {**shared, "solver": "refined", "temperature": 1.0, "medoid": 1, "chosen": ""},
            {**shared, "known_as": "blur", "temperature": 0.9, "medoid": 1, "chosen": "yes"},
            {**shared, "prior": "other", "temperature": 0.7, "medoid": 4, "chosen": "yes"},
            {**shared, "solver": "refined", "temperature": 0.6, "medoid": 16, "chosen": "yes"},
        ],
    )


def test_choices_are_those_of_the_prior_and_the_task(tmp_path: Path, monkeypatch) -> None:
    """Mutants: the first row, another task's or prior's, and settings that the solver has anyway;
    a contender without a choice that runs untuned, or that is taken for draws."""
    monkeypatch.setattr(draws, "CHOSEN", tmp_path / "tune_draws.csv")
    posterior = Posterior(LinearGaussian(dim=2), Denoise((1, 8, 8), sigma=0.05))
    tuned = BY_NAME[TUNED]
    assert tuned.estimate
    with pytest.raises(ValueError, match=r"holds nothing for Denoising"):
        tuned.changes(posterior)
    written(tmp_path / "tune_draws.csv")
    with pytest.raises(ValueError, match=r"tune_draws.csv holds nothing for Denoising on "):
        chosen(posterior)
    posterior.prior.path = "fashion_sd"
    assert chosen(posterior) == {"temperature": 0.6, "medoid": 16}
    assert tuned.changes(posterior) == {"refine": (2, 2, 2), "temperature": 0.6, "medoid": 16}
    untuned = replace(tuned, tuned=False)
    assert isinstance(untuned, Contender)
    assert untuned.changes(posterior) == {"refine": (2, 2, 2)}
    assert not untuned.estimate


def test_a_task_without_a_run_is_named(tmp_path: Path, capsys) -> None:
    """Mutant: a search that begins before it knows that there is nothing to search."""
    with pytest.raises(SystemExit, match=r"fashion_sd-inpaint holds no finished run; train it"):
        tune_draws.main(["--runs", str(tmp_path), "--out", str(tmp_path / "t.csv")])
    with pytest.raises(SystemExit, match=r"--n must be >= 1, got 0"):
        tune_draws.main(["--n", "0", "--out", str(tmp_path / "t.csv")])
    assert not list(tmp_path.iterdir())
