"""Step sizes that follow the acceptance of their own chain; freeze them before keeping draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def adapt(
    step: Tensor, probability: Tensor, target: float, iteration: int, upper: float = math.inf
) -> Tensor:
    """Return step sizes moved towards a target acceptance, on the log scale, (N,).

    Robbins-Monro with gain iteration^-0.6; Andrieu & Thoms, 2008, algorithm 4. Freeze the step
    before keeping draws: a chain that adapts for ever is not Markov.

    Args:
        step: current steps, (N,).
        probability: acceptance probabilities of the last move, (N,).
        target: wanted acceptance in (0, 1): `PCN_TARGET`, `MALA_TARGET`.
        iteration: 1, 2, ...
        upper: largest step; 1 for `pcn`.

    Raises:
        ValueError: when target is not in (0, 1) or iteration < 1.
    """
    if not 0 < target < 1:
        raise ValueError(f"adapt.target must lie in (0, 1), got {target}")
    if iteration < 1:
        raise ValueError(f"adapt.iteration must be >= 1, got {iteration}; count from 1")
    return (step * torch.exp(iteration**-0.6 * (probability - target))).clamp_max(upper)


@dataclass
class DualAveraging:
    """Step sizes that settle at a target acceptance, for a warm-up of known purpose.

    `step` explores; `settled` averages it over the warm-up and is the one to freeze. Hoffman &
    Gelman, 2014, section 3.2.1, with their constants.

    Args:
        first: first step of each chain, (N,).
        target: wanted acceptance in (0, 1).
        upper: largest step.

    Raises:
        ValueError: when target is not in (0, 1).
    """

    first: Tensor
    target: float
    upper: float = math.inf
    gain: float = 0.05  # gamma
    delay: float = 10.0  # t_0
    forgetting: float = 0.75  # kappa
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError(f"adaptation.target must lie in (0, 1), got {self.target}")
        self._top = math.log(self.upper) if math.isfinite(self.upper) else math.inf
        self._error = torch.zeros_like(self.first)
        self._log_step = self.first.log().clamp_max(self._top)
        self._log_mean = self._log_step

    @property
    def step(self) -> Tensor:
        """The step of the next move of the warm-up, (N,)."""
        return self._log_step.exp().clamp_max(self.upper)

    @property
    def settled(self) -> Tensor:
        """The step to keep after the warm-up, (N,); the first one when there was none."""
        return self._log_mean.exp().clamp_max(self.upper)

    def update(self, probability: Tensor) -> None:
        """Learn from the acceptance probabilities of the last move, (N,)."""
        self._count += 1
        share = 1 / (self._count + self.delay)
        self._error = (1 - share) * self._error + share * (self.target - probability)
        centre = self.first.log() + math.log(10)  # large steps are cheap: try them first
        log_step = centre - math.sqrt(self._count) / self.gain * self._error
        self._log_step = log_step.clamp_max(self._top)
        weight = self._count**-self.forgetting
        self._log_mean = weight * self._log_step + (1 - weight) * self._log_mean


class RobbinsMonro:
    """Step sizes led by `adapt`, for a warm-up too short for `DualAveraging`; see there.

    Args:
        first: first step of each chain, (N,).
        target: wanted acceptance in (0, 1).
        upper: largest step.
    """

    def __init__(self, first: Tensor, target: float, upper: float = math.inf) -> None:
        self.step, self.target, self.upper = first.clamp_max(upper), target, upper
        self._count = 0

    @property
    def settled(self) -> Tensor:
        """The step to keep after the warm-up, (N,)."""
        return self.step

    def update(self, probability: Tensor) -> None:
        """Learn from the acceptance probabilities of the last move, (N,)."""
        self._count += 1
        self.step = adapt(self.step, probability, self.target, self._count, self.upper)
