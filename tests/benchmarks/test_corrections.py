"""Corrections against long chains: the chains, the scores, and the command."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import corrections, gold
from benchmarks.corrections import CORRECTIONS, FLOOR, scores, solver_of, summary
from benchmarks.gold import Gold, spaced, stored_gold
from benchmarks.tables import read_csv
from outsourced.build import Problem
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.sampler import NoiseSampler
from outsourced.tasks import LinearMeasurement
from tests.benchmarks.test_inpaint import finish


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 2


@pytest.fixture
def problem() -> Problem:
    """An untrained sampler of a posterior that is known in closed form."""
    prior = LinearGaussian(matrix=matrix(4, 3, 0))
    posterior = Posterior(prior, LinearMeasurement(matrix(4, 4, 1), sigma=0.5))
    sampler = NoiseSampler(
        (3,), posterior.task.feature_shape, posterior, steps=3, width=8, depth=1, embedding=4
    )
    return Problem(posterior, sampler)


def exact(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (d, d) of z given y."""
    prior, task = problem.posterior.prior, problem.posterior.task
    columns = prior(torch.eye(3)) - prior(torch.zeros(1, 3))
    a = task.apply(columns) - task.apply(torch.zeros(1, 4))
    precision = torch.eye(3) + a @ a.T / 0.25
    offset = task.apply(prior(torch.zeros(1, 3)))
    return torch.linalg.solve(precision, a @ (y - offset).T / 0.25).T, torch.linalg.inv(precision)


def test_chains_are_the_posterior(problem: Problem, tmp_path: Path) -> None:
    """States of either start have the closed form's mean and spread; a file serves its y alone.

    Mutant: states before the burn-in, chains of one start only, observations that are swapped,
    chains of other observations or of another length taken from the file.
    """
    generator = torch.Generator().manual_seed(0)
    _, _, obs = problem.posterior.simulate(2, generator)
    path, pair = tmp_path / "gold.safetensors", (problem.sampler, problem.posterior)
    found = stored_gold(path, *pair, obs, 1500, 100, generator)
    mean, covariance = exact(problem, obs.y)
    for states in (found.own, found.other):
        assert states.shape == (600, 2, 3)
        deviation = covariance.diagonal().sqrt()
        assert ((states.mean(0) - mean).abs() / deviation).max() < 0.25
        torch.testing.assert_close(states.std(0), deviation.expand(2, 3), rtol=0.15, atol=0)
    assert not torch.equal(found.own, found.other)
    assert (found.rhat < 1.05).all()
    assert found.ess.min() > 300
    again = stored_gold(path, *pair, obs, 1500, 100, generator)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(found).values(), vars(again).values(), strict=True)
    )
    ran: list[object] = []
    for changed in ((obs[[1, 0]], 1500), (obs, 60)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gold, "run_gold", lambda *given: ran.append(given) or found)
            stored_gold(path, *pair, *changed, 100, generator)
    assert len(ran) == 2


def test_draws_are_of_both_starts() -> None:
    """Mutant: states of one start, early states only, more than asked for."""
    own = torch.arange(10.0).reshape(10, 1, 1)
    found = Gold(own, own + 100, torch.ones(1), torch.ones(1), torch.zeros(2))
    assert found.draws(4).flatten().tolist() == [0, 100, 9, 109]
    assert len(found.draws(5)) == 5
    with pytest.raises(ValueError, match="--n needs 11 states of chains, got 10"):
        spaced(own, 11)


def test_scores_are_of_one_observation_each() -> None:
    """Mutant: all observations in one test, a mean in the place of the median, chains that have
    not converged among those that have."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60, 3, 2, generator=generator)
    b[:, 2] += 4
    score = scores(a, b, 0)
    assert score[2] > 0.9
    assert (score[:2] < 0.7).all()
    rhat = torch.tensor([1.2, 1.01, 1.01])
    found = Gold(a, b, rhat, torch.tensor([50.0, 100.0, 400.0]), torch.tensor([3000.0, 1.0]))
    row = summary(torch.tensor([0.5, 0.55, 0.9]), found)
    assert row["c2st"] == pytest.approx(0.55)
    assert row["c2st_converged"] == pytest.approx(0.725)
    assert row["within"] == pytest.approx(2 / 3)
    assert row["gold_calls"] == pytest.approx(10)
    assert row["converged"] == pytest.approx(2 / 3)


def test_candidates_are_multiples_of_the_samples(problem: Problem) -> None:
    """Mutant: four candidates for any number of samples."""
    assert solver_of("importance", problem, 50).candidates == 200
    assert solver_of("importance, mala", problem, 7).candidates == 28
    assert solver_of("mala", problem, 7).candidates is None
    assert all(CORRECTIONS[name].get("moves", 50) == 50 for name in CORRECTIONS)


def test_command_fills_its_table_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: rows run twice, the floor taken for a correction, rows of other effort mixed."""
    folder, out = finish(tmp_path / "a", warm=False), tmp_path / "docs" / "c.csv"
    call = ["--quick", "--run", str(folder), "--out", str(out), "--kinds", "real"]
    call += ["--readme", str(tmp_path / "README.md"), "--corrections", "none", "pcn"]
    corrections.main(call)
    rows = read_csv(out)
    assert [row["correction"] for row in rows] == [FLOOR, "none", "pcn"]
    assert [row["calls"] for row in rows] == ["", "1.0", "53.0"]
    assert float(rows[1]["c2st"]) > 0.9  # the untrained sampler is the prior
    text = out.with_suffix(".md").read_text()
    assert f"Best (wanted: <= 0.6): real: pcn, {float(rows[2]['c2st']):.3f} with 53 calls" in text
    monkeypatch.setattr(corrections, "measure", None)
    corrections.main(call)
    with pytest.raises(SystemExit, match="rows with observations = 2, this call has 64"):
        corrections.main(call[1:])
