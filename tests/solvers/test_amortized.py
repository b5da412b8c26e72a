"""The amortised solver: its weights, its correction, its bookkeeping."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.sampler import NoiseSampler
from outsourced.solvers import Amortized
from outsourced.solvers.resampling import resample
from outsourced.tasks import LinearMeasurement, Observation

MATRIX, SIGMA = torch.tensor([[1.0, 0.5]]), 0.7


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LinearGaussian(matrix=[[1.0, 0.0], [0.5, 2.0]], bias=[0.3, -0.2])
    return Posterior(prior, LinearMeasurement(MATRIX, sigma=SIGMA), beta=0.8)


def new_sampler(posterior: Posterior, perturb: float = 0.0) -> NoiseSampler:
    torch.manual_seed(0)
    sampler = NoiseSampler((2,), (1,), posterior, steps=4, width=16, depth=1, embedding=8)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.add_(perturb * torch.randn(parameter.shape))
    return sampler


def observations(*y: float) -> Observation:
    return Observation(torch.tensor(y)[:, None], {}, torch.full((len(y),), SIGMA))


def exact(posterior: Posterior, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and covariance of z; beta scales the noise variance."""
    scale = SIGMA / math.sqrt(posterior.beta)
    return posterior.prior.noise_posterior(MATRIX, obs.y, scale)


def test_weights_of_the_untrained_sampler(posterior, generator) -> None:
    """Its draws are the prior's, so that the weight is beta log r of that draw and observation.

    Mutant: forget beta; pair draws (n, B) with observations in the order of `Observation.repeat`.
    """
    obs = observations(-1.0, 0.5, 3.0)
    samples = Amortized(new_sampler(posterior), posterior)(obs, 5, generator)
    torch.testing.assert_close(samples.x[2, 1:2], posterior.prior(samples.z[2, 1:2]))
    gap = (obs.y[:, 0] - samples.x @ MATRIX[0]) / SIGMA
    log_r = -0.5 * gap.square() - math.log(SIGMA * math.sqrt(2 * math.pi))
    torch.testing.assert_close(samples.log_weight, 0.8 * log_r)
    torch.testing.assert_close(samples.proposal_log_weight, samples.log_weight)
    assert samples.prior_calls == 15


@pytest.mark.parametrize("perturb", [0.0, 0.08])
def test_importance_recovers_the_posterior(posterior, generator, perturb: float) -> None:
    """An untrained and a randomly biased sampler, corrected, have the closed-form posterior.

    Mutant: leave log_ratio out of the weights, or give it the other sign; no resampling;
    resample z but not x.
    """
    obs, m, n = observations(0.4, 2.0), 16_000, 4_000
    sampler = new_sampler(posterior, perturb)
    solver = Amortized(sampler, posterior, "importance", candidates=m, chunk=m * 2)
    samples = solver(obs, n, generator)
    mean, covariance, _ = exact(posterior, obs)
    weight = samples.proposal_log_weight.softmax(0)
    ess = 1 / weight.square().sum(0)
    assert samples.log_weight is None
    assert samples.prior_calls == 2 * m
    std = covariance.diagonal().sqrt()
    for b in range(2):
        error = (1 / ess[b] + 1 / n).sqrt()
        assert ess[b] > 300
        assert ((samples.z[:, b].mean(0) - mean[b]).abs() < 5 * std * error).all()
        gap = samples.z[:, b].T.cov() - covariance
        assert (gap.abs() < 5 * math.sqrt(2) * error * torch.outer(std, std)).all()
        torch.testing.assert_close(samples.x[:9, b], posterior.prior(samples.z[:9, b]))
    if perturb:  # the proposals themselves are far off
        raw = Amortized(sampler, posterior)(obs, n, generator).z.mean(0)
        assert ((raw - mean).abs() > 0.2).any()


