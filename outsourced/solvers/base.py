"""What every solver returns and how it is called."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from outsourced.tasks.base import Observation


@dataclass
class Samples:
    """n samples for each of B observations.

    Attributes:
        x: data, (n, B, *data_shape).
        z: the noise behind them, x = f(z), (n, B, *noise_shape); None where it was not asked for
            and costs more than x itself.
        log_weight: log importance weight of each sample in nats, (n, B); None where the samples
            count equally.
        prior_calls: evaluations of f that all samples together took.
        seconds: wall-clock time that all samples together took.
        proposal_log_weight: log-weights of everything that was proposed, (m, B), where the method
            has any: evidence and effective sample size are theirs.
        diagnostics: what else the method can say about itself, one entry per observation.
        estimates: whether x is nearer to one answer than draws of a posterior are.
    """

    x: Tensor
    z: Tensor | None
    log_weight: Tensor | None
    prior_calls: int
    seconds: float
    proposal_log_weight: Tensor | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    estimates: bool = False


class Solver(Protocol):
    """Anything that turns observations into posterior samples."""

    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Draw n samples for each of the B observations.

        Args:
            obs: B observations.
            n: samples for each, at least 1.
            generator: source of randomness.
            progress: show a progress bar.
        """
        ...


def check_request(obs: Observation, n: int) -> None:
    """Refuse a call without observations or without samples.

    Raises:
        ValueError: when n < 1 or there is no observation.
    """
    if n < 1:
        raise ValueError(f"solver needs n >= 1 samples per observation, got {n}")
    if len(obs) < 1:
        raise ValueError("solver needs at least one observation, got an empty batch")


def tile(obs: Observation, n: int) -> Observation:
    """B observations for the rows of (n, B, ...) flattened over its first two axes: (n B, ...)."""
    return obs[torch.arange(len(obs), device=obs.y.device).repeat(n)]


def clock(device: torch.device) -> float:
    """Seconds on a monotonic clock, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
