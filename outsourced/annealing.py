"""Inverse temperature beta raised so fast as the conditional effective sample size allows."""

import torch
from torch import Tensor


def conditional_ess(log_weight: Tensor, increment: Tensor) -> Tensor:
    """Normalised conditional ESS of each observation, in (0, 1]: (B,).

    (sum W w)^2 / sum W w^2 with W the self-normalised weights and w the incremental ones
    (Zhou, Johansen & Aston 2016, eq. 16).

    Args:
        log_weight: Current log-weights of n draws, (n, B).
        increment: Log of the incremental weights, (n, B).
    """
    base = torch.log_softmax(log_weight.double(), 0)
    first = torch.logsumexp(base + increment, 0)
    second = torch.logsumexp(base + 2 * increment.double(), 0)
    return (2 * first - second).exp()


def next_beta(
    beta: float, target: float, log_weight: Tensor, log_reward: Tensor, minimum: float = 0.5
) -> float:
    """Largest beta' in [beta, target] whose mean conditional ESS over observations is >= minimum.

    The ESS must also hold for equal current weights: where one draw has all of the weight, its
    conditional ESS is 1 for any beta'.

    Args:
        beta: Current inverse temperature.
        target: Final one.
        log_weight: At the current beta, (n, B).
        log_reward: log r at beta = 1, (n, B).
        minimum: Wanted conditional ESS in (0, 1).
    """

    def enough(value: float) -> bool:
        increment = (value - beta) * log_reward.double()
        weighted = conditional_ess(log_weight, increment)
        equal = conditional_ess(torch.zeros_like(log_weight), increment)
        return bool(torch.minimum(weighted, equal).mean() >= minimum)

    if enough(target):
        return target
    low, high = beta, target
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
