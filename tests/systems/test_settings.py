"""Settings of training: rates, the data of each step, and what is refused."""

import pytest
import torch

from outsourced.objectives import LogVariance, PathLikelihood
from outsourced.stepdata import PairData, StepData
from outsourced.training import SamplerTraining


def test_learning_rate(module_of, problem) -> None:
    """Values by hand: a ramp of 4 steps times a cosine from the peak to final_lr, in each phase.

    Mutants: a ramp that starts at 0 (a lost step), one cosine for both phases, an end at 0.
    """
    options = {"max_steps": 300, "warm_steps": 100, "ramp": 4, "final_lr": 0.1}
    module = module_of(problem(), lr=1.0, balance_lr=0.5, **options)
    assert module.rate(0) == pytest.approx(0.25)
    assert module.rate(50) == pytest.approx(0.55)
    assert module.rate(99) == pytest.approx(0.1, abs=1e-3)
    assert module.rate(100) == pytest.approx(0.125)
    assert module.rate(200) == pytest.approx(0.5 * 0.55)
    assert module.rate(299) == pytest.approx(0.05, abs=1e-3)
    only = module_of(problem(), PathLikelihood(), lr=1.0, balance_lr=0.5, **options)
    assert only.rate(150) == pytest.approx(0.55)


def test_data_of_a_step_depend_on_the_step_alone(settings, problem, tmp_path) -> None:
    """Item i of data that start at s is item s + i of all, with the rows that both phases read.

    Mutants: a generator that runs on, rows of the bank whose x is another's, or training pairs
    among those that are looked up.
    """
    bank, s = problem().bank(tmp_path, 64), settings(batch=4, groups=7)
    images = torch.arange(50.0)[:, None]
    whole, rest = StepData(bank, images, s, 0), StepData(bank, images, s, 5)
    assert len(list(whole)) == 12
    assert len(list(rest)) == 7
    for a, b in zip(list(whole)[5:], rest, strict=True):
        assert a["step"] == b["step"]
        assert all(torch.equal(a[name], b[name]) for name in ("z", "x", "images"))
        assert torch.equal(a["z"], a["x"])
    items = list(whole)
    assert items[0]["z"].shape == (7, 2)
    assert len({tuple(item["images"].flatten().tolist()) for item in items}) == 12
    kept = StepData(bank, images, s, 0, reserved=62)
    allowed = {tuple(row.tolist()) for row in bank.rows(torch.tensor([62, 63]))[0]}
    assert {tuple(row.tolist()) for item in kept for row in item["z"]} == allowed
    with pytest.raises(ValueError, match=r"data.bank_size must be > sampler.lookup = 64, got 64"):
        PairData(bank, images, s, reserved=64)
    with pytest.raises(ValueError, match=r"data.observations=mixed needs data.images"):
        PairData(bank, None, settings(observations="mixed"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "trainer.max_steps must be >= 1, got 0"),
        ({"warm_steps": -1}, "trainer.warm_steps must be >= 0, got -1"),
        ({"clip": 0.0}, "trainer.clip must be > 0"),
        ({"ema": 1.0}, r"trainer.ema must lie in \[0, 1\)"),
        ({"anneal_ess": 1.0}, "trainer.anneal_ess"),
        ({"collapse": 0.0}, "trainer.collapse must be > 0 or null, got 0.0"),
        ({"lr": float("nan")}, "trainer.lr must be > 0, got nan"),
        ({"observations": "all"}, "simulated, images, mixed, got 'all'"),
    ],
)
def test_bad_settings(settings, options, message) -> None:
    """Mutant: no check, or one that NaN passes."""
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_likelihood_needs_beta_one(module_of, problem) -> None:
    """Simulated pairs are posterior draws at beta = 1 only.

    Mutant: a warm start towards the wrong posterior, silently.
    """
    p = problem()
    for options, objective, message in (
        ({"beta_start": 0.1, "warm_steps": 6}, LogVariance(), "trainer.warm_steps must be 0"),
        ({"beta_start": 0.1, "warm_steps": 0}, PathLikelihood(), "needs posterior.beta=1"),
        ({"beta_start": 1.5, "warm_steps": 0}, LogVariance(), "below posterior.beta"),
    ):
        with pytest.raises(ValueError, match=message):
            module_of(p, objective, **options)
    p.posterior.beta = 0.5
    with pytest.raises(ValueError, match=r"trainer.likelihood_weight must be 0"):
        module_of(p, warm_steps=0, likelihood_weight=0.1)
    module_of(p, warm_steps=0)


def test_annealing_needs_paths(settings, problem) -> None:
    """Mutant: two paths, whose ESS is never below one half, so that beta jumps at once."""
    p = problem()
    parts = p.sampler, p.posterior, LogVariance(), p.mixture(2)
    with pytest.raises(ValueError, match=r"anneal_ess must be > 0.5, which 2 paths always have"):
        SamplerTraining(*parts, settings(warm_steps=0, beta_start=0.1))
