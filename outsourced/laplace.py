"""Gaussian (Laplace) approximation of a noise-space posterior by damped Gauss-Newton steps."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Laplace:
    """log r(z) ~ const + gradient . (z - anchor) - 1/2 (z - anchor)^T V diag(curvature) V^T (z -
    anchor).

    Attributes:
        anchor: Expansion point, (B, d).
        gradient: Gradient of log r at the anchor, (B, d).
        curvature: Eigenvalues >= 0 of the Gauss-Newton matrix, ascending, (B, d).
        basis: Its eigenvectors in columns, (B, d, d).
        log_z: Laplace estimate of log E_{N(0, I)}[r(z)] in nats, (B,).
    """

    anchor: Tensor
    gradient: Tensor
    curvature: Tensor
    basis: Tensor
    log_z: Tensor

    def select(self, index: Tensor) -> "Laplace":
        """The approximations at `index` (n,)."""
        return Laplace(*(value[index] for value in vars(self).values()))

    def posterior(self, z: Tensor, rho: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised mean shift and variances of z_K given z_k = z under the approximation.

        With prior N(rho z, spread^2 I) and the quadratic log r, the mean of z_K is
        rho z + spread * delta and its covariance spread^2 V diag(c) V^T.

        Returns:
            delta: (S, N, d), and c: (S, N, d) in (0, 1], along the columns of V.
        """
        c = 1 / (1 + spread**2 * self.curvature)
        gap = torch.einsum("nji,snj->sni", self.basis, self.anchor - rho * z)
        gradient = torch.einsum("nji,nj->ni", self.basis, self.gradient)
        force = spread * (gradient + self.curvature * gap)
        return torch.einsum("nij,snj->sni", self.basis, c * force), c

    def log_smoothed(self, z: Tensor, rho: float, spread: float) -> Tensor:
        """log E[exp(quadratic(rho z + spread xi))], xi ~ N(0, I), for z (N, d): (N,) nats.

        quadratic is the model of log r less its value at the anchor: under the approximation this
        is, up to a constant, the log of the expected reward of z_K given z_k = z.
        """
        gap = torch.einsum("nji,nj->ni", self.basis, rho * z - self.anchor)
        slope = torch.einsum("nji,nj->ni", self.basis, self.gradient)
        widened = 1 + spread**2 * self.curvature
        exponent = slope * gap - 0.5 * self.curvature * gap.square()
        exponent = exponent + 0.5 * (spread * slope).square()
        return (exponent / widened - 0.5 * widened.log()).sum(-1)


@dataclass
class Anchored:
    """A Gaussian posterior of z about an anchor, independent along the coordinates.

    Attributes:
        anchor: Its mean, (B, *noise_shape).
        curvature: Precision that log r adds to that of N(0, I), > 0, (B, *noise_shape).
    """

    anchor: Tensor
    curvature: Tensor

    def select(self, index: Tensor) -> "Anchored":
        """The Gaussians at `index` (n,)."""
        return Anchored(self.anchor[index], self.curvature[index])

    @torch.no_grad()
    def log_z(self, log_reward: Tensor) -> Tensor:
        """Laplace's estimate of log E_{N(0, I)}[r(z)] in nats, from log r at the anchors, (B,)."""
        spent = 0.5 * (self.anchor.square() + self.curvature.log1p())
        return log_reward - spent.flatten(1).sum(-1)

    def posterior(self, z: Tensor, rho: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised mean shift and variances of z_K given z_k = z, see `Laplace.posterior`.

        log r has the gradient `anchor` at the anchor, where it balances that of N(0, I).

        Returns:
            delta: (S, N, *noise_shape), and c: in (0, 1], of the same shape.
        """
        c = 1 / (1 + spread**2 * self.curvature)
        return c * spread * (self.anchor + self.curvature * (self.anchor - rho * z)), c


class Target(Protocol):
    """log r of B posteriors, asked about the observations at `rows` only."""

    def linearise(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log r (n,), its gradient (n, d) and Gauss-Newton matrix (n, d, d) at z (n, d)."""
        ...

    def log_reward(self, z: Tensor, rows: Tensor) -> Tensor:
        """log r (n,) at z (n, d)."""
        ...

    def grad_log_reward(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """log r (n,) and its gradient (n, d) at z (n, d)."""
        ...


def fit_laplace(
    target: Target,
    start: Tensor,
    iterations: int,
    tolerance: float = 0.1,
    shrink: tuple[float, ...] = (1.0, 0.3, 0.05),
) -> Laplace:
    """Climb log r(z) - |z|^2 / 2 by Gauss-Newton steps, then expand at the end point.

    A step is tried at the lengths `shrink`; each sample keeps the best of them, or stays, and is
    done once a step gains less than `tolerance`. The curvature is that of a sample's last
    linearisation, one step behind its anchor: matrices are the cost.

    Args:
        target: The B posteriors.
        start: First guess, (B, d).
        iterations: Largest number of steps >= 1; each costs one linearisation and len(shrink)
            rewards of the samples that are not done.
        tolerance: In nats.
        shrink: Step lengths, as fractions of the Gauss-Newton step.

    Source: Nocedal & Wright, Numerical Optimization, 2006, section 10.3.
    """
    if iterations < 1:
        raise ValueError(f"sampler.anchor_steps must be >= 1, got {iterations}")
    z, d = start.clone(), start.shape[-1]
    matrix = z.new_zeros(len(z), d, d)
    active = torch.arange(len(z), device=z.device)
    for _ in range(iterations):
        _, gradient, matrix[active] = target.linearise(z[active], active)
        z[active], gain = _climb(target, z[active], active, gradient, matrix[active], shrink)
        active = active[gain > tolerance]
        if not len(active):
            break
    return _expand(target, z, matrix)


def _climb(
    target: Target,
    z: Tensor,
    rows: Tensor,
    gradient: Tensor,
    matrix: Tensor,
    shrink: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """The best point on the Gauss-Newton step, and what it gains in nats."""
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    step = torch.linalg.solve(matrix + eye, (gradient - z).unsqueeze(-1)).squeeze(-1)
    # Not the value of the linearisation: a prior in bfloat16 gives another, and gains are compared.
    first = target.log_reward(z, rows) - 0.5 * z.square().sum(-1)
    best, score = z, first
    for length in shrink:
        trial = z + length * step
        reached = target.log_reward(trial, rows) - 0.5 * trial.square().sum(-1)
        better = reached > score
        best = torch.where(better[:, None], trial, best)
        score = torch.where(better, reached, score)
    return best, score - first


def _expand(target: Target, z: Tensor, matrix: Tensor) -> Laplace:
    value, gradient = target.grad_log_reward(z, torch.arange(len(z), device=z.device))
    curvature, basis = torch.linalg.eigh(matrix)
    curvature = curvature.clamp_min(0)
    # Second-order value at the maximum of the quadratic: exact where r is Gaussian, anywhere.
    force = torch.einsum("nji,nj->ni", basis, gradient - z)
    log_z = value - 0.5 * z.square().sum(-1) - 0.5 * torch.log1p(curvature).sum(-1)
    log_z = log_z + 0.5 * (force.square() / (1 + curvature)).sum(-1)
    return Laplace(z, gradient, curvature, basis, log_z)
