"""Noise models: shot noise against torch's Poisson law, and what it refuses."""

import math

import pytest
import torch
from torch.distributions import Poisson

from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.tasks import (
    Deblur,
    Denoise,
    GaussianKernel,
    Inpaint,
    LinearMeasurement,
    Measurement,
    Observation,
    RandomBox,
    SuperResolution,
    Task,
)

SHAPE = (1, 12, 12)
TASKS = {
    "denoise": lambda noise: Denoise(SHAPE, (0.1, 0.6), noise),
    "inpaint": lambda noise: Inpaint(SHAPE, RandomBox(2, 5), (0.1, 0.6), noise),
    "deblur": lambda noise: Deblur(SHAPE, GaussianKernel((0.5, 1.0)), (0.1, 0.6), noise=noise),
    "superres": lambda noise: SuperResolution(SHAPE, 2, (0.1, 0.6), noise=noise),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(task, n=4, dtype=torch.float32):
    x = torch.rand((n, *task.data_shape), generator=generator(7), dtype=dtype) * 2 - 1
    return x, task.sample(x, generator(8))


@pytest.mark.parametrize("name", TASKS)
def test_log_reward_is_the_poisson_log_probability_of_the_counts(name):
    """Counts and rates written out from the definition: 4 / sigma^2 photons at white, one dark.

    Mutants: the factorial dropped, the peak of sample 0 for all, the dark photon left out of the
    counts or of the rate, a Gaussian of equal variance, hidden entries counted.
    """
    task = TASKS[name]("poisson")
    x, obs = draw(task)
    x = (x + 0.1 * torch.randn(x.shape, generator=generator(1))).clamp(-1, 1)
    peak = (4 / obs.sigma.double() ** 2).view(-1, 1, 1, 1)
    counts = (peak * (obs.y.double() + 1) / 2 + 1).round()
    rate = peak * (task.apply(x, obs.params).double().clamp_min(-1) + 1) / 2 + 1
    mask = obs.params.get("mask", torch.ones(1)).double()
    expected = (Poisson(rate).log_prob(counts) * mask).flatten(1).sum(1)
    torch.testing.assert_close(task.log_reward(x, obs).double(), expected, rtol=1e-5, atol=1e-3)
    single = torch.cat([task.log_reward(x[i : i + 1], obs[i]) for i in range(4)])
    torch.testing.assert_close(task.log_reward(x, obs), single, rtol=1e-5, atol=1e-4)


def test_draws_are_counts_of_the_stated_mean_and_variance():
    """Mutants: sigma as the deviation at black, a biased mean, noise that does not grow with the
    light, more than one dark photon, one draw for the batch."""
    task = Denoise((1, 1, 1), 0.2, "poisson")
    for level in (-1.0, 0.0, 1.0):
        y = task.sample(torch.full((40000, 1, 1, 1), level), generator()).y.flatten()
        rate = 100 * (level + 1) / 2 + 1
        std = math.sqrt(rate) * 0.02
        assert abs(y.mean() - level) < 5 * std / 200
        assert abs(y.std() / std - 1) < 0.04
        counts = (y + 1) * 50 + 1
        assert (counts - counts.round()).abs().max() < 1e-3
        assert counts.min() > -1e-3


@pytest.mark.parametrize("name", TASKS)
def test_jacobian_and_residual_give_the_gradient_of_the_log_reward(name):
    """-J^T residual is the derivative along any tangent, which Gauss-Newton relies on.

    Mutants: the deviation at white in the Jacobian, that of y for that of A(x), a factor 2; no
    stop where the rate is dark anyway.
    """
    task = TASKS[name]("poisson").double()
    x, obs = draw(task, 3, torch.float64)
    x = x - 0.3  # some pixels are blacker than black
    tangent = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
    _, slope = torch.func.jvp(lambda u: task.log_reward(u, obs), (x,), (tangent,))
    jacobian = task.whitened_jacobian(tangent[None], x, obs)[0]
    product = -(jacobian * task.whitened_residual(x, obs)).sum(1)
    assert slope.abs().min() > 0.1
    torch.testing.assert_close(product, slope)


def test_residual_of_the_truth_has_unit_variance():
    """Mutant: (y - A x) / sigma, which is too small wherever it is not white."""
    task = TASKS["inpaint"]("poisson")
    x, obs = draw(task, 300)
    square = task.whitened_residual(x, obs).square().sum() / task.count(obs).sum()
    assert abs(square - 1) < 0.03


def test_no_data_exceed_the_bound():
    """The bound of rejection sampling is reached where every rate is its count.

    Mutants: the Gaussian bound, a bound below what data reach.
    """
    task = TASKS["denoise"]("poisson")
    x, obs = draw(task, 5)
    bound = task.log_bound(obs)
    fitted = task.log_reward(obs.y, obs)
    assert (task.log_reward(x, obs) < bound - 10).all()
    dark = (obs.y < -1).flatten(1).sum(1)  # counted less than the dark rate: out of reach
    assert (fitted - bound).abs()[dark == 0].sum() < 1e-3
    assert (fitted <= bound + 1e-3).all()
    assert bound.isfinite().all()


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
@pytest.mark.parametrize("name", TASKS)
def test_pairwise_rewards_are_those_of_single_pairs(name, noise):
    """Up to a constant of the observation. Mutants: a fast path for Gaussian noise taken under
    shot noise or for operators that differ, a noise level that all observations share."""
    task = TASKS[name](noise)
    x = torch.rand(6, *SHAPE, generator=generator()) * 2 - 1
    obs = task.sample(torch.rand(3, *SHAPE, generator=generator(1)), generator(2))
    fast, slow = task.pairwise_log_reward(x, obs), Task.pairwise_log_reward(task, x, obs)
    assert fast.shape == (6, 3)
    torch.testing.assert_close(fast - fast[:1], slow - slow[:1], rtol=1e-4, atol=0.05)
    assert slow.std(0).min() > 3


def test_gauss_newton_climbs_shot_noise():
    """The matrix and the gradient that Gauss-Newton gets under shot noise are those of a vector
    problem written out: W^T diag(1 / (rate deviation^2)) W.

    Mutant: the constant noise level of the Gaussian likelihood.
    """
    weight = 0.2 * torch.randn(12, 3, generator=generator())
    prior = LinearGaussian(matrix=weight)
    task = Measurement(_identity(), (12,), 0.3, noise="poisson")
    posterior = Posterior(prior, task)
    z, _, obs = posterior.simulate(2, generator(1))
    _, gradient, matrix = posterior.gauss_newton(z, obs)
    _, exact = posterior.grad_log_reward(z, obs)
    rate = 2 / 0.09 * (z @ weight.T + 1) + 1
    information = (2 / 0.09) ** 2 / rate
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-3)
    expected = torch.einsum("ma,nm,mb->nab", weight, information, weight)
    torch.testing.assert_close(matrix, expected, rtol=1e-4, atol=1e-3)


def _identity():
    from deepinv.physics import Denoising, ZeroNoise

    return Denoising(ZeroNoise())


def test_errors_name_the_noise():
    """Mutants: unknown names fall back to Gaussian; counts below none; counted coefficients."""
    with pytest.raises(
        ValueError, match=r"task\.noise must be one of gaussian, poisson, got 'shot'"
    ):
        Denoise(SHAPE, 0.1, "shot")
    matrix = LinearMeasurement(measurements=4, dim=30, seed=0, sigma=0.1).physics
    with pytest.raises(ValueError, match=r"poisson needs measurements in \[-1, 1\].*reach"):
        Measurement(matrix, (30,), 0.1, noise="poisson")
    task = Denoise(SHAPE, 0.2, "poisson")
    x, obs = draw(task)
    with pytest.raises(ValueError, match=r"must be >= -1 - sigma\^2 / 2 under Poisson"):
        task.log_reward(x, Observation(obs.y - 1, {}, obs.sigma))
