"""Figures of merit and chains on an exact and on an over-confident sampler."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.merit import (
    Effort,
    Findings,
    assess,
    averages,
    calibration,
    simulated,
    spread,
)
from benchmarks.yardstick import Chains, against_chains, run_chains, stored_chains
from outsourced.control import GATE_GAIN
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.sampler import NoiseSampler
from outsourced.tasks import LinearMeasurement

EFFORT = Effort(observations=640, n=64, upper_paths=4, chain=12, moves=400, burn_in=100)
DIM, SIGMA = 3, 0.15


def make(beta: float = 1.0, offset: float = 0.0) -> tuple[NoiseSampler, Posterior]:
    """The closed-form sampler of a linear-Gaussian problem: open gates, zero network outputs.

    With beta > 1 it samples the posterior of a likelihood to that power, which is too narrow; an
    offset of the gates makes its drift too long or too short.
    """
    task = LinearMeasurement(measurements=DIM, dim=DIM, seed=3, sigma=SIGMA)
    believed = Posterior(LinearGaussian(DIM), task, beta)
    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": 6, "width": 16, "depth": 1, "embedding": 8}
    sampler = NoiseSampler((DIM,), (DIM,), believed, informed="gauss_newton", **options)
    with torch.no_grad():
        sampler.control.gate[0] = (1 + offset) / GATE_GAIN
        sampler.control.gate[1] = 1 / GATE_GAIN
    return sampler, Posterior(LinearGaussian(DIM), task)


def figures(sampler: NoiseSampler, posterior: Posterior) -> tuple[Findings, dict[str, float]]:
    findings = assess(sampler, posterior, simulated(posterior, EFFORT), EFFORT, progress=False)
    return findings, averages(findings, EFFORT)


def exact_residual(posterior: Posterior, y: Tensor) -> Tensor:
    """Mean residual under the closed-form posteriors of y (B, DIM), by 4000 draws each."""
    task = posterior.task
    assert isinstance(task, LinearMeasurement)
    mean, covariance, _ = posterior.prior.noise_posterior(  # type: ignore[operator]
        task.matrix, y.double(), SIGMA
    )
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(4000, 1, DIM, generator=generator, dtype=torch.float64)
    z = mean + noise @ torch.linalg.cholesky(covariance).mT
    square = ((y - z @ task.matrix.double().mT) / SIGMA).square()
    return square.mean(-1).sqrt().mean(0)


@pytest.fixture(scope="module")
def exact() -> tuple[Findings, dict[str, float]]:
    return figures(*make())


@pytest.fixture(scope="module")
def narrow() -> tuple[Findings, dict[str, float]]:
    return figures(*make(beta=1.7))


# ---------------------------------------------------------------- figures


def test_exact_sampler_has_no_gap_and_is_calibrated(
    exact: tuple[Findings, dict[str, float]],
) -> None:
    """Mutant: z of one y scored under another, ELBO and EUBO of different rewards, ranks in x."""
    findings, values = exact
    assert values["gap"] == pytest.approx(0, abs=1e-3)
    assert values["elbo"] == pytest.approx(values["log_z"], abs=1e-3)
    assert values["ess_median"] > 0.999
    assert values["drawn_p_min"] > 1e-3
    assert values["corrected_p_min"] > 1e-3
    assert len(findings.ranks["corrected"]) == EFFORT.observations
    assert values["share_corrected"] == 1


def test_residual_is_that_of_the_posterior(exact: tuple[Findings, dict[str, float]]) -> None:
    """Mutant: a residual of the mean sample, not in units of sigma, or chunks in another order."""
    findings, values = exact
    _, posterior = make()
    truth = exact_residual(posterior, simulated(posterior, EFFORT).obs.y)
    for name in ("residual", "residual_corrected"):  # 64 samples each: sd 0.06 an observation
        assert float((findings.figures[name] - truth).abs().mean()) < 0.08
        assert float(findings.figures[name].mean() / truth.mean()) == pytest.approx(1, abs=0.015)
    # One draw for each y: its sd of about 0.45 leaves 0.03 over 640 observations.
    assert values["residual_truth"] == pytest.approx(float(truth.mean()), abs=0.09)
    assert abs(values["excess_corrected"]) < 1e-3


def test_overconfident_sampler_is_found_out_and_repaired(
    narrow: tuple[Findings, dict[str, float]],
) -> None:
    """Mutant: ranks of the corrected draws in the place of the drawn; a correction by uniform
    weights; p-values of pooled coordinates."""
    findings, values = narrow
    assert values["drawn_p_min"] < 1e-5
    assert values["gap"] > 0.2
    # Ranks in 0..7, uniform: variance 63 / 12; 5.8 of the uncorrected draws.
    deviation = findings.ranks["corrected"].double() - 3.5
    assert float(deviation.square().mean()) == pytest.approx(5.25, abs=0.3)
    assert values["corrected_p_min"] > 1e-3
    assert values["log_z"] - values["elbo"] > 0.1
    _, posterior = make()
    truth = exact_residual(posterior, simulated(posterior, EFFORT).obs.y)
    there = ~findings.figures["residual_corrected"].isnan()
    drawn, corrected = (
        float(findings.figures[name][there].mean() / truth[there].mean()) - 1
        for name in ("residual", "residual_corrected")
    )
    assert abs(corrected) < abs(drawn) / 3
    assert values["excess_corrected"] == pytest.approx((1 + drawn) / (1 + corrected) - 1, abs=1e-6)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the last, shorter chunk is dropped, or figures are averaged over chunks."""
    sampler, posterior = make(beta=1.7)
    effort = Effort(observations=10, n=64, chain=0)
    cases = simulated(posterior, effort)
    monkeypatch.setattr("benchmarks.merit.ROWS", 256)
    found = assess(sampler, posterior, cases, effort, progress=False).figures
    whole = Effort(observations=10, n=64, chain=0, seed=1)
    monkeypatch.setattr("benchmarks.merit.ROWS", 4096)
    other = assess(sampler, posterior, cases, whole, progress=False).figures
    assert len(found["elbo"]) == 10
    spread_of_elbo = float(other["elbo"].std())
    assert float((found["elbo"] - other["elbo"]).abs().max()) < 0.35 * spread_of_elbo


