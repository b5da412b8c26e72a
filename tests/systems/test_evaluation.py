"""Figures of merit against direct computation and closed forms."""

import math

import pytest
import torch

from outsourced.evaluation import (
    Evaluator,
    against_truth,
    averages,
    residuals,
    summary,
    upper_bound,
)
from outsourced.losses import Losses
from outsourced.objectives import PathLikelihood
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples


def trained(problem, steps=150):
    """A sampler that is good, but not exact."""
    p = problem(steps=6)
    losses = Losses(p.sampler, p.posterior, PathLikelihood(), p.mixture(), 6)
    optimizer = torch.optim.Adam(p.sampler.parameters(), lr=3e-3)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        z, x, _ = p.posterior.simulate(64, generator)
        loss, _ = losses.likelihood({"z": z, "x": x}, 64, generator, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return p


def test_bounds_of_a_trained_sampler(problem) -> None:
    """ELBO < log Z < EUBO on average over observations, with the exact log Z between them.

    Mutants: EUBO from sampler paths (it would lie below), from draws of another y, the sign of a
    log-ratio.
    """
    p = trained(problem)
    evaluator = Evaluator(p.sampler, p.posterior, None, observations=64, n=128, seed=1)
    p.posterior.prior_calls = 17
    figures = evaluator()
    assert p.posterior.prior_calls == 17
    log_z = float(p.exact(evaluator.simulated)[2].mean())
    assert figures["simulated/elbo"] < log_z < figures["simulated/eubo"]
    assert figures["simulated/log_z"] == pytest.approx(log_z, abs=0.05)
    gap = figures["simulated/eubo"] - figures["simulated/elbo"]
    assert figures["simulated/gap"] == pytest.approx(gap)
    assert 0 < gap < 1.0
    assert 0.4 < figures["simulated/ess"] < 1
    assert abs(figures["simulated/residual"] - 0.75) < 0.15  # of 2 measurements of 2 unknowns
    assert figures == {**evaluator(), "simulated/seconds": figures["simulated/seconds"]}
    p.posterior.beta = 0.5
    assert "simulated/eubo" not in evaluator()


def test_untrained_sampler(problem, generator) -> None:
    """Its paths are the prior's: log-weights are rewards, so bounds are means of rewards.

    Mutant: log-weights of another temperature, an EUBO that averages before it subtracts.
    """
    p = problem()
    z, _, obs = p.posterior.simulate(5, generator)
    reward = p.posterior.log_reward(z, obs).double()
    eubo = upper_bound(p.sampler, p.posterior, obs, z, 3, generator)
    assert torch.allclose(eubo, reward, atol=1e-5)
    samples = Amortized(p.sampler, p.posterior)(obs, 400, generator)
    figures = summary(p.posterior, samples, obs)
    every = torch.stack([p.posterior.log_reward(part, obs) for part in samples.z]).double()
    assert torch.allclose(figures["elbo"], every.mean(0), atol=1e-4)
    assert torch.allclose(figures["log_z"], every.logsumexp(0) - math.log(400), atol=1e-4)
    weight = torch.softmax(every, 0)
    assert torch.allclose(figures["ess"], 1 / (400 * weight.square().sum(0)), atol=1e-5)


def test_residuals(problem, generator) -> None:
    """sqrt(mean((y - M x)^2)) / sigma of each sample under its own observation.

    Mutants: samples and observations flattened in different orders, a residual in units of y.
    """
    p = problem(measurements=2, sigma=0.3)
    _, _, obs = p.posterior.simulate(3, generator)
    samples = Amortized(p.sampler, p.posterior)(obs, 4, generator)
    expected = torch.stack(
        [
            torch.stack(
                [
                    ((obs.y[b] - p.matrix @ samples.x[i, b]) / 0.3).square().mean().sqrt()
                    for b in range(3)
                ]
            )
            for i in range(4)
        ]
    )
    assert torch.allclose(residuals(p.posterior, samples, obs), expected, rtol=1e-4)


def test_against_truth_by_hand() -> None:
    """Samples at distance 0.2 and 0.6 of a truth on [-1, 1]: PSNR is that of 0.1 and 0.3 on [0, 1].

    Mutants: data range 2, one PSNR of all samples, a truth of the next observation.
    """
    truth = torch.stack([torch.full((1, 16, 16), 0.1), torch.full((1, 16, 16), -0.3)])
    x = torch.stack([truth + 0.2, truth - 0.6])
    figures = against_truth(Samples(x, x, None, 0, 0.0), truth)
    psnr = 0.5 * (-20 * math.log10(0.1) - 20 * math.log10(0.3))
    assert figures["psnr"].tolist() == pytest.approx([psnr, psnr], rel=1e-4)
    assert figures["psnr_of_mean"].tolist() == pytest.approx([-20 * math.log10(0.1)] * 2, rel=1e-4)
    assert (figures["ssim"] < 1).all()
    assert against_truth(Samples(truth[None], truth, None, 0, 0.0), truth)["ssim"].tolist() == [
        1,
        1,
    ]


def test_averages() -> None:
    """Mutant: the median of other figures, or the mean ESS under the name of the median."""
    values = averages({"ess": torch.tensor([0.0, 0.1, 0.8]), "elbo": torch.tensor([1.0, 2.0, 6.0])})
    assert values == pytest.approx({"ess": 0.3, "ess_median": 0.1, "elbo": 3.0})


def test_bad_arguments(problem) -> None:
    """Mutant: an empty mean, which is NaN."""
    p = problem()
    with pytest.raises(ValueError, match=r"evaluate.observations must be >= 1, got 0"):
        Evaluator(p.sampler, p.posterior, None, 0, 4)
