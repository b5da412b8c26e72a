"""Preconditioned Crank-Nicolson: moves without gradient."""

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

PCN_TARGET = 0.234  # Roberts, Gelman & Gilks, 1997


@torch.no_grad()
def pcn(
    state: State,
    log_reward: Callable[[Tensor], Tensor],
    step: float | Tensor,
    generator: torch.Generator | None = None,
    preconditioner: Preconditioner | None = None,
) -> tuple[State, Tensor]:
    """Make one preconditioned Crank-Nicolson move: z' = sqrt(1 - b²) z + b xi, without gradient.

    The proposal is reversible under N(0, I), so that only the reward decides:
    accept with probability min(1, r(f(z')) / r(f(z))). Cotter, Roberts, Stuart & White, 2013,
    section 4. With a preconditioner, z' = m + sqrt(1 - b²) (z - m) + b M^{1/2} xi is reversible
    under N(m, M), and the ratio is that of pi / N(m, M): Rudolf & Sprungk, 2018.

    Args:
        state: current z and log_reward.
        log_reward: maps z (N, *noise_shape) to log r(f(z)), (N,) nats.
        step: b in (0, 1], a number or (N,).
        generator: source of randomness.
        preconditioner: m and M of each chain, for vector noise; 0 and the identity by default.

    Returns:
        the new state (its gradient None) and the acceptance probability of each chain, (N,).

    Raises:
        ValueError: when a step is outside (0, 1].
    """
    step = checked_step(step, state.z, upper=1.0)
    b = column(step, state.z)
    shrink, noise = (1 - b.square()).sqrt(), normal(state.z, generator)
    if preconditioner is None:
        z = shrink * state.z + b * noise
        log_prior = torch.zeros_like(state.log_reward)
    else:
        white = preconditioner.whiten(state.z)
        moved = shrink * white + b * noise
        z = preconditioner.place(moved)
        log_prior = 0.5 * event_sum((state.z - z) * (state.z + z))
        log_prior = log_prior - 0.5 * event_sum((white - moved) * (white + moved))
    proposal = State(z, log_reward(z))
    current = State(state.z, state.log_reward)
    log_ratio = proposal.log_reward - state.log_reward + log_prior
    return accept(current, proposal, log_ratio, generator)
