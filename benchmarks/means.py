"""The posterior mean as a solver: what a single answer of least squared error is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from outsourced.solvers.base import Samples, Solver
from outsourced.tasks.base import Observation


@dataclass(frozen=True)
class Mean:
    """Means of samples that count equally, as if they were samples.

    Attributes:
        solver: that draws the samples.
        count: samples behind a mean.
    """

    solver: Solver
    count: int

    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """n means for each observation; a mean of images is no f(z), so that z is NaN."""
        samples = self.solver(obs, n * self.count, generator, progress)
        x = samples.x.unflatten(0, (n, self.count)).mean(1)
        z = None if samples.z is None else samples.z[:n] * math.nan
        return replace(samples, x=x, z=z, log_weight=None, proposal_log_weight=None)
