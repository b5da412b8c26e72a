"""Markov kernels that leave a posterior pi(z) proportional to N(z; 0, I) r(f(z)) invariant.

Chains are batched and never talk to each other: steps, acceptance and adaptation are per chain.
Proposals whose reward is not finite are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PCN_TARGET = 0.234  # Roberts, Gelman & Gilks, 1997
MALA_TARGET = 0.574  # Roberts & Rosenthal, 1998


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
    """

    basis: Tensor
    scale: Tensor

    def color(self, value: Tensor) -> Tensor:
        """M^{1/2} value = V diag(scale) value for value (N, d)."""
        return torch.einsum("nij,nj->ni", self.basis, self.scale * value)

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradient in the coordinates that `color` maps to z: diag(scale) Vᵀ gradient, (N, d)."""
        return self.scale * torch.einsum("nji,nj->ni", self.basis, gradient)


@torch.no_grad()
def pcn(
    state: State,
    log_reward: Callable[[Tensor], Tensor],
    step: float | Tensor,
    generator: torch.Generator | None = None,
) -> tuple[State, Tensor]:
    """Make one preconditioned Crank-Nicolson move: z' = sqrt(1 - b²) z + b xi, without gradient.

    The proposal is reversible under N(0, I), so that only the reward decides:
    accept with probability min(1, r(f(z')) / r(f(z))). Cotter, Roberts, Stuart & White, 2013,
    section 4.

    Args:
        state: current z and log_reward.
        log_reward: maps z (N, *noise_shape) to log r(f(z)), (N,) nats.
        step: b in (0, 1], a number or (N,).
        generator: source of randomness.

    Returns:
        the new state (its gradient None) and the acceptance probability of each chain, (N,).

    Raises:
        ValueError: when a step is outside (0, 1].
    """
    step = _checked_step(step, state.z, upper=1.0)
    b = _column(step, state.z)
    z = (1 - b.square()).sqrt() * state.z + b * _normal(state.z, generator)
    proposal = State(z, log_reward(z))
    current = State(state.z, state.log_reward)
    return _accept(current, proposal, proposal.log_reward - state.log_reward, generator)


@torch.no_grad()
def mala(
    state: State,
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    step: float | Tensor,
    preconditioner: Preconditioner | None = None,
    generator: torch.Generator | None = None,
) -> tuple[State, Tensor]:
    """Make one Metropolis-adjusted Langevin move: z' = z + s²/2 M grad log pi(z) + s M^{1/2} xi.

    pi is the posterior, prior included: grad log pi(z) = grad log r(f(z)) - z. Roberts & Tweedie,
    1996; with a constant preconditioner M, Roberts & Stramer, 2002.

    Args:
        state: current z, log_reward and gradient.
        value_and_grad: maps z (N, *noise_shape) to log r(f(z)), (N,) nats, and its gradient in z.
        step: s > 0, a number or (N,).
        preconditioner: M of each chain, for vector noise; the identity by default.
        generator: source of randomness.

    Returns:
        the new state and the acceptance probability of each chain, (N,).

    Raises:
        ValueError: when a step is not > 0, or the state carries no gradient.
    """
    if state.gradient is None:
        raise ValueError(
            "mala needs state.gradient, got None; start from State(z, *value_and_grad(z))"
        )
    s = _column(_checked_step(step, state.z), state.z)
    noise = _normal(state.z, generator)
    force = _force(state.z, state.gradient, preconditioner)
    jump = 0.5 * s.square() * force + s * noise
    z = state.z + (jump if preconditioner is None else preconditioner.color(jump))
    proposal = State(z, *value_and_grad(z))
    assert proposal.gradient is not None
    # The noise that would bring the chain back: -jump = s²/2 force' + s back.
    back = -(noise + 0.5 * s * (force + _force(z, proposal.gradient, preconditioner)))
    log_proposals = 0.5 * _sum((noise - back) * (noise + back))
    log_prior = 0.5 * _sum((state.z - z) * (state.z + z))
    log_ratio = proposal.log_reward - state.log_reward + log_prior + log_proposals
    return _accept(state, proposal, log_ratio, generator)


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


def _accept(
    state: State, proposal: State, log_ratio: Tensor, generator: torch.Generator | None
) -> tuple[State, Tensor]:
    valid = torch.isfinite(proposal.log_reward) & ~log_ratio.isnan()
    probability = torch.where(valid, log_ratio.clamp_max(0).exp(), 0.0)
    device = probability.device if generator is None else generator.device
    uniform = torch.rand(len(probability), generator=generator, device=device).to(probability)
    accepted = uniform < probability
    z = torch.where(_column(accepted, state.z), proposal.z, state.z)
    value = torch.where(accepted, proposal.log_reward, state.log_reward)
    if state.gradient is None or proposal.gradient is None:
        return State(z, value), probability
    gradient = torch.where(_column(accepted, z), proposal.gradient, state.gradient)
    return State(z, value, gradient), probability


def _force(z: Tensor, gradient: Tensor, preconditioner: Preconditioner | None) -> Tensor:
    """Gradient of log pi in the coordinates of the noise."""
    force = gradient - z
    return force if preconditioner is None else preconditioner.pull(force)


def _checked_step(step: float | Tensor, z: Tensor, upper: float = math.inf) -> Tensor:
    step = torch.as_tensor(step, dtype=z.dtype, device=z.device).expand(len(z))
    if not ((step > 0) & (step <= upper)).all():
        low, high = float(step.min()), float(step.max())
        raise ValueError(f"step must be > 0 and <= {upper}, got values from {low} to {high}")
    return step


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def _sum(value: Tensor) -> Tensor:
    return value.flatten(1).sum(-1)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like)