def test_too_few_effective_samples_are_left_out() -> None:
    """Mutant: means over NaN, corrected figures of single samples, ranks of degenerate weights."""
    sampler, posterior = make(offset=-0.2)
    effort = Effort(observations=60, n=31, upper_paths=2, chain=0)
    findings = assess(sampler, posterior, simulated(posterior, effort), effort, progress=False)
    usable = findings.figures["ess"] * 31 >= 20
    assert 0 < int(usable.sum()) < 60
    assert torch.equal(~findings.figures["residual_corrected"].isnan(), usable)
    assert len(findings.ranks["corrected"]) == int(usable.sum())
    values = averages(findings, effort)
    assert values["share_corrected"] == pytest.approx(float(usable.double().mean()))
    assert math.isfinite(values["residual_corrected"])
    matched = findings.figures["residual"][usable].mean()
    expected = matched / findings.figures["residual_corrected"][usable].mean() - 1
    assert values["excess_corrected"] == pytest.approx(float(expected))


def test_spread_tells_hidden_from_observed_pixels() -> None:
    """Mutant: mask taken the other way round, mean of standard deviations, spread over images."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 1, 6, 8)
    mask[0, :, :2], mask[1, :, :, 3:] = 0, 0
    scale = torch.where(mask == 1, 0.1, torch.tensor([0.5, 0.9])[:, None, None, None])
    shift = torch.arange(2.0)[:, None, None, None]
    x = shift + scale * torch.randn(4000, 2, 1, 6, 8, generator=generator)
    found = spread(x, mask)
    torch.testing.assert_close(
        found["std_hidden"], torch.tensor([0.5, 0.9]).double(), rtol=0.02, atol=0
    )
    torch.testing.assert_close(
        found["std_observed"], torch.full((2,), 0.1).double(), rtol=0.02, atol=0
    )


@pytest.mark.parametrize(("count", "bins"), [(512, 16), (79, 8), (12, 2)])
def test_calibration_uses_as_many_bins_as_ranks_allow(count: int, bins: int) -> None:
    """Mutant: bins that do not divide the ranks, or that expect fewer than 5."""
    rank = torch.arange(count)[:, None] * 128 // count
    rank[:, 0] = rank[:, 0] // (128 // bins) * (128 // bins)  # uniform over the bins
    values = calibration(torch.cat([rank, torch.zeros_like(rank)], 1), 127)
    assert (values["p_below"], values["p_of"]) == (1, 2)
    assert values["p_min"] < 1e-2
    assert calibration(rank[:9], 127) == {}


# ---------------------------------------------------------------- chains


@pytest.fixture(scope="module")
def chains() -> Chains:
    sampler, posterior = make(beta=1.7)
    return run_chains(sampler, posterior, simulated(posterior, EFFORT).obs[:12], EFFORT)


def test_chains_are_a_yardstick(chains: Chains) -> None:
    """Mutant: chains and observations transposed, the burn-in kept, R-hat of equal starts."""
    sampler, posterior = make()
    cases = simulated(posterior, EFFORT)
    truth = exact_residual(posterior, cases.obs.y[:12])
    assert int(chains.converged.sum()) >= 10
    assert float(chains.residual.mean() / truth.mean()) == pytest.approx(1, abs=0.04)
    assert float((chains.residual - truth).abs().max()) < 0.25
    found = against_chains(sampler, posterior, cases, chains, 4, 0)
    assert found["eubo_chain"].shape == (640,)
    assert torch.equal(found["residual_chain"][:12].isnan(), ~chains.converged)
    assert found["eubo_chain"][12:].isnan().all()
    # The exact sampler weighs every posterior path by Z, whichever states the chains gave.
    _, _, log_z = posterior.prior.noise_posterior(
        posterior.task.matrix, cases.obs.y.double(), SIGMA
    )
    there = chains.converged.nonzero().flatten()
    torch.testing.assert_close(found["eubo_chain"][there], log_z[there], atol=2e-3, rtol=0)


def test_chains_of_other_observations_are_not_reused(
    chains: Chains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a cache that knows the seed only, or one that is never read."""
    calls: list[int] = []

    def fake(*_: Any) -> Chains:
        calls.append(1)
        return chains

    monkeypatch.setattr("benchmarks.yardstick.run_chains", fake)
    sampler, posterior = make()
    cases, path = simulated(posterior, EFFORT), tmp_path / "chains.safetensors"
    for _ in range(2):
        kept = stored_chains(path, sampler, posterior, cases, EFFORT)
    assert len(calls) == 1
    torch.testing.assert_close(kept.rhat, chains.rhat)
    other = simulated(posterior, Effort(640, 64, seed=5, chain=12))
    stored_chains(path, sampler, posterior, other, EFFORT)
    assert len(calls) == 2
