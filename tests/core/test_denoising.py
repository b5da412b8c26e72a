"""Estimators from a few random steps: unbiased, and regressing to the optimum."""

import math

import torch

from outsourced.denoising import adjoint_pair, denoising_log_ratio


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


def test_denoising_weighs_every_step_once(sampler_of, monkeypatch):
    """With a known score of each step the average over draws is its sum. Mutant: unstratified draws
    without the factor K / count, or strata that miss the last step when K / count is no integer."""
    sampler, obs = sampler_of(("vector", "none", "diagonal"), steps=5)
    value = torch.tensor([1.0, -2.0, 4.0, 8.0, -16.0]).double()
    monkeypatch.setattr(sampler, "score", lambda z, after, k, c: value[k][:, None].expand(-1, 6))
    context, z, g = sampler.encode(obs), torch.zeros(2, 3, 3).double(), seeded()
    draws = torch.stack([denoising_log_ratio(sampler, z, context, 3, g)[0, 0] for _ in range(4000)])
    error = float(draws.std() / math.sqrt(len(draws)))
    assert abs(draws.mean() - value.sum()) < 4 * error
    assert draws.std() > 1
    close(denoising_log_ratio(sampler, z, context, 9, g), value.sum().expand(2, 3))


def test_denoising_estimates_the_backward_path_expectation(sampler_of):
    """Same mean as whole backward paths, per observation. Mutant: pairs from another step than the
    kernel, or z_k noised independently of z_{k+1}."""
    sampler, obs = sampler_of(("vector", "none", "full"))
    n = 6000
    z = torch.randn(1, 3, 3, generator=seeded(1), dtype=torch.float64).expand(n, 3, 3)
    with torch.no_grad():
        context = sampler.encode(obs)
        whole = sampler.log_ratio(sampler.backward_path(z, seeded(2)), context)
        parts = denoising_log_ratio(sampler, z, context, sampler.steps, seeded(3))
    error = ((whole.var(0) + parts.var(0)) / n).sqrt()
    assert ((whole.mean(0) - parts.mean(0)).abs() < 4 * error).all()
    assert (whole.mean(0).abs() > 8 * error).all()  # zeros would not pass


def test_adjoint_pairs_regress_to_the_optimum(optimal, linear):
    """On exact posterior draws the target equals the optimal mean on average, at every step.
    Mutant: a target without w or spread, or z_k paired with the coefficients of another step."""
    n, obs = 8000, linear.observe(1)
    mean, covariance = linear.posterior(obs)
    eta = torch.randn(n, 4, generator=seeded(), dtype=torch.float64)
    end = mean + eta @ torch.linalg.cholesky(covariance[0]).T
    context = optimal.encode(obs).repeat(n)
    gradient = linear.grad_log_reward(end, context.obs)[1]
    with torch.no_grad():
        shift, target = adjoint_pair(optimal, end, gradient, context, 7, seeded(1))
    assert shift.shape == target.shape == (7, n, 4)
    error = (target - shift).std(1) / math.sqrt(n)
    assert ((target - shift).mean(1).abs() < 4.5 * error).all()
    # The mean target is large against these errors, so that a wrong factor shows.
    assert (target.mean(1).norm(dim=-1)[1:] > 12 * error.norm(dim=-1)[1:]).all()
