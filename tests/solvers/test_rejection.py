"""Rejection and importance sampling from the prior, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.solvers import Importance, Rejection
from outsourced.tasks import LinearMeasurement, Observation, Task

MATRIX, SIGMA, BETA = torch.tensor([[1.0, 0.5]]), 0.7, 0.8


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LinearGaussian(matrix=[[1.0, 0.0], [0.5, 2.0]], bias=[0.3, -0.2])
    return Posterior(prior, LinearMeasurement(MATRIX, sigma=SIGMA), beta=BETA, chunk=1000)


def observations(*y: float) -> Observation:
    return Observation(torch.tensor(y)[:, None], {}, torch.full((len(y),), SIGMA))


def truth(posterior: Posterior, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
    wide = SIGMA / BETA**0.5
    mean, covariance, log_z = posterior.prior.noise_posterior(MATRIX, obs.y.double(), wide)
    norm = math.log(wide * math.sqrt(2 * math.pi)) - BETA * math.log(SIGMA * math.sqrt(2 * math.pi))
    return mean, covariance, log_z + norm


def check_moments(z: Tensor, mean: Tensor, covariance: Tensor, n: float) -> None:
    """Within 5 errors of n independent draws."""
    std = covariance.diagonal().sqrt()
    for b in range(z.shape[1]):
        assert ((z[:, b].mean(0) - mean[b]).abs() < 5 * std / math.sqrt(n)).all()
        gap = z[:, b].double().T.cov() - covariance
        assert (gap.abs() < 5 * torch.outer(std, std) * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("slack", [None, 0.5])
def test_rejection_is_exact(posterior, generator, slack: float | None) -> None:
    """Moments of 6000 independent draws, and log Z, with the task's bound or a looser one.

    Mutant: beta left out of the bound or of the reward; the largest reward seen as the bound; x of
    other z; acceptance by the density of the first observation.
    """
    obs, n = observations(0.4, 2.5), 6000
    top = -math.log(SIGMA * math.sqrt(2 * math.pi))
    solver = Rejection(posterior, None if slack is None else top + slack)
    samples = solver(obs, n, generator)
    mean, covariance, log_z = truth(posterior, obs)
    check_moments(samples.z, mean, covariance, n)
    torch.testing.assert_close(samples.x[:50, 1], posterior.prior(samples.z[:50, 1]))
    found = samples.diagnostics
    assert ((found["log_z"] - log_z).abs() < 5 * found["log_z_std"]).all()
    assert (found["log_z_std"] < 0.02).all()
    loss = 0.0 if slack is None else BETA * slack
    expected = (log_z - BETA * top - loss).exp()
    torch.testing.assert_close(found["acceptance"], expected, rtol=0.06, atol=0)
    assert len(samples.z[:, 0].unique(dim=0)) == n


def test_shared_draws_equal_single_calls(posterior) -> None:
    """Observations at once give what single calls give, the prior calls of the slowest one.

    Mutant: uniform numbers drawn for the open observations only; a batch that depends on them.
    """
    obs = observations(0.4, 3.0, -1.0)
    solver = Rejection(posterior, batch=64)
    together = solver(obs, 40, torch.Generator().manual_seed(3))
    calls = []
    for b in range(3):
        alone = solver(obs[b], 40, torch.Generator().manual_seed(3))
        assert torch.equal(alone.z[:, 0], together.z[:, b])
        torch.testing.assert_close(
            alone.diagnostics["log_z"], together.diagnostics["log_z"][b : b + 1]
        )
        calls.append(alone.prior_calls)
    assert together.prior_calls == max(calls) > min(calls)


class Label(Task):
    """log p(class | x), a bounded reward whose bound only the caller knows."""

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        return torch.nn.functional.logsigmoid(3 * x[:, 0] * obs.y[:, 0])


def test_given_bounds(generator: torch.Generator) -> None:
    """A label's log-probability is at most 0; a bound that is exceeded is refused.

    Mutant: draws above the bound accepted with probability 1, which are not exact.
    """
    posterior = Posterior(LinearGaussian(dim=1), Label(), beta=2.0)
    obs = Observation(torch.tensor([[1.0], [-1.0]]), {}, torch.ones(2))
    with pytest.raises(ValueError, match=r"Label knows no bound .* give one as solver\.bound"):
        Rejection(posterior)
    samples = Rejection(posterior, bound=0.0)(obs, 4000, generator)
    grid = torch.linspace(-8, 8, 8001).double()
    weight = (2 * torch.nn.functional.logsigmoid(3 * grid) - grid.square() / 2).softmax(0)
    exact = float((weight * grid).sum())
    std = math.sqrt(float((weight * grid.square()).sum()) - exact**2)
    mean = samples.z[..., 0].mean(0) * obs.y[:, 0]
    assert ((mean - exact).abs() < 5 * std / math.sqrt(4000)).all()
    with pytest.raises(ValueError, match=r"above the bound of -1, .* give a larger solver\.bound"):
        Rejection(posterior, bound=-0.5)(obs, 10, generator)


def test_a_spent_budget_is_an_error(posterior, generator) -> None:
    """No more calls than allowed, and the message says how far it got.

    Mutant: fewer samples than asked for; a budget overrun by a batch; an endless loop.
    """
    obs, calls = observations(0.4, 60.0), posterior.prior_calls
    solver = Rejection(posterior, budget=1000, batch=300)
    text = r"budget = 1000 prior calls with 1 of 2 observations short of n = 5; observation 1 .* 0,"
    with pytest.raises(ValueError, match=text):
        solver(obs, 5, generator)
    assert posterior.prior_calls - calls == 1000
    for option in ("budget", "batch"):
        with pytest.raises(ValueError, match=rf"solver\.{option} must be >= 1, got 0"):
            Rejection(posterior, **{option: 0})
    with pytest.raises(ValueError, match=r"solver\.bound must be finite, got inf"):
        Rejection(posterior, bound=math.inf)


def test_importance(posterior, generator) -> None:
    """Moments and log Z of resampled prior draws; candidates are shared and decoded once.

    Mutant: beta left out; the weights of one observation for all; candidates per observation.
    """
    obs, m = observations(0.4, 2.5), 20_000
    calls = posterior.prior_calls
    samples = Importance(posterior, m)(obs, 5000, generator)
    assert posterior.prior_calls - calls == samples.prior_calls == m
    mean, covariance, log_z = truth(posterior, obs)
    weight = samples.proposal_log_weight
    assert weight.shape == (m, 2)
    share = weight.double().softmax(0).square().sum(0)
    check_moments(samples.z, mean, covariance, 1 / float(share.max() + 1 / 5000))
    found = weight.double().logsumexp(0) - math.log(m)
    assert ((found - log_z).abs() < 5 * share.sqrt()).all()
    torch.testing.assert_close(samples.x[:50, 1], posterior.prior(samples.z[:50, 1]))
    alone = Importance(posterior, 500)(obs[1], 9, torch.Generator().manual_seed(3))
    beside = Importance(posterior, 500)(obs, 9, torch.Generator().manual_seed(3))
    torch.testing.assert_close(alone.proposal_log_weight[:, 0], beside.proposal_log_weight[:, 1])
    with pytest.raises(ValueError, match=r"solver\.candidates must be >= 1, got 0"):
        Importance(posterior, 0)
    with pytest.raises(ValueError, match=r"candidates must be >= n = 9 .* got 8"):
        Importance(posterior, 8)(obs, 9)
