"""The rows of the exactness table: the default recipe, and each objective alone."""

from __future__ import annotations

from typing import Any

from benchmarks.cells import Row
from outsourced.objectives import (
    AdjointSampling,
    DetailedBalance,
    LogVariance,
    PathLikelihood,
    ReverseKL,
    SubTrajectoryBalance,
    TrajectoryBalance,
)

DIAGONAL: dict[str, Any] = {"steps": 50, "covariance": "diagonal"}
FULL: dict[str, Any] = {"steps": 25, "covariance": "full"}
LIKELIHOOD: dict[str, Any] = {"batch": 256, "denoising_steps": 8, "lr": 4e-3}

# The default recipe: half of the paths of one y are the sampler's own, half end in the z behind y.
MIXED: dict[str, Any] = {"n": 8, "weights": {"on_policy": 0.5, "simulated": 0.5}}
BALANCE: dict[str, Any] = {"groups": 16, "balance_lr": 2e-3}
WARM = 0.1
RECIPE = {**LIKELIHOOD, **BALANCE}

DEFAULT = (
    Row("default, diagonal", LogVariance, DIAGONAL, MIXED, WARM, RECIPE),
    Row("default, full", LogVariance, FULL, MIXED, WARM, RECIPE),
)

PAIRED: dict[str, Any] = {"n": 2, "weights": {"on_policy": 1.0}}
FLOW: dict[str, Any] = {**FULL, "flow": True}


def alone(
    name: str, objective: Any, sampler: Any, paths: Any, share: float = 0.2, **settings: Any
) -> Row:
    """A row of one objective from scratch, with a share of the effort of a default row."""
    return Row(name, objective, sampler, paths, settings=settings, share=share)


OBJECTIVES = (
    alone("TB", TrajectoryBalance, FULL, MIXED, **BALANCE),
    alone("LogVariance", LogVariance, FULL, MIXED, **BALANCE),
    alone("SubTB", SubTrajectoryBalance, FLOW, MIXED, 0.5, **BALANCE),
    alone("DetailedBalance", DetailedBalance, FLOW, MIXED, **BALANCE),
    alone("PathLikelihood", PathLikelihood, FULL, MIXED, **LIKELIHOOD),
    alone("ReverseKL", ReverseKL, FULL, PAIRED, 0.5, groups=32, balance_lr=3e-3),
    alone("AdjointSampling", AdjointSampling, DIAGONAL, PAIRED, groups=64, balance_lr=2e-3),
)

GROUPS: dict[str, tuple[Row, ...]] = {"default": DEFAULT, "objectives": OBJECTIVES}
