"""Hamiltonian moves whose integrator solves the Gaussian part of the dynamics exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from outsourced.moves.state import (
    Preconditioner,
    State,
    accept,
    checked_step,
    column,
    event_sum,
    normal,
)

HMC_TARGET = 0.65  # Beskos, Pillai, Roberts, Sanz-Serna & Stuart, 2013
HMC_LARGEST = math.pi / 2  # a quarter turn: with a flat reward, an independent draw


@torch.no_grad()
def hmc(
    state: State,
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    step: float | Tensor,
    leapfrog: int,
    preconditioner: Preconditioner | None = None,
    generator: torch.Generator | None = None,
) -> tuple[State, Tensor]:
    """Make one Hamiltonian move of `leapfrog` kick - rotate - kick steps and a Metropolis test.

    The prior's part of the motion is a rotation of (z, momentum) by the angle `step`, which is
    exact; only the reward kicks. A flat reward is thus always accepted, in any dimension. With a
    preconditioner the same holds for N(m, M) in the place of N(0, I), so that a posterior which
    *is* that Gaussian is always accepted. The energy error is summed over the kicks, and never a
    difference of two energies. Beskos, Pinski, Sanz-Serna & Stuart, 2011; Shahbaba, Lan, Johnson
    & Neal, 2014, section 3.

    Args:
        state: current z, log_reward and gradient.
        value_and_grad: maps z (N, *noise_shape) to log r(f(z)), (N,) nats, and its gradient in z.
        step: angle in (0, pi / 2], a number or (N,).
        leapfrog: steps >= 1, one gradient each. Draw it afresh for every move, independently of
            the state: a fixed one can close a circle and go nowhere.
        preconditioner: m and M of each chain, for vector noise; 0 and the identity by default.
        generator: source of randomness.

    Returns:
        the new state and the acceptance probability of each chain, (N,).

    Raises:
        ValueError: when a step is outside (0, pi / 2], leapfrog < 1, or the state carries no
            gradient.
    """
    if state.gradient is None:
        raise ValueError(
            "hmc needs state.gradient, got None; start from State(z, *value_and_grad(z))"
        )
    if leapfrog < 1:
        raise ValueError(f"hmc.leapfrog must be >= 1, got {leapfrog}")
    angle = column(checked_step(step, state.z, HMC_LARGEST), state.z)
    white = state.z if preconditioner is None else preconditioner.whiten(state.z)
    momentum, start = normal(state.z, generator), white
    kinetic = torch.zeros_like(state.log_reward)  # what the kicks add to |momentum|² / 2
    proposal, force = state, _rest_force(state, white, preconditioner)
    for _ in range(leapfrog):
        momentum, gained = _kick(momentum, 0.5 * angle * force)
        white, momentum = (
            angle.cos() * white + angle.sin() * momentum,
            angle.cos() * momentum - angle.sin() * white,
        )
        z = white if preconditioner is None else preconditioner.place(white)
        proposal = State(z, *value_and_grad(z))
        force = _rest_force(proposal, white, preconditioner)
        momentum, again = _kick(momentum, 0.5 * angle * force)
        kinetic = kinetic + gained + again
    log_ratio = proposal.log_reward - state.log_reward - kinetic
    if preconditioner is not None:
        log_ratio = log_ratio + 0.5 * event_sum((state.z - proposal.z) * (state.z + proposal.z))
        log_ratio = log_ratio - 0.5 * event_sum((start - white) * (start + white))
    return accept(state, proposal, log_ratio, generator)


def _kick(momentum: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The momentum after a kick, and what it adds to |momentum|² / 2."""
    return momentum + change, event_sum(change * (momentum + 0.5 * change))


def _rest_force(state: State, white: Tensor, preconditioner: Preconditioner | None) -> Tensor:
    """Gradient of log pi / N(m, M) in the white coordinates; of log r where that is the prior."""
    assert state.gradient is not None
    if preconditioner is None:
        return state.gradient
    return preconditioner.pull(state.gradient - state.z) + white
