"""Perturbed least squares: its minimum, the law of its minimisers, entries that are not seen."""

import pytest
import torch
from torch import Tensor

from outsourced.least_squares import least_squares
from outsourced.linearised import Linearised, perturbed_fit

M, D = 7, 4


def problem(rows: int, scale: float = 1.0) -> tuple[Tensor, Linearised]:
    """J (M, D), and residuals of which the last two entries are not seen."""
    generator = torch.Generator().manual_seed(0)
    jacobian = scale * torch.randn(M, D, generator=generator, dtype=torch.float64)
    seen = torch.ones(M, dtype=torch.bool)
    seen[-2:] = False
    jacobian = jacobian * seen[:, None]
    residual = torch.randn(M, generator=generator, dtype=torch.float64) * seen
    at = Linearised(
        residual.expand(rows, -1),
        push=lambda d: d.flatten(1) @ jacobian.T,
        pull=lambda u: (u @ jacobian).unflatten(1, (2, 2)),
    )
    return jacobian, at


def test_as_many_steps_as_unknowns_solve_it():
    """Rows of their own noise, each to its own minimum.

    Mutants: noise of the other sign, step lengths of the batch.
    """
    jacobian, at = problem(5)
    noise = torch.randn(5, M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise[0] *= 100
    found = perturbed_fit(at, noise, D).flatten(1)
    wanted = at.residual + noise
    exact = torch.linalg.lstsq(jacobian, -wanted.T).solution.T
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_each_step_fits_better_and_the_first_goes_down_the_gradient():
    """Mutants: the residual's gradient of the other sign, a direction that is never renewed."""
    jacobian, at = problem(1)
    noise = torch.zeros(1, M, dtype=torch.float64)
    steps = [perturbed_fit(at, noise, count).flatten(1) for count in (1, 2, 3, 4)]
    error = [(at.residual + d @ jacobian.T).square().sum().item() for d in steps]
    assert error == sorted(error, reverse=True)
    assert error[1] < error[0] - 1e-3
    gradient = at.residual @ jacobian
    slope = gradient.square().sum() / (gradient @ jacobian.T).square().sum()
    torch.testing.assert_close(steps[0], -slope * gradient)


def test_minimisers_scatter_as_the_posterior():
    """y = J d + noise and a flat prior: N(least squares, (J^T J)^-1).

    Mutants: no noise, which gives one point, and noise of another deviation.
    """
    count = 40_000
    jacobian, at = problem(count, scale=2.0)
    noise = torch.randn(count, M, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = perturbed_fit(at, noise, D).flatten(1)
    covariance = torch.linalg.inv(jacobian.T @ jacobian)
    mean = -covariance @ jacobian.T @ at.residual[0]
    whitened = (found - mean) @ torch.linalg.cholesky(torch.linalg.inv(covariance))
    assert whitened.mean(0).abs().max() < 5 / count**0.5
    torch.testing.assert_close(
        whitened.T.cov(), torch.eye(D, dtype=torch.float64), rtol=0, atol=0.05
    )


def test_a_sample_at_its_minimum_stays_and_zero_steps_are_refused():
    """Mutant: 0 / 0 where the gradient is 0."""
    _, at = problem(2)
    still = Linearised(0 * at.residual, at.push, at.pull)
    assert torch.equal(perturbed_fit(still, torch.zeros(2, M).double(), 3), torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        perturbed_fit(at, torch.zeros(2, M), 0)


def test_damped_least_squares_are_ridge_regression():
    """Rows with damping of their own, one of them with none; fewer steps shrink further.

    Mutants: damping in the step length or in the gradient alone, that of the batch, its root.
    """
    jacobian, at = problem(3)
    damping = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64)
    right = torch.randn(3, M, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = least_squares(at.push, at.pull, right, D, damping).flatten(1)
    for row in range(3):
        normal = jacobian.T @ jacobian + damping[row] * torch.eye(D, dtype=torch.float64)
        exact = torch.linalg.solve(normal, jacobian.T @ right[row])
        torch.testing.assert_close(found[row], exact, rtol=1e-6, atol=1e-6)
    early = least_squares(at.push, at.pull, right, 2, damping).flatten(1)
    assert (early.norm(dim=1) < found.norm(dim=1)).all()
