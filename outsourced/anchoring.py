"""A first Gaussian for each observation: the best of stored prior draws, improved by a climb."""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from outsourced.climb import climb
from outsourced.laplace import Anchored
from outsourced.lookup import Lookup, Pairwise
from outsourced.low_rank import Linearised, LowRank, fit_low_rank
from outsourced.networks import zero_
from outsourced.tasks.base import Observation

LIMIT = 14.0  # learned precisions stay within e^14 of the prior's


class Rewards(Pairwise, Linearised, Protocol):
    """What the anchors ask about their problem."""


class Anchoring(nn.Module):
    """Gaussians about the best stored draws, with a learned precision along each coordinate.

    Args:
        size: Size (channels) of the observation embedding.
        noise_shape: (d,) or (C, H, W).
        data_shape: Event shape of x.
        dense: Whether the embedding is a vector, or a map on the noise's grid.
        lookup: Number of stored draws.
        steps: Gradients of log r by which a draw is improved; 0 for black boxes.
        precision: Log-precision at initialisation; with a rank, of what is added to the curvature
            in all directions, since f is straight only so far. Closed gates keep the untrained
            sampler the prior.
        anchors: Draws that become anchors of an observation; its paths take turns, or, with a
            rank, have as many as Laplace's evidence of each says.
        rank: Directions of the curvature of log r at an anchor, by products with the Jacobian of
            f, and one learned precision for all others; 0 for one along each coordinate.
        newton: Gauss-Newton steps of low rank by which an anchor is improved after the climb.
        slope: Whether the embedding also holds the gradient of log r at the anchor; one gradient
            an observation.

    Attributes:
        size: What an anchor adds to the size (channels) of the embedding.

    Raises:
        ValueError: lookup < 1, steps < 0, more anchors than stored draws, or rank and newton out of
            range.
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
        anchors: int,
        slope: bool,
        rank: int,
        newton: int,
    ):
        super().__init__()
        if steps < 0:
            raise ValueError(f"sampler.climb must be >= 0 steps, got {steps}")
        if not 1 <= anchors <= lookup:
            raise ValueError(f"sampler.anchors must be in 1..lookup = {lookup}, got {anchors}")
        _check_rank(rank, newton, math.prod(noise_shape))
        self.steps, self.dense, self.precision, self.slope = steps, dense, precision, slope
        self.anchors, self.rank, self.newton = anchors, rank, newton
        self.lookup = Lookup(lookup, noise_shape, data_shape)
        entries = math.prod(noise_shape) if dense else noise_shape[0]
        heads = 1 if rank else entries
        head = nn.Linear(size, heads) if dense else nn.Conv2d(size, heads, 1)
        self.log_curvature = zero_(head)
        self.size = 2 * entries + 1 if slope else entries

    def forward(
        self, embedding: Tensor, obs: Observation, rewards: Rewards, anchors: int
    ) -> tuple[Anchored | LowRank, Tensor, Tensor | None]:
        """Gaussians about the anchors of B observations, differentiable in the precisions alone,
        the embedding with the anchors beside it, and with log r's gradients there, and the shares
        of the anchors by Laplace's evidence, (anchors, B), with a rank.

        The first two have anchors B rows, all first anchors first.
        """
        anchor = self.lookup(rewards, obs, anchors)
        if anchors > 1:
            rows = torch.arange(len(obs), device=anchor.device).repeat(anchors)
            embedding, obs = embedding[rows], obs[rows]
        if self.steps:
            anchor = climb(lambda z: rewards.grad_log_reward(z, obs), anchor, self.steps)
        anchored, evidence = self._gaussian(anchor, embedding, obs, rewards)
        share = None if evidence is None else evidence.unflatten(0, (anchors, -1)).softmax(0)
        parts = [anchor := anchored.anchor]
        if self.slope:
            parts += self._slope(anchor, obs, rewards)
        if self.dense:
            flat = torch.cat([embedding, *(part.flatten(1) for part in parts)], 1)
            return anchored, flat, share
        grid = anchor.shape[-2:]
        maps = (part.expand(-1, -1, *grid) for part in parts)
        return anchored, torch.cat([embedding, *maps], 1), share

    def _gaussian(
        self, anchor: Tensor, embedding: Tensor, obs: Observation, rewards: Rewards
    ) -> tuple[Anchored | LowRank, Tensor | None]:
        log_curvature = (self.precision + self.log_curvature(embedding)).clamp(-LIMIT, LIMIT)
        if not self.rank:
            return Anchored(anchor, log_curvature.reshape(anchor.shape).exp()), None
        found, reward = fit_low_rank(rewards, anchor, obs, self.rank, self.newton)
        local = log_curvature.flatten(1).mean(1, keepdim=True).exp()
        narrow = replace(found, curvature=found.curvature + local, rest=found.rest + local)
        return narrow, found.log_z(reward)

    @staticmethod
    def _slope(anchor: Tensor, obs: Observation, rewards: Rewards) -> list[Tensor]:
        """Direction of the ascent of log r - |z|^2 / 2, of size O(1), and its log-length."""
        _, gradient = rewards.grad_log_reward(anchor, obs)
        force = gradient - anchor
        square = force.flatten(1).square().mean(1).reshape(-1, *[1] * (anchor.ndim - 1))
        length = torch.log1p(square) / 10
        return [force / (1 + square).sqrt(), length[:, :1]]


def _check_rank(rank: int, newton: int, entries: int) -> None:
    if rank and not 2 <= rank <= entries:
        raise ValueError(
            f"sampler.rank must be 0, or in 2..{entries}, the size of the noise, got {rank}"
        )
    if rank and newton < 1:
        raise ValueError(f"sampler.newton must be >= 1 steps, got {newton}")
