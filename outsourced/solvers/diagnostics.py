"""Have the chains converged? Rank-normalised split R-hat and bulk effective sample size.

Vehtari, Gelman, Simpson, Carpenter & Bürkner, 2021, "Rank-normalization, folding, and localization:
an improved R-hat for assessing convergence of MCMC". Everything is per coordinate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST = 4  # draws per chain, so that each half has a variance


def split_rhat(draws: Tensor) -> Tensor:
    """Return R-hat: 1 when chains agree, above 1.01 when they do not, (*event) in float64.

    The larger of the rank-normalised split R-hat of the draws (location) and of their distances to
    the median (scale); section 4.

    Args:
        draws: S draws of C chains, (S, C, *event).

    Raises:
        ValueError: when there are fewer than 4 draws per chain or no chain.
    """
    halves = _split(draws)
    pooled = halves.flatten(0, 1)
    # torch gives the lower of two middle values; the median is their mean.
    median = (pooled.median(0).values - (-pooled).median(0).values) / 2
    folded = (halves - median).abs()
    return torch.maximum(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def bulk_ess(draws: Tensor) -> Tensor:
    """Return how many independent draws the S C draws are worth, (*event) in float64.

    Effective sample size of the rank-normalised split chains, autocorrelations summed by Geyer's
    initial monotone sequence; sections 3.2 and 4. Draws that are all equal give NaN.

    Args:
        draws: S draws of C chains, (S, C, *event).

    Raises:
        ValueError: when there are fewer than 4 draws per chain or no chain.
    """
    halves = _normal_scores(_split(draws))
    length, chains = halves.shape[:2]
    within, total = _variances(halves)
    gap = within - _autocovariance(halves).mean(1)
    correlation = 1 - gap / total
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    kept = (pairs > 0).cumprod(0)
    # The even lag where Geyer's sequence breaks off still counts once, if positive.
    end = 2 * kept.sum(0, keepdim=True).clamp_max(len(pairs) - 1)
    tail = correlation.gather(0, end).clamp_min(0).squeeze(0)
    time = 2 * (pairs.cummin(0).values * kept).sum(0) + tail - 1
    count = length * chains
    # Antithetic chains may beat independent draws, but an estimate far beyond is noise.
    return count / time.clamp_min(1 / math.log10(count))


def _split(draws: Tensor) -> Tensor:
    """Both halves of every chain as chains of their own, the middle of odd chains left out."""
    if draws.dim() < 2 or draws.shape[0] < FEWEST or draws.shape[1] < 1:
        raise ValueError(
            f"chain diagnostics need draws (S >= {FEWEST}, C >= 1, ...), got {tuple(draws.shape)}"
        )
    half = draws.shape[0] // 2
    return torch.cat([draws[:half], draws[-half:]], 1).double()


def _normal_scores(halves: Tensor) -> Tensor:
    """Normal quantiles of the pooled ranks; ties, which rejections make, share their mean rank."""
    values = halves.reshape(halves.shape[0] * halves.shape[1], -1).T.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    rank = (below + torch.searchsorted(ordered, values, right=True) + 1) / 2
    scores = torch.special.ndtri((rank.double() - 0.375) / (values.shape[1] + 0.25))
    return scores.T.reshape(halves.shape)


def _variances(halves: Tensor) -> tuple[Tensor, Tensor]:
    """Mean variance within chains, and the estimate of the variance that all chains share."""
    length = halves.shape[0]
    within = halves.var(0).mean(0)
    return within, within * (length - 1) / length + halves.mean(0).var(0)


def _rhat(halves: Tensor) -> Tensor:
    within, total = _variances(halves)
    return (total / within).sqrt()


def _autocovariance(halves: Tensor) -> Tensor:
    """Autocovariances of each chain at lags 0 .. N-1, biased by 1/N; padded against wrap-around."""
    length = halves.shape[0]
    spectrum = torch.fft.rfft(halves - halves.mean(0), n=2 * length, dim=0)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=0)[:length] / length
