"""Gaussians of low rank about an anchor, against dense linear algebra and exact posteriors."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from outsourced.low_rank import LowRank, expand, fit_low_rank
from outsourced.tasks.base import Observation
from tests.core.mixing import DOUBLE, Mixing, draw


def dense(found: LowRank) -> Tensor:
    """The curvature as a matrix, (B, d, d)."""
    eye = torch.eye(found.basis.shape[1], dtype=DOUBLE)
    outside = eye - found.basis @ found.basis.mT
    inside = found.basis @ torch.diag_embed(found.curvature) @ found.basis.mT
    return inside + found.rest[..., None] * outside


def test_the_matrix_is_found_where_it_has_the_rank():
    """Three measurements of 24 unknowns: three directions, nothing outside.

    Mutant: singular values for eigenvalues, the basis before its rotation, a rest of all probes.
    """
    problem = Mixing(draw(3, 24, seed=1), (2, 4, 3), bend=0.5)
    obs, z = problem.observe(5), draw(5, 2, 4, 3, seed=2)
    jacobian = problem.jacobian(z, obs)
    for rank in (3, 5):
        found = expand(problem, z, obs, rank)
        inside = found.basis @ torch.diag_embed(found.curvature) @ found.basis.mT
        torch.testing.assert_close(inside, jacobian.mT @ jacobian, rtol=1e-6, atol=1e-6)
        eye = torch.eye(rank, dtype=DOUBLE).expand(5, -1, -1)
        torch.testing.assert_close(found.basis.mT @ found.basis, eye)
    assert found.rest.max() < 1e-6


def test_what_the_span_misses_is_told():
    """Four strong directions and 76 weak ones, of which a span of 14 holds few.

    Mutant: zero, the mean over all directions (5.3), the total that is missed (28), the trace of
    the random products (off by the strong directions' chance).
    """
    basis = torch.linalg.qr(draw(80, 80)).Q
    scale = torch.full((80,), math.sqrt(0.3), dtype=DOUBLE)
    scale[:4] = 10.0
    problem = Mixing(scale[:, None] * basis, (80,))
    obs = Observation(torch.zeros(1, 80, dtype=DOUBLE), {}, torch.ones(1, dtype=DOUBLE))
    found = expand(problem, torch.zeros(1, 80, dtype=DOUBLE), obs, 14)
    trace = scale.square().sum() - found.curvature.sum()
    assert float(found.rest) == pytest.approx(float(trace) / 66, rel=0.15)
    assert (found.curvature[0, -4:] / 100 - 1).abs().max() < 0.05


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.97])
def test_posterior_of_the_end_is_that_of_a_dense_gaussian(rho):
    """N(rho z, spread^2) times the likelihood that turns N(0, I) into N(anchor, (I + H)^-1).

    Mutant: rest for the curvature, a square root of spread, rho missing in the prior mean."""
    found = LowRank(
        draw(3, 2, 3, 2), torch.linalg.qr(draw(3, 12, 4)).Q, draw(3, 4).exp(), draw(3, 1).exp()
    )
    z, rho = draw(2, 3, 2, 3, 2, seed=1), torch.tensor(rho, dtype=DOUBLE)
    spread = (1 - rho**2).sqrt()
    delta, c, rest = found.posterior(z, rho, spread)
    eye, curvature = torch.eye(12, dtype=DOUBLE), dense(found)
    covariance = torch.linalg.inv(eye / spread**2 + curvature)
    pull = ((eye + curvature) @ found.anchor.flatten(1)[..., None])[..., 0]
    mean = ((rho * z.flatten(2) / spread**2 + pull)[..., None, :] @ covariance)[..., 0, :]
    torch.testing.assert_close((rho * z + spread * delta).flatten(2), mean)
    inside = found.basis @ torch.diag_embed(c[0] - rest[0]) @ found.basis.mT
    torch.testing.assert_close(spread**2 * (inside + rest[0][..., None] * eye), covariance)


def test_log_z_of_a_gaussian_is_exact():
    """Mutant: the directions outside of the span forgotten, or counted with those inside."""
    basis, curvature = torch.linalg.qr(draw(8, 8)).Q, torch.full((8,), 0.7, dtype=DOUBLE)
    curvature[:3] = torch.tensor([9.0, 4.0, 2.0])
    anchor = draw(1, 8, seed=1)
    found = LowRank(anchor, basis[None, :, :3], curvature[None, :3], curvature[3:4, None])
    # N(z; 0, I) r(z) = C N(z; anchor, (I + H)^-1) with log r(anchor) = 0.
    precision = torch.eye(8, dtype=DOUBLE) + dense(found)[0]
    law = MultivariateNormal(anchor[0], precision_matrix=precision)
    prior = MultivariateNormal(torch.zeros(8, dtype=DOUBLE), torch.eye(8, dtype=DOUBLE))
    expected = prior.log_prob(anchor[0]) - law.log_prob(anchor[0])
    torch.testing.assert_close(found.log_z(torch.zeros(1, dtype=DOUBLE))[0], expected)


def test_one_step_ends_at_the_mean_of_a_linear_problem():
    """Whatever the start; a bent one is climbed as far as several steps go.

    Mutant: a step against the gradient, the curvature's inverse without the prior's, a start that
    is kept, lengths of the step that are shared by the batch.
    """
    problem = Mixing(draw(5, 24, seed=1), (2, 4, 3))
    obs, start = problem.observe(4), 3 * draw(4, 2, 4, 3, seed=2)
    mean, covariance, _ = problem.exact(obs)
    found, reward = fit_low_rank(problem, start, obs, 8, 1)
    torch.testing.assert_close(reward, problem.log_reward(found.anchor, obs))
    torch.testing.assert_close(found.anchor.flatten(1), mean, rtol=1e-5, atol=1e-5)
    eye = torch.eye(24, dtype=DOUBLE)
    torch.testing.assert_close(torch.linalg.inv(eye + dense(found)), covariance, atol=1e-5, rtol=0)
    bent = Mixing(problem.matrix, problem.shape, bend=0.9)
    together, _ = fit_low_rank(bent, start, obs, 8, 1)
    for i in range(4):
        alone, _ = fit_low_rank(bent, start[i : i + 1], obs[i], 8, 1)
        torch.testing.assert_close(alone.anchor[0], together.anchor[i], rtol=1e-6, atol=1e-6)
    found, _ = fit_low_rank(bent, start, obs, 8, 30)
    _, gradient = bent.grad_log_reward(found.anchor, obs)
    assert (gradient - found.anchor).flatten(1).norm(dim=1).max() < 1e-3
