"""Perturbed least squares: its minimum, the law of its minimisers, entries that are not seen."""

import pytest
import torch
from torch import Tensor

from outsourced.least_squares import least_squares
from outsourced.linearised import Linearised, perturbed_fit
from outsourced.refinement import refined
from outsourced.tasks.base import Observation

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


def test_rows_are_fitted_alike_however_many_at_once():
    """Each with its own noise, observation and start. Mutants: the first rows' noise or observation
    in all pieces, pieces in another order, a fit about the start in the place of the one before."""
    generator = torch.Generator().manual_seed(5)
    jacobian = torch.randn(M, 4, generator=generator, dtype=torch.float64)
    h, noise = torch.randn(7, 2, 2, generator=generator), torch.randn(7, M, generator=generator)
    obs = Observation(torch.randn(7, M, generator=generator), {}, torch.ones(7))

    def linearise(h: Tensor, obs: Observation) -> Linearised:
        signal = h.flatten(1).double() @ jacobian.T
        slope = 1 + 3 * signal.square()
        return Linearised(
            signal + signal**3 - obs.y,
            push=lambda d: slope * (d.flatten(1) @ jacobian.T),
            pull=lambda u: ((slope * u) @ jacobian).unflatten(1, (2, 2)),
        )

    whole = refined(linearise, h.double(), obs, noise.double(), (2, 1), 7)
    for rows in (1, 3, 100):
        found = refined(linearise, h.double(), obs, noise.double(), (2, 1), rows)
        torch.testing.assert_close(found, whole)
    at = h.double()
    for steps in (2, 1):
        at = at + perturbed_fit(linearise(at, obs), noise.double(), steps)
    torch.testing.assert_close(whole, at)
