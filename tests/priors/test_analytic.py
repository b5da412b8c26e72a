"""Closed forms of the analytic priors, checked against grids, autograd and known quantiles."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from outsourced.priors import GaussianMixture, LinearGaussian, condition_gaussian

MEANS = [[-2.0, 0.5, 1.0], [1.0, -1.5, 0.0], [0.3, 2.0, -3.0]]
STDS = [[0.5, 0.8, 0.2], [1.2, 0.3, 0.6], [0.4, 0.5, 1.1]]
WEIGHTS = [0.2, 0.5, 0.3]


@pytest.fixture
def mixture() -> GaussianMixture:
    return GaussianMixture(MEANS, STDS, WEIGHTS)


def noise(n: int, dim: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def jacobian(function, z: torch.Tensor) -> torch.Tensor:
    """(B, d, d) Jacobian of a map that treats samples independently."""
    z = z.clone().requires_grad_(True)
    columns = function(z).unbind(-1)
    rows = [torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in columns]
    return torch.stack(rows, dim=-2)


def test_density_obeys_the_change_of_variables(mixture):
    """log p(f(z)) + log |det J| = log N(z).

    Mutant: conditioning the weights on the wrong coordinates, a gradient that forgets the
    dependence of the weights on x_<i, or joint weights instead of conditional ones.
    """
    z = noise(64, 3)
    log_det = jacobian(mixture, z).slogdet().logabsdet
    log_noise = -0.5 * z.square().sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(mixture.log_prob(mixture(z)) + log_det, log_noise, rtol=0, atol=1e-9)


def test_jacobian_of_the_map_matches_finite_differences(mixture):
    """Mutant: a sign error or a missing 1/p in dx_i/dlog w: the determinant cannot see it,
    because the Jacobian is triangular."""
    z, step = noise(16, 3, seed=1), 1e-6
    numeric = torch.stack(
        [(mixture(z + step * e) - mixture(z - step * e)) / (2 * step)
         for e in torch.eye(3, dtype=z.dtype)], dim=-1)  # fmt: skip
    torch.testing.assert_close(jacobian(mixture, z), numeric, rtol=1e-5, atol=1e-6)
    upper = jacobian(mixture, z).triu(1)
    assert upper.abs().max() == 0


def test_second_derivatives_are_exact(mixture):
    """Mutant: one Newton step as the implicit derivative, whose curvature lacks a term."""
    z = noise(3, 3, seed=2).requires_grad_(True)
    assert torch.autograd.gradgradcheck(mixture, (z,), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 6.0, 10.0])
def test_inverse_undoes_forward_in_both_tails(mixture, scale):
    """Mutant: working with the CDF alone, which is 1 − 1e-9 at z = 6 and loses seven digits."""
    z = noise(200, 3, seed=3).clamp(-1, 1) * scale
    torch.testing.assert_close(mixture.inverse(mixture(z)), z, rtol=0, atol=1e-9)


def test_quantiles_at_six_sigma_are_symmetric():
    """Mutant: the upper tail through Φ(z) rather than through Φ(−z), or Φ as (1 + erf)/2."""
    mixture = GaussianMixture([[-1.0], [1.0]], 0.5)
    z = torch.tensor([[3.0], [6.0], [8.0]], dtype=torch.float64)
    torch.testing.assert_close(mixture(z), -mixture(-z), rtol=1e-13, atol=0)
    # Far out only the right component counts: P(X > x) = Φ(−(x − 1)/s)/2 = Φ(−z).
    z = torch.tensor([[8.0]], dtype=torch.float64)
    expected = 1 - 0.5 * torch.special.ndtri(torch.special.erfc(z / math.sqrt(2)))
    torch.testing.assert_close(mixture(z), expected, rtol=1e-12, atol=0)


def test_pushforward_has_the_mixture_moments_and_masses():
    """Mutant: equal weights whatever was asked, or variances passed as standard deviations."""
    mixture = GaussianMixture(MEANS, STDS, WEIGHTS)
    x = mixture(noise(20000, 3, seed=4))
    weights = torch.tensor(WEIGHTS, dtype=x.dtype)
    means, stds = torch.tensor(MEANS, dtype=x.dtype), torch.tensor(STDS, dtype=x.dtype)
    mean = weights @ means
    spread = means - mean
    outer = spread.unsqueeze(-1) * spread.unsqueeze(-2)
    covariance = (weights[:, None, None] * (torch.diag_embed(stds**2) + outer)).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.12)


def test_one_component_is_the_affine_map():
    """Mutant: a bracket or a bisection that stops early."""
    mixture = GaussianMixture([[1.0, -2.0]], [[0.5, 3.0]])
    z = noise(50, 2, seed=5)
    expected = torch.tensor([1.0, -2.0]) + z * torch.tensor([0.5, 3.0])
    torch.testing.assert_close(mixture(z), expected, rtol=1e-14, atol=1e-14)


def test_single_precision_noise_gives_single_precision_data(mixture):
    """Mutant: bisection in float32, which is off by 1e-4 where the density is small."""
    z = noise(100, 3, seed=6, scale=2.0)
    x = mixture(z.float())
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), mixture(z.float().double()), rtol=1e-6, atol=1e-7)


def test_mixture_posterior_matches_a_grid():
    """Mutant: component weights without their evidence, prior instead of posterior covariance,
    σ for σ², or a matrix used transposed."""
    means = [[-1.0, 0.0], [1.5, 0.5], [0.0, -2.0]]
    prior = GaussianMixture(means, [0.5, 0.8, 0.4], [0.5, 0.3, 0.2])
    matrix = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)
    sigma = torch.tensor([0.4, 0.7], dtype=torch.float64)
    y = torch.tensor([[0.7, -0.4], [-1.0, 0.3]], dtype=torch.float64)
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]).item() ** 2
    posterior = prior.posterior(matrix, y, sigma)
    for b in range(2):
        residual = (y[b] - grid @ matrix.T) / sigma
        log_likelihood = (-0.5 * residual**2 - sigma.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_joint = prior.log_prob(grid) + log_likelihood
        log_z = log_joint.logsumexp(0) + math.log(cell)
        torch.testing.assert_close(posterior.log_evidence[b], log_z, rtol=0, atol=1e-8)
        log_components = [
            w.log() + MultivariateNormal(m, c).log_prob(grid)
            for w, m, c in zip(
                posterior.weights[b], posterior.means[b], posterior.covariances, strict=True
            )
        ]
        density = torch.stack(log_components).logsumexp(0).exp()
        difference = (density - (log_joint - log_z).exp()).abs().sum() * cell
        assert difference < 1e-8


def test_posterior_draws_follow_the_posterior():
    """Mutant: one component for all draws of an observation, or noise scaled by the covariance
    rather than its Cholesky factor."""
    prior = GaussianMixture.ring(modes=5, radius=2.0, std=0.4)
    matrix = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    y = torch.tensor([[0.5], [-1.2]], dtype=torch.float64)
    posterior = prior.posterior(matrix, y, 0.5)
    draws = posterior.sample(20000, torch.Generator().manual_seed(0))
    assert draws.shape == (2, 20000, 2)
    mean = (posterior.weights.unsqueeze(-1) * posterior.means).sum(1)
    spread = posterior.means - mean.unsqueeze(1)
    outer = spread.unsqueeze(-1) * spread.unsqueeze(-2)
    within = posterior.covariances.unsqueeze(0)
    covariance = (posterior.weights[..., None, None] * (within + outer)).sum(1)
    torch.testing.assert_close(draws.mean(1), mean, rtol=0, atol=0.05)
    for b in range(2):
        torch.testing.assert_close(draws[b].T.cov(), covariance[b], rtol=0, atol=0.08)


def test_ring_has_its_modes_on_the_circle():
    """Mutant: angles that count the end point twice, which puts two modes on one spot."""
    ring = GaussianMixture.ring(modes=8, radius=3.0, std=0.1)
    distances = torch.cdist(ring.means, ring.means) + 10 * torch.eye(8)
    chord = 2 * 3.0 * math.sin(math.pi / 8)
    torch.testing.assert_close(distances.amin(1), torch.full((8,), chord).double())
    torch.testing.assert_close(ring.means.norm(dim=1), torch.full((8,), 3.0).double())


def test_linear_gaussian_is_w_z_plus_b():
    """Mutant: a transposed matrix, or a dropped bias."""
    matrix = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    prior = LinearGaussian(matrix=matrix, bias=[1.0, 0.0, -1.0])
    z = torch.tensor([[1.0, -2.0]])
    assert prior.noise_shape == (2,)
    assert torch.equal(prior(z), torch.tensor([[-2.0, 2.0, 1.0]]))
    assert torch.equal(LinearGaussian(4)(torch.arange(4.0)[None]), torch.arange(4.0)[None])
    first, again = LinearGaussian(3, data_dim=5, seed=7), LinearGaussian(3, data_dim=5, seed=7)
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, LinearGaussian(3, data_dim=5, seed=8).matrix)


def test_linear_gaussian_noise_posterior_matches_a_grid():
    """Mutant: the posterior of x in place of that of z, or an evidence that ignores the bias."""
    prior = LinearGaussian(matrix=[[1.0, 0.4], [0.2, -0.7], [0.5, 0.5]], bias=[0.3, -0.2, 0.1])
    operator = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    y, sigma = torch.tensor([[0.8]], dtype=torch.float64), 0.3
    mean, covariance, log_z = prior.noise_posterior(operator, y, sigma)
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    residual = (y - prior(z) @ operator.T).squeeze(-1) / sigma
    constant = 1.5 * math.log(2 * math.pi) + math.log(sigma)
    log_joint = -0.5 * residual**2 - 0.5 * z.square().sum(-1) - constant
    cell = (axis[1] - axis[0]).item() ** 2
    torch.testing.assert_close(log_z[0], log_joint.logsumexp(0) + math.log(cell), atol=1e-8, rtol=0)
    weights = log_joint.softmax(0)
    grid_mean = weights @ z
    centred = z - grid_mean
    torch.testing.assert_close(mean[0], grid_mean, atol=1e-7, rtol=0)
    spread = (weights[:, None] * centred).T @ centred
    torch.testing.assert_close(covariance, spread, atol=1e-7, rtol=0)


def test_conditioning_agrees_with_the_joint_gaussian():
    """Mutant: adding σ rather than σ² to the marginal covariance, or dropping log 2π."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T
    mean = torch.randn(4, generator=generator, dtype=torch.float64)
    matrix = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    got_mean, got_covariance, log_z = condition_gaussian(mean, covariance, matrix, y, 0.3)
    precision = covariance.inverse() + matrix.T @ matrix / 0.09
    rhs = covariance.inverse() @ mean + y @ matrix / 0.09
    torch.testing.assert_close(got_covariance, precision.inverse())
    torch.testing.assert_close(got_mean, rhs @ precision.inverse())
    marginal = matrix @ covariance @ matrix.T + 0.09 * torch.eye(2, dtype=torch.float64)
    expected = MultivariateNormal(matrix @ mean, marginal).log_prob(y)
    torch.testing.assert_close(log_z, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianMixture([[0.0], [1.0]], -0.1), r"std must be > 0, got"),
        (lambda: GaussianMixture([[0.0], [1.0]], 1.0, [1.0, 0.0]), r"weights must be > 0, got"),
        (lambda: GaussianMixture([[0.0], [1.0]], 1.0, [1.0]), r"weights must have shape \(2,\)"),
        (lambda: GaussianMixture([0.0, 1.0], 1.0), r"means must be \(K, d\)"),
        (lambda: GaussianMixture([[0.0], [1.0]], [1.0, 2.0, 3.0]), r"std must be a number"),
        (lambda: GaussianMixture.ring(modes=0), r"modes must be >= 1, got 0"),
        (lambda: LinearGaussian(), r"needs dim >= 1 or a matrix"),
        (lambda: LinearGaussian(2, bias=[1.0]), r"bias must have shape \(2,\), got \(1,\)"),
        (lambda: LinearGaussian(3, matrix=[[1.0]]), r"give the matrix alone"),
    ],
)
def test_bad_arguments_are_named(build, message):
    """Mutant: a check that is missing, or an error that does not say what was given."""
    with pytest.raises(ValueError, match=message):
        build()
