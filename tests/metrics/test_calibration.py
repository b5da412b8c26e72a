import pytest
import torch

from outsourced.metrics import coverage, rank_chi2, ranks


def conjugate(width: float = 1.0, shift: float = 0.0, n: int = 19, seed: int = 0):
    """x ~ N(0, 1), y = x + N(0, 1): the posterior is N(y / 2, 1 / 2), times `width` in std."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, 2, generator=generator)
    y = x + torch.randn(4000, 2, generator=generator)
    noise = torch.randn(n, 4000, 2, generator=generator)
    return y / 2 + shift + width * 0.5**0.5 * noise, x, generator


def test_ranks_count_samples_below_the_truth():
    """Mutants: samples above the truth; <= for <; reduction over observations."""
    samples = torch.tensor([[[0.0, 9.0]], [[1.0, 8.0]], [[2.0, 7.0]]])
    assert ranks(samples, torch.tensor([[1.5, 10.0]])).tolist() == [[2, 3]]
    assert ranks(samples, torch.tensor([[-1.0, 7.5]])).tolist() == [[0, 1]]


def test_ties_are_broken_uniformly():
    """Mutant: no tie-breaking, so discrete posteriors look miscalibrated at rank 0."""
    rank = ranks(torch.zeros(3, 4000, 1), torch.zeros(4000, 1), torch.Generator().manual_seed(0))
    share = torch.bincount(rank.flatten(), minlength=4) / 4000
    assert len(share) == 4
    assert (share - 0.25).abs().max() < 0.035


def test_exact_posteriors_pass_and_wrong_ones_fail():
    """Mutants: a test without power, or one that rejects the truth; a statistic pooled over
    coordinates, so that one bad coordinate hides behind a good one."""
    samples, x, generator = conjugate()
    assert (rank_chi2(ranks(samples, x, generator), 19, 10) > 0.01).all()
    for width, shift in [(0.8, 0.0), (1.25, 0.0), (1.0, 0.1)]:
        wrong = conjugate(width, shift)[0]
        assert (rank_chi2(ranks(wrong, x), 19, 10) < 1e-4).all()
        mixed = torch.stack([samples[..., 0], wrong[..., 1]], -1)
        p = rank_chi2(ranks(mixed, x), 19, 10)
        assert p[0] > 0.01
        assert p[1] < 1e-4


def test_bins_need_not_divide_the_ranks():
    """Mutant: equal expected counts in unequal bins, which rejects uniform ranks."""
    rank = torch.arange(20).repeat(500)[:, None]
    assert rank_chi2(rank, 19, 7).item() == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    p = rank_chi2(torch.randint(20, (2000, 400), generator=generator), 19, 7)
    assert abs((p < 0.1).double().mean() - 0.1) < 0.05
    assert abs(p.mean() - 0.5) < 0.06


@pytest.mark.parametrize("n", [4, 50])
def test_coverage_equals_the_level_for_exact_posteriors_at_any_n(n):
    """Mutants: intervals between sample quantiles, which cover 0.54 instead of 0.9 at n = 4; a
    one-sided interval; an over-confident sampler not seen."""
    levels = [0.3, 0.9]
    samples, x, generator = conjugate(n=n)
    exact = coverage(samples, x, levels, generator)
    assert (exact - torch.tensor(levels).double()[:, None]).abs().max() < 0.035
    narrow = coverage(conjugate(0.5, n=n)[0], x, levels, generator)
    assert (narrow < exact - 0.05).all()
    shifted = coverage(conjugate(0.5, 2.0, n=n)[0], x, levels, generator)
    assert (shifted[0] < 0.1).all()


def test_errors_name_the_way_out():
    """Mutant: chi-square with one expected count a bin, whose p-values mean nothing."""
    with pytest.raises(ValueError, match="use fewer bins or more observations"):
        rank_chi2(torch.zeros(20, 1, dtype=torch.long), 19, 10)
    with pytest.raises(ValueError, match=r"in 0\.\.19"):
        rank_chi2(torch.full((200, 1), 20), 19, 10)
    with pytest.raises(ValueError, match=r"2 <= bins <= n \+ 1 = 20, got 21"):
        rank_chi2(torch.zeros(200, 1, dtype=torch.long), 19, 21)
    with pytest.raises(ValueError, match=r"\(n, B, d\)"):
        ranks(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\)"):
        coverage(torch.zeros(3, 2, 1), torch.zeros(2, 1), [1.0])
