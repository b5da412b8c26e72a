"""Estimates of the evidence log Z(y) and of the quality of a sampler from path log-weights.

Every function takes log_weight (n, B), n paths for each of B observations, in nats, and returns
float64 (B,). A weight of exactly zero is log_weight = -inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _checked(log_weight: Tensor) -> Tensor:
    if log_weight.dim() != 2 or log_weight.shape[0] == 0:
        raise ValueError(
            "log_weight must be (n, B) with n >= 1 paths for each of B observations, got "
            f"{tuple(log_weight.shape)}"
        )
    bad = log_weight.isnan() | (log_weight == math.inf)
    if bad.any():
        raise ValueError(
            f"log_weight must be finite or -inf, got NaN or +inf in {int(bad.sum())} of "
            f"{bad.numel()} entries; look at the reward and the log-ratio"
        )
    return log_weight.double()


def elbo(log_weight: Tensor) -> Tensor:
    """Return the mean log-weight of sampler paths, a lower bound on log Z in expectation, (B,).

    Args:
        log_weight: (n, B), nats, paths drawn from the sampler.

    Raises:
        ValueError: when log_weight is not (n, B) or holds NaN or +inf.
    """
    return _checked(log_weight).mean(0)


def eubo(log_weight: Tensor) -> Tensor:
    """Return the mean log-weight of posterior paths, an upper bound on log Z in expectation, (B,).

    Blessing, Jia, Esslinger, Vargas & Neumann, 2024, "Beyond ELBOs". It sees missed modes, which
    the ELBO does not.

    Args:
        log_weight: (n, B), nats, backward paths from exact posterior draws.

    Raises:
        ValueError: when log_weight is not (n, B) or holds NaN or +inf.
    """
    return _checked(log_weight).mean(0)


def log_z(log_weight: Tensor) -> Tensor:
    """Return log of the mean weight of sampler paths; exp of it is unbiased for Z, (B,).

    Args:
        log_weight: (n, B), nats, paths drawn from the sampler.

    Raises:
        ValueError: when log_weight is not (n, B) or holds NaN or +inf.
    """
    log_weight = _checked(log_weight)
    return log_weight.logsumexp(0) - math.log(log_weight.shape[0])


def ess(log_weight: Tensor) -> Tensor:
    """Return the effective sample size (sum w)^2 / (n sum w^2), in [1/n, 1], (B,).

    Kong, 1992. Where every weight is zero it is 0.

    Args:
        log_weight: (n, B), nats, paths drawn from the sampler.

    Raises:
        ValueError: when log_weight is not (n, B) or holds NaN or +inf.
    """
    log_weight = _checked(log_weight)
    log_ess = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)
    return torch.where(log_weight.amax(0) == -math.inf, 0.0, log_ess.exp() / log_weight.shape[0])
