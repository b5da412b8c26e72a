"""Annealing of the inverse temperature, against closed forms for Gaussian log-rewards."""

import math

import pytest
import torch

from outsourced.annealing import conditional_ess, next_beta


def quantiles(n: int = 20001) -> torch.Tensor:
    """Standard normal draws without randomness, (n, 1)."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.special.ndtri(u)[:, None]


def test_conditional_ess_of_gaussian_increments() -> None:
    """For increments N(m, s^2) under equal weights it is exp(-s^2), whatever m is.

    Mutants: sums of w^2 of the wrong variable, a mean where the sum belongs, no normalisation.
    """
    for s, m in ((0.3, 0.0), (0.8, -400.0)):
        value = conditional_ess(torch.zeros(20001, 1), m + s * quantiles())
        assert float(value) == pytest.approx(math.exp(-(s**2)), rel=2e-3)
    assert float(conditional_ess(torch.zeros(9, 1), torch.full((9, 1), -7.0))) == pytest.approx(1.0)


def test_conditional_ess_reads_the_current_weights() -> None:
    """W = (1/2, 1/4, 1/4) and w = (3, 1, 0): (sum W w)^2 / sum W w^2 = 1.75^2 / 4.75.

    Mutants: W left out (0.533), the plain ESS of W w (0.441).
    """
    weight = torch.log(torch.tensor([[2.0], [1.0], [1.0]])) + 100
    increment = torch.log(torch.tensor([[3.0], [1.0], [0.0]]))
    value = float(conditional_ess(weight, increment))
    assert value == pytest.approx(1.75**2 / 4.75, rel=1e-5)


def test_next_beta_of_gaussian_rewards() -> None:
    """With log r ~ N(m, s^2) the step is sqrt(log 1/minimum) / s; near the target it ends there.

    Mutants: bisection towards the wrong side, the increment of all of beta, an overshoot.
    """
    for s, minimum in ((3.0, 0.5), (20.0, 0.9)):
        reward = -100 + s * quantiles()
        step = math.sqrt(-math.log(minimum)) / s
        weight = torch.zeros_like(reward)
        assert next_beta(0.1, 1.0, weight, reward, minimum) == pytest.approx(0.1 + step, rel=2e-2)
        assert next_beta(1 - 0.5 * step, 1.0, weight, reward, minimum) == 1.0
        reached = next_beta(0.1, 1.0, weight, reward, minimum)
        assert float(conditional_ess(weight, (reached - 0.1) * reward)) >= minimum - 1e-9


def test_observations_count_equally() -> None:
    """Of two observations, one of them constant, the mean of the two ESS is held.

    Mutant: one ESS over all rows, which the differing means of the rewards would ruin.
    """
    s = 4.0
    reward = torch.cat([s * quantiles(), torch.full((20001, 1), -5000.0)], 1)
    weight = torch.zeros_like(reward)
    step = math.sqrt(-math.log(2 * 0.7 - 1)) / s  # (exp(-s^2 step^2) + 1) / 2 = 0.7
    assert next_beta(0.2, 1.0, weight, reward, 0.7) == pytest.approx(0.2 + step, rel=2e-2)


def test_degenerate_weights_do_not_hurry() -> None:
    """Where one draw has all of the weight, its conditional ESS is 1 for any beta.

    Mutant: the weighted ESS alone, which jumps to the target.
    """
    reward, weight = 20 * quantiles(), torch.zeros(20001, 1)
    weight[0] = 1000.0
    assert float(conditional_ess(weight, reward)) == pytest.approx(1.0)
    step = math.sqrt(math.log(2)) / 20
    assert next_beta(0.1, 1.0, weight, reward, 0.5) == pytest.approx(0.1 + step, rel=2e-2)


def test_rewards_that_are_not_finite() -> None:
    """NaN keeps beta where it is.

    Mutant: a comparison that takes NaN for a pass and jumps to the target.
    """
    reward = torch.tensor([[0.0], [float("nan")]])
    assert next_beta(0.25, 1.0, torch.zeros(2, 1), reward) == 0.25
