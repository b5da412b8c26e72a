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

# The default recipe: 3/4 of the paths of one y are the sampler's own, 1/4 end in the z behind y.
RECIPE: dict[str, Any] = {"n": 8, "weights": {"on_policy": 0.75, "simulated": 0.25}}
RECIPE_SETTINGS = {**LIKELIHOOD, "groups": 32, "balance_lr": 5e-4}

DEFAULT = (
    Row("default, diagonal", LogVariance, DIAGONAL, RECIPE, 0.7, RECIPE_SETTINGS),
    Row("default, full", LogVariance, FULL, RECIPE, 0.7, RECIPE_SETTINGS),
)

MIXED: dict[str, Any] = {"n": 8, "weights": {"on_policy": 0.5, "simulated": 0.5}}
PAIRED: dict[str, Any] = {"n": 2, "weights": {"on_policy": 1.0}}
BALANCE: dict[str, Any] = {"groups": 16, "balance_lr": 2e-3}
FLOW: dict[str, Any] = {**FULL, "flow": True}


def alone(
    name: str, objective: Any, sampler: Any, paths: Any, share: float = 0.4, **settings: Any
) -> Row:
    """A row of one objective from scratch, with a share of the effort of a default row."""
    return Row(name, objective, sampler, paths, settings=settings, share=share)


OBJECTIVES = (
    alone("TB", TrajectoryBalance, FULL, MIXED, **BALANCE),
    alone("LogVariance", LogVariance, FULL, MIXED, **BALANCE),
    alone("SubTB", SubTrajectoryBalance, FLOW, MIXED, 1.0, **BALANCE),
    alone("DetailedBalance", DetailedBalance, FLOW, MIXED, **BALANCE),
    alone("PathLikelihood", PathLikelihood, FULL, MIXED, **LIKELIHOOD),
    alone("ReverseKL", ReverseKL, FULL, PAIRED, 1.0, groups=32, balance_lr=3e-3),
    alone("AdjointSampling", AdjointSampling, DIAGONAL, PAIRED, groups=64, balance_lr=2e-3),
)

GROUPS: dict[str, tuple[Row, ...]] = {"default": DEFAULT, "objectives": OBJECTIVES}
