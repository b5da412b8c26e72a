import math

import pytest
import torch

from outsourced.metrics import c2st, frechet, mmd, sliced_wasserstein


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def modes(n: int, share: float, seed: int) -> torch.Tensor:
    """Two modes at -2 and 2 on the first axis, `share` of the samples at 2."""
    x = 0.3 * normal(n, 2, seed)
    x[:, 0] += torch.where(torch.arange(n) < share * n, 2.0, -2.0)
    return x


def test_c2st_is_one_half_for_equal_laws():
    """Mutants: accuracy on the training set; classes ordered so that folds are unbalanced."""
    assert abs(c2st(normal(400, 2, 0), normal(400, 2, 1)) - 0.5) < 0.07
    assert abs(c2st(modes(400, 0.5, 2), modes(400, 0.5, 3)) - 0.5) < 0.07


@pytest.mark.parametrize(
    ("a", "b", "bayes"),
    [
        (normal(400, 2, 0), normal(400, 2, 1) + torch.tensor([1.5, 0.0]), 0.773),
        (normal(400, 2, 0), 2 * normal(400, 2, 1), 0.736),
        (modes(400, 0.5, 0), modes(400, 1.0, 1), 0.75),
    ],
    ids=["shift", "scale", "missing mode"],
)
def test_c2st_reaches_the_bayes_accuracy(a, b, bayes):
    """Mutant: a linear classifier, blind to scale; a mean-only test, blind to modes. The Bayes
    accuracies are Phi(0.75), the two-dimensional scale test, and 3/4."""
    assert abs(c2st(a, b) - bayes) < 0.06
    assert c2st(a, b, seed=3) == c2st(a, b, seed=3)


def test_c2st_does_not_depend_on_units():
    """Mutant: coordinates not standardised, so that a large silent axis drowns the difference."""
    units = torch.tensor([1.0, 1e4])
    a, b = normal(300, 2, 0) * units, (normal(300, 2, 1) + torch.tensor([1.5, 0.0])) * units
    assert c2st(a, b) > 0.7


def test_sliced_wasserstein_of_a_shift_and_a_scale():
    """Mutants: W1; no square root; projections not normalised; samples not sorted. For a shift m,
    SW2 = |m| / sqrt(d); for N(0, I) against N(0, s^2 I), SW2 = |s - 1|."""
    generator = torch.Generator().manual_seed(0)
    a = normal(2000, 5, 1)
    shift = torch.tensor([3.0, 0, 4, 0, 0])
    distance = sliced_wasserstein(a, (a + shift)[torch.randperm(2000)], 1500, generator)
    assert distance == pytest.approx(5 / math.sqrt(5), rel=0.06)
    assert sliced_wasserstein(a, 2 * normal(2000, 5, 2), 50, generator) == pytest.approx(
        1, abs=0.05
    )
    assert sliced_wasserstein(a, a.flip(0), 10, generator) == 0
    line = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]])
    assert sliced_wasserstein(*line, 3, generator) == pytest.approx(math.sqrt((1 + 4) / 2))


def test_mmd_is_unbiased_under_equality_and_positive_otherwise():
    """Mutant: the biased estimate, which keeps the diagonal and averages 2 / n = 0.033 here."""
    null = [mmd(normal(60, 2, 2 * s), normal(60, 2, 2 * s + 1)) for s in range(60)]
    mean, std = torch.tensor(null).mean().item(), torch.tensor(null).std().item()
    assert abs(mean) < 4 * std / math.sqrt(60)
    assert abs(mean) < 0.006
    assert min(null) < 0
    for other in (normal(60, 2, 9) + 1, 3 * normal(60, 2, 9), modes(60, 0.5, 9)):
        assert mmd(normal(60, 2, 8), other) > 5 * std


def test_mmd_of_two_points_each_in_closed_form():
    """Mutants: one kernel of the five; cross term counted once; r instead of r^2. The pooled
    squared distances are 0, 1, 4, 4, 9, 9, with (lower) median 4."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [3.0]])

    def kernel(square):
        return sum(math.exp(-square / (8 * s)) for s in (0.25, 0.5, 1, 2, 4)) / 5

    expected = kernel(1) + kernel(0) - (kernel(9) + kernel(4))
    assert mmd(a, b) == pytest.approx(expected)


def test_frechet_between_gaussians_in_closed_form():
    """Mutants: product of roots instead of root of the product (the covariances do not commute);
    covariance over the wrong axis; mean term not squared; element-wise root."""
    c_a = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    c_b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    base = normal(500, 2, 0).double()
    base = base - base.mean(0)
    base = base @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T  # exactly white
    a = base @ torch.linalg.cholesky(c_a).T
    b = base @ torch.linalg.cholesky(c_b).T + torch.tensor([1.0, 2.0])
    # tr (C_a C_b)^(1/2) in two dimensions is sqrt(tr + 2 sqrt(det)) of the product.
    product = c_a @ c_b
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = 5 + c_a.trace() + c_b.trace() - 2 * cross
    assert frechet(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_survives_singular_covariances():
    """Mutant: a matrix root that needs full rank gives NaN with fewer images than features."""
    a = normal(5, 20, 0)
    assert frechet(a, a + 1) == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("metric", [c2st, sliced_wasserstein, mmd, frechet])
def test_bad_sets_are_refused(metric):
    """Mutant: different dimensions broadcast, and NaN sorts last in silence."""
    good = normal(60, 2, 0)
    with pytest.raises(ValueError, match=r"\(60, 2\) and \(60, 3\)"):
        metric(good, normal(60, 3, 0))
    with pytest.raises(ValueError, match="finite"):
        metric(good, good / 0)
    with pytest.raises(ValueError, match="got 60 and 1"):
        metric(good, good[:1])
