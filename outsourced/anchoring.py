"""A first Gaussian for each observation: the best of stored prior draws, improved by a climb."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from outsourced.climb import climb
from outsourced.laplace import Anchored
from outsourced.lookup import Lookup, Pairwise
from outsourced.networks import zero_
from outsourced.tasks.base import Observation

LIMIT = 14.0  # learned precisions stay within e^14 of the prior's


class Rewards(Pairwise, Protocol):
    """What the anchors ask about their problem."""

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]: ...


class Anchoring(nn.Module):
    """Gaussians about the best stored draws, with a learned precision along each coordinate.

    Args:
        size: Size (channels) of the observation embedding.
        noise_shape: (d,) or (C, H, W).
        data_shape: Event shape of x.
        dense: Whether the embedding is a vector, or a map on the noise's grid.
        lookup: Number of stored draws.
        steps: Gradients of log r by which a draw is improved; 0 for black boxes.
        precision: Log-precision at initialisation; closed gates keep the untrained sampler the
            prior.

    Attributes:
        size: What an anchor adds to the size (channels) of the embedding.

    Raises:
        ValueError: lookup < 1 or steps < 0.
    """

    def __init__(
        self,
        size: int,
        noise_shape: tuple[int, ...],
        data_shape: tuple[int, ...],
        dense: bool,
        lookup: int,
        steps: int,
        precision: float,
    ):
        super().__init__()
        if steps < 0:
            raise ValueError(f"sampler.climb must be >= 0 steps, got {steps}")
        self.steps, self.dense, self.precision = steps, dense, precision
        self.lookup = Lookup(lookup, noise_shape, data_shape)
        self.size = math.prod(noise_shape) if dense else noise_shape[0]
        head = nn.Linear(size, self.size) if dense else nn.Conv2d(size, self.size, 1)
        self.log_curvature = zero_(head)

    def forward(self, embedding: Tensor, obs: Observation, rewards: Rewards) -> Anchored:
        """Of B observations; differentiable in the precisions alone."""
        anchor = self.lookup(rewards, obs)
        if self.steps:
            anchor = climb(lambda z: rewards.grad_log_reward(z, obs), anchor, self.steps)
        log_curvature = (self.precision + self.log_curvature(embedding)).clamp(-LIMIT, LIMIT)
        return Anchored(anchor, log_curvature.reshape(anchor.shape).exp())

    def extend(self, embedding: Tensor, anchored: Anchored) -> Tensor:
        """The embedding with the anchors beside it."""
        anchor = anchored.anchor
        return torch.cat([embedding, anchor.flatten(1) if self.dense else anchor], 1)
