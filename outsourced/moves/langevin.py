"""Metropolis-adjusted Langevin moves: one gradient each."""

from __future__ import annotations

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

MALA_TARGET = 0.574  # Roberts & Rosenthal, 1998


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
    s = column(checked_step(step, state.z), state.z)
    noise = normal(state.z, generator)
    force = _force(state.z, state.gradient, preconditioner)
    jump = 0.5 * s.square() * force + s * noise
    z = state.z + (jump if preconditioner is None else preconditioner.color(jump))
    proposal = State(z, *value_and_grad(z))
    assert proposal.gradient is not None
    # The noise that would bring the chain back: -jump = s²/2 force' + s back.
    back = -(noise + 0.5 * s * (force + _force(z, proposal.gradient, preconditioner)))
    log_proposals = 0.5 * event_sum((noise - back) * (noise + back))
    log_prior = 0.5 * event_sum((state.z - z) * (state.z + z))
    log_ratio = proposal.log_reward - state.log_reward + log_prior + log_proposals
    return accept(state, proposal, log_ratio, generator)


def _force(z: Tensor, gradient: Tensor, preconditioner: Preconditioner | None) -> Tensor:
    """Gradient of log pi in the coordinates of the noise."""
    force = gradient - z
    return force if preconditioner is None else preconditioner.pull(force)
