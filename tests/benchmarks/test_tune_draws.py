"""The search for the draws of a task: its rule, what reads the choice, and the command."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import draws, tune_draws
from benchmarks.contenders import INVERSE, TUNED, Contender
from benchmarks.draws import best, chosen
from benchmarks.tables import read_csv, write_csv
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.solvers.base import Samples
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


def near(scale: float):
    """A solver whose images are the observations with noise of a scale, or that gives up."""

    def solve(obs, n, generator) -> Samples:
        if scale > 1:
            raise ValueError("it diverged")
        x = obs.y + scale * torch.randn(n, *obs.y.shape, generator=generator)
        return Samples(x, None, None, 0, 0.0)

    return solve


def test_search_marks_the_best_of_a_task_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rival that gives up does not end the search and is beaten by all.

    Mutants: a rival that may be chosen, several that are, residuals in other units, cells that run
    again, a choice that a second call forgets.
    """
    posterior = Posterior(LinearGaussian(dim=2), Denoise((1, 32, 32), sigma=0.05))
    noise = torch.rand(536, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 2 - 1
    problem = Namespace(posterior=posterior, sampler=None)
    monkeypatch.setattr(tune_draws, "problem_of", lambda *_: (problem, images))
    rivals = {"psld, 100": near(0.1), "psld paper, 100": near(9.0)}
    monkeypatch.setattr(tune_draws, "rivals_of", lambda *_: rivals)
    asked = []

    def sampler(_, __, refine, temperature, medoid):
        asked.append((temperature, medoid))
        return near(0.2 * temperature / medoid)

    monkeypatch.setattr(tune_draws, "Amortized", sampler)
    call = ["--quick", "--out", str(tmp_path / "t.csv"), "--readme", str(tmp_path / "README.md")]
    tune_draws.main(call)
    found = {(row["solver"], row["medoid"]): row for row in read_csv(tmp_path / "t.csv")}
    assert list(found) == [*((name, "") for name in rivals), ("refined", "1"), ("refined", "2")]
    assert [key for key, row in found.items() if row["chosen"]] == [("refined", "2")]
    assert asked == [(1.0, 1), (0.5, 2)]
    gone = found["psld paper, 100", ""]
    assert (gone["perceptual"], gone["note"]) == ("inf", "it diverged")
    observed = (found["psld, 100", ""], found["refined", "2"])
    residuals = [float(row["residual"]) for row in observed]
    assert residuals == pytest.approx([2.0, 1.0], rel=0.05)  # 0.1 and 0.05 in units of sigma
    assert "| inpaint | refined | 0.5 | 2 | 1 |" in (tmp_path / "t.md").read_text()

    def never(*_):
        raise AssertionError("it ran again")

    monkeypatch.setattr(tune_draws, "Judge", lambda *_: never)
    tune_draws.main(call)
    assert [r["chosen"] for r in read_csv(tmp_path / "t.csv")] == ["", "", "", "yes"]
    assert "inpaint | refined 0.5 2 | perceptual" in capsys.readouterr().out
