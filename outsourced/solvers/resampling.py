"""Which of many draws are kept, each observation on its own: systematic resampling, medoids."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def resample(log_weight: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return indices of n systematic draws per observation, each column on its own, (n, B).

    Candidate i appears n w_i times, rounded down or up, w_i the self-normalised weights of its
    column. Douc, Cappé & Moulines, 2005, section 2.4; Kitagawa, 1996.

    Args:
        log_weight: (m, B) nats; -inf is a weight of zero.
        n: number of draws.
        generator: source of randomness, one uniform number per observation.

    Raises:
        ValueError: when a weight is NaN or +inf, or all weights of an observation are zero.
    """
    broken = log_weight.isnan() | (log_weight == math.inf)
    bad = broken.any(0) | (log_weight.amax(0) == -math.inf)
    if bad.any():
        raise ValueError(
            "resampling needs weights below infinity and one above zero per observation, got none "
            f"for observations {bad.nonzero().flatten().tolist()}; look at their log_reward, draw "
            "more, or do without resampling"
        )
    cumulative = torch.softmax(log_weight.double(), 0).cumsum(0).T.contiguous()
    cumulative = cumulative / cumulative[:, -1:]
    device = log_weight.device if generator is None else generator.device
    batch = log_weight.shape[1]
    u = torch.rand(batch, 1, generator=generator, device=device, dtype=torch.float64)
    position = (torch.arange(n, device=log_weight.device) + u.to(log_weight.device)) / n
    # Strictly below 1, so that rounding never picks a last candidate of weight zero.
    position = position.clamp_max(1 - 2**-53)
    return torch.searchsorted(cumulative, position, right=True).T


def pick(value: Tensor, index: Tensor) -> Tensor:
    """The draws (m, B, ...) that `resample` chose: (n, B, ...)."""
    return value[index, torch.arange(index.shape[1], device=index.device)]


def medoids(x: Tensor, n: int) -> Tensor:
    """Which draw of each of n groups has the least mean squared distance to the others of it.

    That is the one nearest to their mean: by the squared error an estimate, among the draws the
    best, which minimises the Bayes risk over them.

    Args:
        x: m draws, m a multiple of n, for each of B observations, (m, B, ...); a group is m / n
            draws in a row.
        n: groups.

    Returns:
        indices into the draws, (n, B).
    """
    groups = x.unflatten(0, (n, -1))
    away = (groups - groups.mean(1, keepdim=True)).flatten(3).square().sum(-1)
    first = torch.arange(0, len(x), groups.shape[1], device=x.device)
    return away.argmin(1) + first[:, None]


def ess_share(log_weight: Tensor) -> Tensor:
    """Effective sample size of m draws as a share of m, float64 (B,). Kong, 1992."""
    weight = torch.softmax(log_weight.double(), 0)
    return 1 / weight.square().sum(0) / len(weight)


def log_z_std(log_weight: Tensor, ancestor: Tensor, rounds: Tensor, mixed: Tensor) -> Tensor:
    """Estimate the standard deviation of log Z of a particle filter, float64 (B,).

    The larger of two estimates. One supposes that moves forget the ancestors: the sum over
    resamplings of (1 / ess - 1) / m. The other sees who descends from whom: sqrt(1 - (m / (m -
    1))^(rounds + 1) (1 - sum_i share_i^2)), share_i the weight of all particles that descend from
    the i-th first one (Lee & Whiteley, 2018, equation 8). It cannot exceed 1, which it reaches
    where all descend from one: then it says "at least".

    Args:
        log_weight: since the last resampling, (m, B) nats, m >= 2.
        ancestor: index of the first particle that each of the m descends from, (m, B).
        rounds: how often each observation was resampled so far, (B,).
        mixed: sum of (1 / ess - 1) / m over them, (B,).
    """
    m = len(ancestor)
    weight = torch.softmax(log_weight.double(), 0)
    share = torch.zeros_like(weight).scatter_add(0, ancestor, weight)
    different = 1 - share.square().sum(0)
    variance = (1 - (m / (m - 1)) ** (rounds.double() + 1) * different).clamp_max(1)
    return torch.maximum(variance, mixed + (1 / ess_share(log_weight) - 1) / m).sqrt()