@pytest.mark.parametrize("correct", [None, "importance"])
def test_batch_equals_single_calls(posterior, correct: str | None) -> None:
    """Chunks of one observation give what single calls give, in order, whatever the others are.

    Mutant: chunks joined along the samples, the last chunk dropped, weights over the batch.
    """
    obs = observations(0.4, -2.0, 40.0)
    solver = Amortized(new_sampler(posterior, 0.2), posterior, correct, chunk=1)
    together, apart = (torch.Generator().manual_seed(5) for _ in range(2))
    batch = solver(obs, 6, together)
    for b in range(3):
        single = solver(obs[b], 6, apart)
        torch.testing.assert_close(batch.z[:, b], single.z[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(batch.x[:, b], single.x[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(
            batch.proposal_log_weight[:, b : b + 1], single.proposal_log_weight
        )


def test_medoids_are_the_draws_nearest_to_the_others(posterior, generator) -> None:
    """Of each group of an observation the one of least summed squared distances, with its own z,
    one after the other by definition; in chunks as in one piece, and less spread than draws.

    Mutants: the mean of all groups or observations, the farthest, groups that are strided, z of
    another draw, weights of draws that were chosen, one chunk too wide for the draws.
    """
    obs, n, m = observations(0.4, -2.0), 3, 5
    sampler = new_sampler(posterior, 0.2)
    draws = Amortized(sampler, posterior)(obs, n * m, torch.Generator().manual_seed(5))
    calls = posterior.prior_calls
    kept = Amortized(sampler, posterior, medoid=m)(obs, n, torch.Generator().manual_seed(5))
    assert posterior.prior_calls - calls == kept.prior_calls == 2 * n * m
    for b in range(2):
        for i in range(n):
            group = draws.x[i * m : (i + 1) * m, b]
            costs = [sum(float((x - other) @ (x - other)) for other in group) for x in group]
            best = i * m + costs.index(min(costs))
            assert torch.equal(kept.x[i, b], draws.x[best, b])
            assert torch.equal(kept.z[i, b], draws.z[best, b])
    assert kept.log_weight is None
    assert kept.proposal_log_weight is None
    chunked = Amortized(sampler, posterior, medoid=m, chunk=n * m)
    whole = chunked(obs, n, torch.Generator().manual_seed(5)).x[:, 0]
    first = chunked(obs[0], n, torch.Generator().manual_seed(5)).x[:, 0]
    assert torch.equal(whole, first)
    far = Amortized(sampler, posterior)(obs, 500, generator).x
    near = Amortized(sampler, posterior, medoid=m)(obs, 500, generator).x
    assert near.std(0).max() < 0.8 * far.std(0).max()


def test_default_candidates(posterior, generator) -> None:
    """max(4 n, 64) proposals per observation, each decoded once, in chunks that hold them.

    Mutant: decode proposals twice, once for the reward and once for the samples.
    """
    solver = Amortized(new_sampler(posterior), posterior, "importance", chunk=100)
    for n, m in ((3, 64), (30, 120)):
        samples = solver(observations(0.1, 0.2), n, generator)
        assert samples.z.shape == samples.x.shape == (n, 2, 2)
        assert samples.proposal_log_weight.shape == (m, 2)
        assert samples.prior_calls == 2 * m


def test_systematic_counts(generator: torch.Generator) -> None:
    """Every candidate appears floor or ceil of n w times, n w on average, each column apart.

    Mutant: multinomial draws; one offset u / m; zero weights drawn; a softmax over columns.
    """
    log_weight = torch.randn(7, 3, generator=generator)
    log_weight[0, 0] = log_weight[6, 1] = log_weight[3] = -math.inf
    log_weight[:, 2] += 3000.0
    share, n, total = 5 * log_weight.double().softmax(0), 5, torch.zeros(7, 3)
    for _ in range(2000):
        index = resample(log_weight, n, generator)
        count = torch.stack([torch.bincount(c, minlength=7) for c in index.T], 1)
        assert ((count >= share.floor()) & (count <= share.ceil())).all()
        total += count / 2000
    assert index.shape == (n, 3)
    assert (total - share).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_resampling_refuses_useless_weights() -> None:
    """NaN, +inf and all-zero columns are named. Mutant: softmax of them, and index 0 for ever."""
    good = torch.zeros(4)
    bad = torch.stack([good, good.log(), good + torch.tensor([0, 0, 0, torch.nan]), -good.log()], 1)
    with pytest.raises(ValueError, match=r"for observations \[1, 2, 3\]"):
        resample(bad, 2)


def test_errors(posterior) -> None:
    """Refused before any work. Mutant: candidates without correction, silently ignored."""
    sampler, obs = new_sampler(posterior), observations(0.0)
    calls = posterior.prior_calls
    with pytest.raises(ValueError, match=r"must be null or one of importance, smc, .* got 'mcmc'"):
        Amortized(sampler, posterior, "mcmc")
    with pytest.raises(ValueError, match=r"candidates needs solver\.correct=importance|.*None"):
        Amortized(sampler, posterior, candidates=9)
    for correct, option in (
        *((None, "moves"), ("importance", "moves"), ("smc", "moves"), ("imh", "candidates")),
        *((None, "step"), ("imh", "step")),
    ):
        with pytest.raises(ValueError, match=rf"{option} needs .* got {option}=3 with .*{correct}"):
            Amortized(sampler, posterior, correct, **{option: 3})
    with pytest.raises(ValueError, match=r"sampler\.flow=true or sampler\.informed=gauss_newton"):
        Amortized(sampler, posterior, "smc")
    with pytest.raises(ValueError, match=r"step must be > 0 and <= 1\.571 for hmc, got 2"):
        Amortized(sampler, posterior, "hmc", step=2)
    with pytest.raises(ValueError, match=r"solver\.chunk must be >= 1, got 0"):
        Amortized(sampler, posterior, chunk=0)
    with pytest.raises(ValueError, match=r"solver\.medoid must be >= 1, got 0"):
        Amortized(sampler, posterior, medoid=0)
    with pytest.raises(ValueError, match=r"medoid > 1 chooses among unc.*got 4 with correct=imh"):
        Amortized(sampler, posterior, "imh", medoid=4)
    with pytest.raises(ValueError, match="n >= 1 samples per observation, got 0"):
        Amortized(sampler, posterior)(obs, 0)
    with pytest.raises(ValueError, match="at least one observation"):
        Amortized(sampler, posterior)(replace(obs, y=obs.y[:0], sigma=obs.sigma[:0]), 1)
    with pytest.raises(ValueError, match=r"candidates must be >= n = 9 .* got 8"):
        Amortized(sampler, posterior, "importance", candidates=8)(obs, 9)
    assert posterior.prior_calls == calls
