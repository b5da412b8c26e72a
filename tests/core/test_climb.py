"""The ascent that improves an anchor."""

import pytest
import torch

from outsourced.climb import climb

CENTRE = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-4.0, 0.0]], dtype=torch.float64)
PRECISION = torch.tensor([3.0, 20.0, 0.5], dtype=torch.float64)


def quadratic(rows: slice = slice(None)):
    """log r = -precision/2 |z - centre|^2 of some of three samples, with its gradient."""
    centre, precision = CENTRE[rows], PRECISION[rows, None]

    def value_and_grad(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gap = z - centre
        return -0.5 * (precision * gap.square()).sum(-1), -precision * gap

    return value_and_grad


def test_climb_ends_at_the_maximum_of_the_posterior():
    """Mutant: the ascent of log r without the prior, whose maximum is the centre itself."""
    found = climb(quadratic(), torch.zeros(3, 2).double(), 400, rate=0.05)
    expected = CENTRE * (PRECISION / (1 + PRECISION))[:, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert (expected - CENTRE).abs().max() > 0.2


def test_climb_never_loses_what_it_has_found():
    """A rate that overshoots for ever. Mutant: the last point instead of the best one, or the best
    log r instead of the best posterior."""
    start = CENTRE * (PRECISION / (1 + PRECISION))[:, None]
    torch.testing.assert_close(climb(quadratic(), start, 20, rate=5.0), start)
    assert torch.equal(climb(quadratic(), start + 1, 1, rate=0.1), start + 1)


def test_each_sample_climbs_alone():
    """Mutant: a step size, or a best point, that is shared by the batch."""
    start = torch.ones(3, 2).double()
    together = climb(quadratic(), start, 7)
    for row in range(3):
        piece = slice(row, row + 1)
        torch.testing.assert_close(together[piece], climb(quadratic(piece), start[piece], 7))


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (3, 0.0)])
def test_climb_refuses_bad_numbers(steps, rate):
    """Mutant: a climb of no steps that returns its start without a word."""
    with pytest.raises(ValueError, match=rf"steps >= 1 and rate > 0, got {steps} and {rate}"):
        climb(quadratic(), torch.zeros(3, 2).double(), steps, rate)
