"""Where chains are, the matrices that shape their proposals, and the Metropolis test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class State:
    """Where N chains are.

    Attributes:
        z: noise, (N, *noise_shape).
        log_reward: log r(f(z)) in nats, (N,).
        gradient: of log_reward in z, (N, *noise_shape); None for gradient-free kernels.
    """

    z: Tensor
    log_reward: Tensor
    gradient: Tensor | None = None


@dataclass
class Preconditioner:
    """A fixed matrix M = V diag(scale)² Vᵀ for each chain, such as a Laplace covariance.

    Attributes:
        basis: orthogonal V, (N, d, d).
        scale: standard deviations > 0 along the columns of V, (N, d).
        mean: centre of the Gaussian N(mean, M) that `pcn` and `hmc` take in the place of N(0, I),
            (N, d); the origin by default. `mala` has no use for it.
    """

    basis: Tensor
    scale: Tensor
    mean: Tensor | None = None

    def color(self, value: Tensor) -> Tensor:
        """M^{1/2} value = V diag(scale) value for value (N, d)."""
        return torch.einsum("nij,nj->ni", self.basis, self.scale * value)

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradient in the coordinates that `color` maps to z: diag(scale) Vᵀ gradient, (N, d)."""
        return self.scale * torch.einsum("nji,nj->ni", self.basis, gradient)

    def whiten(self, z: Tensor) -> Tensor:
        """M^{-1/2} (z - mean), standard normal where z ~ N(mean, M), (N, d)."""
        centred = z if self.mean is None else z - self.mean
        return torch.einsum("nji,nj->ni", self.basis, centred) / self.scale

    def place(self, white: Tensor) -> Tensor:
        """The z that `whiten` maps to white: mean + M^{1/2} white, (N, d)."""
        z = self.color(white)
        return z if self.mean is None else self.mean + z


def accept(
    state: State, proposal: State, log_ratio: Tensor, generator: torch.Generator | None
) -> tuple[State, Tensor]:
    """Metropolis test of each chain; a proposal whose reward is not finite is rejected.

    Args:
        state: where the chains are.
        proposal: where they might go.
        log_ratio: log of the Metropolis-Hastings ratio, (N,).
        generator: source of randomness.

    Returns:
        the new state and the acceptance probability of each chain, (N,).
    """
    valid = torch.isfinite(proposal.log_reward) & ~log_ratio.isnan()
    probability = torch.where(valid, log_ratio.clamp_max(0).exp(), 0.0)
    device = probability.device if generator is None else generator.device
    uniform = torch.rand(len(probability), generator=generator, device=device).to(probability)
    accepted = uniform < probability
    z = torch.where(column(accepted, state.z), proposal.z, state.z)
    value = torch.where(accepted, proposal.log_reward, state.log_reward)
    if state.gradient is None or proposal.gradient is None:
        return State(z, value), probability
    gradient = torch.where(column(accepted, z), proposal.gradient, state.gradient)
    return State(z, value, gradient), probability


def checked_step(step: float | Tensor, z: Tensor, upper: float = math.inf) -> Tensor:
    """The step of each chain, (N,); a ValueError unless all lie in (0, upper]."""
    step = torch.as_tensor(step, dtype=z.dtype, device=z.device).expand(len(z))
    if not ((step > 0) & (step <= upper)).all():
        low, high = float(step.min()), float(step.max())
        raise ValueError(f"step must be > 0 and <= {upper}, got values from {low} to {high}")
    return step


def column(value: Tensor, like: Tensor) -> Tensor:
    """One number per chain, shaped to broadcast over `like` (N, *noise_shape)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def event_sum(value: Tensor) -> Tensor:
    """Sum over the event, (N,)."""
    return value.flatten(1).sum(-1)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, type and device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like)
