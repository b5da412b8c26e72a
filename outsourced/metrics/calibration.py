"""Simulation-based calibration: do posterior samples cover the truth as often as they claim?

Talts, Betancourt, Simpson, Vehtari & Gelman, 2018. Draw (x, y) jointly; if samples follow
p(x | y), the rank of x among them is uniform on 0..n in every coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the rank of the truth among the samples, ties broken at random, (B, d) in 0..n.

    Args:
        samples: n posterior samples for each of B observations, (n, B, d).
        truth: the x that produced each observation, (B, d).
        generator: source of randomness for ties.

    Raises:
        ValueError: when the shapes do not match or a value is NaN.
    """
    if samples.dim() != 3 or samples.shape[1:] != truth.shape or samples.shape[0] == 0:
        raise ValueError(
            f"ranks needs samples (n, B, d) and truth (B, d), got {tuple(samples.shape)} and "
            f"{tuple(truth.shape)}"
        )
    if samples.isnan().any() or truth.isnan().any():
        raise ValueError("ranks needs numbers, got NaN in samples or truth")
    below, ties = (samples < truth).sum(0), (samples == truth).sum(0)
    return below + ((ties + 1) * _uniform(truth, generator)).long()


def rank_chi2(rank: Tensor, n: int, bins: int) -> Tensor:
    """Return the p-value of a chi-square test of uniform ranks, one for each coordinate, (d,).

    Args:
        rank: ranks among n samples, (B, d) in 0..n.
        n: number of posterior samples behind each rank.
        bins: number of bins; n + 1 need not be a multiple, expected counts are exact.

    Raises:
        ValueError: when a rank is outside 0..n, bins is not in 2..n + 1, or a bin expects fewer
            than 5 ranks, where the chi-square law does not hold.
    """
    from scipy.stats import chi2

    if not 2 <= bins <= n + 1:
        raise ValueError(f"rank_chi2 needs 2 <= bins <= n + 1 = {n + 1}, got {bins}")
    if rank.dim() != 2 or rank.min() < 0 or rank.max() > n:
        raise ValueError(f"rank_chi2 needs ranks (B, d) in 0..{n}, got {tuple(rank.shape)}")
    members = torch.bincount(torch.arange(n + 1) * bins // (n + 1), minlength=bins)
    expected = members.double() * rank.shape[0] / (n + 1)
    if expected.min() < 5:
        raise ValueError(
            f"rank_chi2 needs at least 5 expected ranks a bin, got {expected.min():.1f} from "
            f"{rank.shape[0]} ranks in {bins} bins; use fewer bins or more observations"
        )
    binned = rank.cpu().long() * bins // (n + 1)
    counts = torch.stack([torch.bincount(column, minlength=bins) for column in binned.T])
    statistic = ((counts - expected).square() / expected).sum(1)
    return torch.from_numpy(chi2.sf(statistic.numpy(), bins - 1))


def coverage(
    samples: Tensor,
    truth: Tensor,
    levels: Sequence[float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how often central credible intervals hold the truth, (len(levels), d).

    Uses randomised ranks, whose expected coverage equals the level at every n when the samples
    are exact; intervals between sample quantiles would cover too little at small n.

    Args:
        samples: n posterior samples for each of B observations, (n, B, d).
        truth: the x that produced each observation, (B, d).
        levels: probabilities of the intervals, each in (0, 1).
        generator: source of randomness.

    Raises:
        ValueError: when a level is not in (0, 1) or the shapes do not match.
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"coverage.levels must lie in (0, 1), got {list(levels)}")
    rank = ranks(samples, truth, generator)
    u = (rank + _uniform(truth, generator)) / (samples.shape[0] + 1)
    distance = 2 * (u - 0.5).abs()
    return torch.stack([(distance <= level).double().mean(0) for level in levels])


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    u = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float64)
    return u.to(like.device)
