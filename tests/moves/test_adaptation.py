"""Dual averaging: where it settles, chain by chain."""

import math

import pytest
import torch

from outsourced.moves import HMC_LARGEST, DualAveraging, RobbinsMonro


def acceptance(step: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A kernel whose acceptance falls with its step in units of the posterior's scale."""
    return torch.exp(-step / scale)


def test_settles_at_the_target_of_every_chain(generator: torch.Generator) -> None:
    """Chains of scales 1 : 1000 with noisy acceptance settle at their own step -scale log target.

    Mutant: the mean over chains; the last step instead of the average, which keeps jumping; the
    sign of the error; log 10 left out of the centre and forgotten in the other.
    """
    scale = torch.logspace(-3, 0, 40)
    rule = DualAveraging(torch.full((40,), 0.3), 0.6)
    last = []
    for _ in range(1000):
        mean = acceptance(rule.step, scale)
        noise = torch.rand(40, generator=generator)
        rule.update((noise < mean).float())
        last.append(rule.step)
    expected = -scale * math.log(0.6)
    error = (rule.settled / expected).log()
    assert error.abs().max() < 0.35
    assert error.abs().mean() < 0.1
    # The average is steadier than what it averages.
    jumps = (last[-1] / expected).log()
    assert jumps.abs().mean() > 1.5 * error.abs().mean()


def test_first_updates_by_hand() -> None:
    """Two updates, computed with the formulas of section 3.2.1 on paper.

    Mutant: eta_t = t^-gamma; H divided by t_0 + t - 1; the average started at mu.
    """
    rule = DualAveraging(torch.tensor([0.2], dtype=torch.float64), 0.65)
    rule.update(torch.tensor([0.1], dtype=torch.float64))
    mu, h = math.log(2.0), (0.65 - 0.1) / 11
    first = mu - h / 0.05
    assert math.log(float(rule.step)) == pytest.approx(first)
    assert math.log(float(rule.settled)) == pytest.approx(first)
    rule.update(torch.tensor([0.9], dtype=torch.float64))
    h = (1 - 1 / 12) * h + (0.65 - 0.9) / 12
    second, eta = mu - math.sqrt(2) / 0.05 * h, 2**-0.75
    assert math.log(float(rule.step)) == pytest.approx(second)
    mean = eta * second + (1 - eta) * first
    assert math.log(float(rule.settled)) == pytest.approx(mean)


@pytest.mark.parametrize("kind", [DualAveraging, RobbinsMonro])
def test_never_beyond_the_largest_step(kind: type) -> None:
    """A kernel that accepts all ends at its largest step, and may use it.

    Mutant: a bound on the exploring step only; exp(log(pi / 2)) in float32, which is above pi / 2.
    """
    rule = kind(torch.full((2,), 1.0), 0.65, HMC_LARGEST)
    for _ in range(200):
        rule.update(torch.ones(2))
        assert (rule.step <= HMC_LARGEST).all()
    assert (rule.settled <= HMC_LARGEST).all()
    assert (rule.settled > 0.99 * HMC_LARGEST).all()


def test_errors() -> None:
    """Mutant: a target of 1, which no step reaches: ever smaller steps."""
    with pytest.raises(ValueError, match=r"adaptation\.target must lie in \(0, 1\), got 1"):
        DualAveraging(torch.ones(1), 1.0)
