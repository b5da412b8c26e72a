"""The Fréchet distance tells apart what it should, in the dimension of the features of the zoo."""

import math

import pytest
import torch

from outsourced.metrics import frechet

DIM, COUNT = 96, 4000


def normal(seed: int, n: int = COUNT) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def garments(seed: int, modes: int) -> torch.Tensor:
    """An even mixture of the first `modes` of ten unit-variance clusters, 4 apart from 0."""
    return normal(seed) + 4 * torch.eye(10, DIM)[torch.arange(COUNT) % modes]


FLOOR = frechet(normal(0), normal(1))


def test_floor_of_equal_laws_is_that_of_finite_sets():
    """About d² / (2 n) = 1.15 for the covariances, and inversely proportional to n.

    Mutant: a covariance in single precision or a root that loses small eigenvalues, whose errors
    do not vanish with n.
    """
    assert 0.9 < FLOOR < 1.4
    assert frechet(normal(0, 16000), normal(1, 16000)) == pytest.approx(FLOOR / 4, rel=0.15)


def test_shift_of_the_mean():
    """|m|² above the floor. Mutant: covariances only, or |m|."""
    shift = torch.zeros(DIM)
    shift[3], shift[7] = 3.0, 4.0
    assert frechet(normal(0) + shift, normal(1)) == pytest.approx(25 + FLOOR, rel=0.03)


def test_change_of_the_covariance_alone():
    """Equal means: a scale s costs d (s - 1)², a correlation r of pairs of coordinates, which
    leaves every marginal as it is, costs (2 - sqrt(1 + r) - sqrt(1 - r)) 2 a pair.

    Mutant: means only, or variances without correlations.
    """
    assert frechet(1.5 * normal(0), normal(1)) == pytest.approx(0.25 * DIM + 1.25 * FLOOR, rel=0.03)
    r, x = 0.9, normal(0)
    even, odd = x[:, ::2], x[:, 1::2]
    paired = torch.stack([even, r * even + math.sqrt(1 - r * r) * odd], dim=2).flatten(1)
    assert paired.std(0).sub(1).abs().max() < 0.05
    expected = DIM * (2 - math.sqrt(1 + r) - math.sqrt(1 - r))
    assert frechet(paired, normal(1)) == pytest.approx(expected + FLOOR, rel=0.06)


def test_lost_modes():
    """Nine of ten clusters are farther than all ten, and one is the farthest.

    Mutant: a distance to the nearest mode, which likes the remaining modes as much.
    """
    whole = garments(1, 10)
    distances = [frechet(garments(0, modes), whole) for modes in (10, 9, 5, 1)]
    assert distances == sorted(distances)
    # Moving a tenth of the mass moves the mean by 0.4 along the lost axis, and 0.4 / 9 on others.
    assert distances[1] > distances[0] + 0.16
    assert distances[3] > 16 * 0.81
