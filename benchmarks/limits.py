"""Chains of as many moves as fit into a time."""

from __future__ import annotations

from typing import Any

import torch

from outsourced.solvers.chains import Chains
from outsourced.solvers.diagnostics import FEWEST
from outsourced.tasks.base import Observation


def moves_within(seconds: float, probe: float, calls: int, n: int) -> tuple[int, int]:
    """Moves of burn-in and after it that take a time, half each.

    Args:
        seconds: of the chain.
        probe: seconds of a short one.
        calls: moves of that one, and evaluations besides, of its start and its sample.
        n: samples that are wanted of each observation, a state each.
    """
    moves = int(seconds * calls / probe) - 1 - n  # the start and the samples take one each
    steps = max(FEWEST, n, moves - moves // 2)
    return max(0, moves - steps), steps


def lengthened(
    probe: Chains, obs: Observation, n: int, seconds: float, generator: torch.Generator | None
) -> Chains:
    """A chain like the probe that takes a time, or the shortest one where even that takes longer.

    Args:
        probe: the shortest chain, without burn-in.
        obs: B observations.
        n: samples that are wanted of each.
        seconds: of the chain.
        generator: source of randomness.
    """
    spent = probe(obs, 1, generator).seconds
    burn_in, steps = moves_within(seconds, spent, probe.steps + 2, n)
    options: dict[str, Any] = {"chains": probe.chains, "thin": probe.thin}
    return type(probe)(probe.posterior, steps=steps, burn_in=burn_in, **options)
