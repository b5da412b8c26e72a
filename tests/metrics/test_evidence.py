import math

import pytest
import torch
from torch.distributions import Normal

from outsourced.metrics import elbo, ess, eubo, log_z

INF = math.inf


def test_known_weights():
    """Mutants: reduction over observations instead of paths; log n forgotten; ESS not divided by
    n; sum w^2 / (sum w)^2."""
    log_weight = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).log().T
    assert log_z(log_weight)[0].item() == pytest.approx(math.log(2))
    assert log_z(log_weight)[1].item() == -INF
    assert ess(log_weight)[0].item() == pytest.approx(64 / (4 * 18))
    assert ess(log_weight)[1].item() == 0
    assert elbo(log_weight)[0].item() == pytest.approx(math.log(12) / 4)
    assert elbo(log_weight)[1].item() == -INF


def test_equal_and_single_weights_are_the_extremes_of_ess():
    """Mutant: ESS in 1..n, or computed from weights that underflow at -2000 nats."""
    assert ess(torch.full((8, 1), -2000.0)).item() == pytest.approx(1)
    assert log_z(torch.full((8, 1), -2000.0)).item() == pytest.approx(-2000)
    one = torch.full((8, 1), -INF)
    one[3] = 500.0
    assert ess(one).item() == pytest.approx(1 / 8)
    assert log_z(one).item() == pytest.approx(500 - math.log(8))


def test_sums_run_in_float64():
    """Mutant: float32 means, off by 0.004 nats at log-weights of 1e5."""
    log_weight = torch.full((3, 1), 123456.789)
    log_weight[0] += 0.015625
    expected = log_weight.double().sum().item() / 3
    assert elbo(log_weight).dtype == torch.float64
    assert elbo(log_weight).item() == pytest.approx(expected, abs=1e-9)


def test_gaussian_bounds_bracket_the_evidence():
    """Mutant: EUBO and ELBO swapped, log Z the mean. Prior N(0, 1) as the sampler of a Gaussian
    posterior: ELBO, EUBO and log Z in closed form."""
    generator = torch.Generator().manual_seed(0)
    n, y, sigma = 200_000, 1.0, 0.7
    likelihood = Normal(torch.tensor(y).double(), sigma)
    prior_draws = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    variance = sigma**2 / (1 + sigma**2)
    mean = y / (1 + sigma**2)
    posterior_draws = mean + math.sqrt(variance) * torch.randn(
        n, 1, generator=generator, dtype=torch.float64
    )
    exact = Normal(0.0, math.sqrt(1 + sigma**2)).log_prob(torch.tensor(y)).item()
    constant = -math.log(sigma * math.sqrt(2 * math.pi))
    lower = elbo(likelihood.log_prob(prior_draws))
    upper = eubo(likelihood.log_prob(posterior_draws))
    assert lower.item() == pytest.approx(constant - 0.5 * (y**2 + 1) / sigma**2, abs=0.04)
    moment = (y - mean) ** 2 + variance
    assert upper.item() == pytest.approx(constant - 0.5 * moment / sigma**2, abs=0.01)
    assert log_z(likelihood.log_prob(prior_draws)).item() == pytest.approx(exact, abs=0.01)
    assert lower < exact < upper


@pytest.mark.parametrize("metric", [elbo, eubo, log_z, ess])
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_broken_weights_are_refused(metric, bad):
    """Mutant: NaN dropped by nanmean, +inf taken as a perfect path."""
    log_weight = torch.zeros(3, 2)
    log_weight[1, 1] = bad
    with pytest.raises(ValueError, match="1 of 6"):
        metric(log_weight)
    with pytest.raises(ValueError, match=r"\(n, B\)"):
        metric(torch.zeros(3))
