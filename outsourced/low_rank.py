"""Gaussian about an anchor whose curvature has low rank: what an observation tells of the noise.

Where an image informs few directions of the noise, other ones for each observation, the posterior
is the prior along all others. Random cotangents through f find their span, a tangent along each
gives the curvature there: 2 rank passes of f instead of one for each dimension.

Source: Halko, Martinsson & Tropp, SIAM Review 53 (2011), algorithm 4.1, for the span; Epperly,
Tropp & Webber, SIAM J. Matrix Anal. Appl. 45 (2024), for what lies outside of it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from outsourced.kernels import within
from outsourced.tasks.base import Observation

SHRINK = (1.0, 0.3, 0.1)  # lengths of a Newton step that are tried


class Linearised(Protocol):
    """log r, and its Gauss-Newton matrix J^T J by products with J; `Posterior` has them."""

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor: ...
    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]: ...
    def random_vjp(self, z: Tensor, obs: Observation, count: int) -> Tensor: ...
    def jvp(self, z: Tensor, obs: Observation, tangents: Tensor) -> Tensor: ...


@dataclass
class LowRank:
    """A Gaussian posterior of z about an anchor: log r adds Q diag(curvature) Q^T + rest (I - Q
    Q^T) to the precision of N(0, I).

    Attributes:
        anchor: Its mean, (B, *noise_shape).
        basis: Orthonormal columns Q, (B, d, rank).
        curvature: Precision along each of them, >= 0, ascending, (B, rank).
        rest: Mean precision along all other directions, >= 0, (B, 1).
    """

    anchor: Tensor
    basis: Tensor
    curvature: Tensor
    rest: Tensor

    def select(self, index: Tensor) -> "LowRank":
        """The Gaussians at `index` (n,)."""
        return LowRank(*(value[index] for value in vars(self).values()))

    @torch.no_grad()
    def log_z(self, log_reward: Tensor) -> Tensor:
        """Laplace's estimate of log E_{N(0, I)}[r(z)] in nats, from log r at the anchors, (B,)."""
        d, rank = self.basis.shape[1:]
        spent = self.anchor.flatten(1).square().sum(-1) + self.curvature.log1p().sum(-1)
        return log_reward - 0.5 * (spent + (d - rank) * self.rest[:, 0].log1p())

    def posterior(self, z: Tensor, rho: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised mean shift and variances of z_K given z_k = z, see `Laplace.posterior`.

        log r has the gradient `anchor` at the anchor, where it balances that of N(0, I).

        Returns:
            delta: (S, N, *noise_shape); c along Q, (S, N, rank), and outside, (S, N, 1), in (0, 1].
        """
        inside, outside = self.curvature[None], self.rest[None]
        square = spread.reshape(-1, 1, 1) ** 2
        c, c_rest = 1 / (1 + square * inside), 1 / (1 + square * outside)
        anchor = self.anchor.expand_as(z)
        pulled = within(self.basis, self.anchor - rho * z, inside, outside)
        delta = within(self.basis, spread * (anchor + pulled), c, c_rest)
        return delta, c, c_rest


@torch.no_grad()
def expand(problem: Linearised, z: Tensor, obs: Observation, rank: int) -> LowRank:
    """The Gauss-Newton matrix of log r at z, in the span of rank random products.

    Args:
        problem: The posteriors of the observations.
        z: Points of expansion, (B, *noise_shape).
        obs: B observations.
        rank: >= 2 directions, at most as many as dimensions.
    """
    probes = problem.random_vjp(z, obs, rank).flatten(2)
    exact = probes.double().permute(1, 2, 0)  # (B, d, rank)
    orthonormal, triangle = torch.linalg.qr(exact)
    # What a probe holds outside of the span of the others tells what all of them miss.
    jitter = 1e-12 * triangle.abs().amax((-2, -1), keepdim=True) + torch.finfo(z.dtype).tiny
    eye = torch.eye(rank, dtype=exact.dtype, device=z.device)
    sign = torch.where(triangle.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    inverse = torch.linalg.solve_triangular(
        triangle + jitter * torch.diag_embed(sign), eye.expand_as(triangle), upper=True
    )
    missed = 1 / inverse.square().sum(-1).mean(-1, keepdim=True)
    orthonormal = orthonormal.to(z.dtype)
    tangents = orthonormal.permute(2, 0, 1).reshape(rank, *z.shape)
    columns = problem.jvp(z, obs, tangents).permute(1, 2, 0)  # (B, m, rank)
    curvature, rotation = torch.linalg.eigh(columns.mT @ columns)
    rest = missed.to(z.dtype) / max(z[0].numel() - rank, 1)
    return LowRank(z, orthonormal @ rotation, curvature.clamp_min(0), rest)


@torch.no_grad()
def fit_low_rank(
    problem: Linearised, start: Tensor, obs: Observation, rank: int, steps: int
) -> tuple[LowRank, Tensor]:
    """Climb log r(z) - |z|^2 / 2 by Gauss-Newton steps of low rank; the Gaussian at their end, and
    log r at its anchor, (B,).

    A step is tried at the lengths `SHRINK`, and each sample keeps the best of them, or stays. The
    curvature is that of the last step, one behind its anchor: products are the cost.

    Args:
        problem: The posteriors of the observations.
        start: First points, (B, *noise_shape).
        obs: B observations.
        rank: Directions, see `expand`.
        steps: >= 1; each costs rank products with J^T, as many with J, a gradient and
            len(SHRINK) rewards of every sample.
    """
    z, found = start, None
    for _ in range(steps):
        value, gradient = problem.grad_log_reward(z, obs)
        found = expand(problem, z, obs, rank)
        scales = 1 / (1 + found.curvature[None]), 1 / (1 + found.rest[None])
        step = within(found.basis, (gradient - z)[None], *scales)[0]
        best, score = z, value - 0.5 * z.flatten(1).square().sum(-1)
        for length in SHRINK:
            trial = z + length * step
            reached = problem.log_reward(trial, obs) - 0.5 * trial.flatten(1).square().sum(-1)
            better = reached > score
            best = torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), trial, best)
            score = torch.where(better, reached, score)
        z = best
    assert found is not None
    reward = score + 0.5 * z.flatten(1).square().sum(-1)
    return LowRank(z, found.basis, found.curvature, found.rest), reward
