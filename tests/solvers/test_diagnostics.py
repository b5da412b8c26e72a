"""R-hat and effective sample size, against ArviZ and closed forms."""

import pytest
import torch
from torch import Tensor

from outsourced.solvers.diagnostics import bulk_ess, split_rhat


def chains(
    draws: int, count: int, rho: float, shift: float = 0.0, spread: float = 1.0, grid: float = 0.0
) -> Tensor:
    """Autoregressive chains from a formula, so that other software sees the same numbers."""
    t = torch.arange(draws, dtype=torch.float64)[:, None]
    c = torch.arange(count, dtype=torch.float64)
    noise = torch.sin(0.7 * t.square() + 1.3 * c.square() * (t + 1) + c)
    x = noise.clone()
    for k in range(1, draws):
        x[k] = rho * x[k - 1] + noise[k]
    x = x * torch.linspace(1, spread, count, dtype=torch.float64) + shift * c
    return (x / grid).round() * grid if grid else x


# arviz 0.20.0: rhat(method="rank") and ess(method="bulk").
REFERENCE = [
    ((200, 4, 0.6), 1.005443, 241.133),
    ((201, 3, -0.4), 0.998445, 1539.137),
    ((300, 4, 0.2, 0.0, 3.0), 1.205923, 777.982),
    ((60, 2, 0.5, 0.0, 1.0, 0.5), 1.041291, 54.312),
]


@pytest.mark.parametrize(("settings", "rhat", "ess"), REFERENCE)
def test_agrees_with_arviz(settings: tuple, rhat: float, ess: float) -> None:
    """Slow, antithetic, unequal and tied chains of even and odd length give ArviZ's numbers.

    Mutant: no split, no folding (the third), no rank normalisation, ties ranked by position (the
    fourth), autocovariances that wrap around, a plain sum of autocorrelations.
    """
    draws = chains(*settings)
    assert float(split_rhat(draws)) == pytest.approx(rhat, abs=2e-6)
    assert float(bulk_ess(draws)) == pytest.approx(ess, abs=2e-3)


def test_autoregression(generator: torch.Generator) -> None:
    """A chain z' = a z + sqrt(1 - a^2) xi is worth (1 - a) / (1 + a) of its length.

    Mutant: a factor of 2 in the integrated autocorrelation time.
    """
    a, length = torch.tensor([0.0, 0.5, 0.9]), 4000
    noise = torch.randn(length, 4, 3, generator=generator)
    draws = noise.clone()
    for k in range(1, length):
        draws[k] = a * draws[k - 1] + (1 - a.square()).sqrt() * noise[k]
    expected = 4 * length * (1 - a) / (1 + a)
    torch.testing.assert_close(bulk_ess(draws), expected.double(), rtol=0.12, atol=0)
    assert (split_rhat(draws) < 1.01).all()


def test_each_coordinate_on_its_own(generator: torch.Generator) -> None:
    """Events of any shape give the numbers of their coordinates; drift and disagreement show.

    Mutant: ranks or sums over the event; R-hat of whole chains, blind to a common trend.
    """
    draws = torch.randn(100, 4, 2, 3, generator=generator)
    draws[:, :, 0, 1] += torch.linspace(-3, 3, 100)[:, None]
    draws[:, 0, 1, 2] += 2
    rhat, ess = split_rhat(draws), bulk_ess(draws)
    assert rhat.shape == ess.shape == (2, 3)
    assert rhat[0, 1] > 1.3
    assert rhat[1, 2] > 1.1
    assert rhat[0, 0] < 1.05
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(rhat[i, j], split_rhat(draws[:, :, i, j]))
            torch.testing.assert_close(ess[i, j], bulk_ess(draws[:, :, i, j]))


def test_too_few_draws() -> None:
    """Fewer than 4 draws have no split variance. Mutant: NaN without a word."""
    for function in (split_rhat, bulk_ess):
        with pytest.raises(ValueError, match=r"draws \(S >= 4, C >= 1, ...\), got \(3, 4, 2\)"):
            function(torch.zeros(3, 4, 2))
