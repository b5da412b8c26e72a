"""Laplace approximations: exact where the likelihood is Gaussian, safe where it is not."""

import pytest
import torch

from outsourced.guidance import LaplaceTarget
from outsourced.laplace import Laplace, fit_laplace


def fit(problem, obs, start, iterations, **options) -> Laplace:
    return fit_laplace(
        LaplaceTarget(problem, obs),
        start,
        iterations,
        **options,
    )


def objective(problem, obs, z: torch.Tensor) -> torch.Tensor:
    return problem.log_reward(z, obs) - 0.5 * z.square().sum(-1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


def test_one_step_finds_the_posterior_mean(linear):
    """Mutant: the prior's gradient -z or its curvature left out of the Newton step."""
    obs = linear.observe(3)
    mean, covariance = linear.posterior(obs)
    laplace = fit(linear, obs, 3 * draw(3, 4), 1)
    close(laplace.anchor, mean)
    precision = laplace.basis @ torch.diag_embed(1 + laplace.curvature) @ laplace.basis.mT
    close(torch.linalg.inv(precision), covariance)


@pytest.mark.parametrize("shrink", [(1.0,), (0.3,)])
def test_evidence_is_exact_from_any_anchor(linear, shrink):
    """Mutant: the value at the anchor without the correction to the maximum, or log det H for
    log det (I + H)."""
    obs = linear.observe(3)
    laplace = fit(linear, obs, 2 * draw(3, 4), 1, shrink=shrink)
    assert torch.allclose(laplace.anchor, linear.posterior(obs)[0]) == (shrink == (1.0,))
    close(laplace.log_z, linear.log_z(obs))


@pytest.mark.parametrize(("rho", "shrink"), [(0.0, 1.0), (0.6, 0.3), (0.6, 1.0), (0.97, 0.3)])
def test_posterior_of_the_end_equals_conditioning(linear, rho, shrink):
    """z_K given z_k and y, expanded away from the maximum too. Mutant: the gradient at the anchor
    dropped (right only at the maximum), or rho missing in the prior mean."""
    obs, z = linear.observe(3), draw(2, 3, 4, seed=1)
    rho = torch.tensor(rho, dtype=torch.float64)
    spread = (1 - rho**2).sqrt()
    laplace = fit(linear, obs, draw(3, 4, seed=2), 1, shrink=(shrink,))
    delta, c = laplace.posterior(z, rho, spread)
    covariance = spread**2 * laplace.basis @ torch.diag_embed(c) @ laplace.basis.mT
    covariance = covariance.expand(2, 3, 4, 4)
    for s in range(2):
        mean, expected = linear.posterior(obs, rho * z[s], float(spread**2))
        close(rho * z[s] + spread * delta[s], mean)
        close(covariance[s], expected)


def test_objective_never_decreases_where_newton_overshoots(problems):
    """From a saturated start the full step leaves the basin. Mutant: always taking the full step,
    or one step length chosen for the whole batch."""
    problem = problems["vector"]
    obs = problem.observe(8, sigma=0.05)
    start = 3 * draw(8, 3, seed=3)
    before = objective(problem, obs, start)
    _, gradient, matrix = problem.gauss_newton(start, obs)
    step = torch.linalg.solve(matrix + torch.eye(3).double(), gradient - start)
    overshoots = objective(problem, obs, start + step) < before
    assert 0 < overshoots.sum() < 8  # the test is empty otherwise
    full = fit(problem, obs, start, 1, shrink=(1.0,)).anchor
    assert torch.equal(full[overshoots], start[overshoots])
    close(full[~overshoots], (start + step)[~overshoots])
    anchors = [fit(problem, obs, start, i).anchor for i in range(1, 8)]
    values = torch.stack([before, *(objective(problem, obs, anchor) for anchor in anchors)])
    assert (values.diff(dim=0) >= 0).all()
    assert (values[-1] > before + 1).any()


def test_expansion_point_carries_its_own_gradient_and_the_last_curvature(problems):
    """Mutant: the gradient of the last but one iterate kept beside the new anchor."""
    problem = problems["vector"]
    obs, start = problem.observe(4), torch.zeros(4, 3).double()
    before, after = (fit(problem, obs, start, i) for i in (1, 2))
    assert not torch.allclose(before.anchor, after.anchor)
    close(after.gradient, problem.grad_log_reward(after.anchor, obs)[1])
    matrix = after.basis @ torch.diag_embed(after.curvature) @ after.basis.mT
    close(matrix, problem.gauss_newton(before.anchor, obs)[2])


def test_fit_converges_to_a_stationary_point(problems):
    """Mutant: a step towards the maximum of the likelihood alone."""
    problem = problems["vector"]
    obs = problem.observe(4)
    laplace = fit(problem, obs, torch.zeros(4, 3).double(), 40, tolerance=0.0)
    close(laplace.gradient, laplace.anchor, 1e-7)


def test_a_fit_without_steps_is_refused(linear):
    """Mutant: zero steps accepted, and the curvature undefined."""
    with pytest.raises(ValueError, match=r"sampler\.anchor_steps must be >= 1, got 0"):
        fit(linear, linear.observe(1), draw(1, 4), 0)


def test_each_observation_is_fitted_alone(problems):
    """Mutant: a step length or stopping rule over the batch."""
    problem = problems["vector"]
    obs, start = problem.observe(4, sigma=0.1), 2 * draw(4, 3, seed=4)
    together = fit(problem, obs, start, 3)
    for i in range(4):
        alone = fit(problem, obs[i], start[i : i + 1], 3)
        close(together.anchor[i], alone.anchor[0])
        close(together.log_z[i], alone.log_z[0])


def test_select_takes_the_same_observations_from_every_part(linear):
    """Mutant: one part left as it is, which would pair paths with the wrong observation."""
    laplace = fit(linear, linear.observe(3), torch.zeros(3, 4).double(), 1)
    chosen = vars(laplace.select(torch.tensor([2, 0, 2])))
    for name, value in vars(laplace).items():
        assert torch.equal(chosen[name], torch.stack([value[2], value[0], value[2]]))
