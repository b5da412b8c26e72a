"""What a step of a diffusion sampler is about, and what its formulas are written with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outsourced.solvers.schedule import Level
from outsourced.tasks.base import Observation


@dataclass(frozen=True)
class Moment:
    """From which noise level to which, for which observations.

    Attributes:
        now: noise level of the state.
        after: that of the next state.
        obs: R observations, one for each sample.
        generator: source of randomness.
    """

    now: Level
    after: Level
    obs: Observation
    generator: torch.Generator | None = None

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type and device of a tensor."""
        device = like.device if self.generator is None else self.generator.device
        drawn = torch.randn(like.shape, generator=self.generator, device=device, dtype=like.dtype)
        return drawn.to(like.device)

    def seed(self) -> int:
        """A seed for what must draw the same numbers twice."""
        device = "cpu" if self.generator is None else self.generator.device
        return int(torch.randint(2**62, (), generator=self.generator, device=device))


def column(size: float | Tensor, like: Tensor) -> float | Tensor:
    """A step size, shaped to broadcast over `like` (R, ...) where each row has its own (R,)."""
    return size.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(size, Tensor) else size


def norms(value: Tensor) -> Tensor:
    """Euclidean norm of each sample, (R, ...) to (R,)."""
    return torch.linalg.vector_norm(value.flatten(1), dim=1)
