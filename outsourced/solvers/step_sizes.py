"""Step sizes of diffusion samplers that are not given: tuned for a prior, or published for a task.

DPS: Chung et al., 2023, arXiv 2209.14687, appendix D. PSLD: Rout et al., 2023, arXiv 2307.00619,
settings of the authors' code for Stable Diffusion 1.5 at 512 px; they run latent DPS and GML-DPS
with the same. DAPS, ReSample, FlowDPS and FlowChef: see their modules. They belong to those priors
and image sizes: other ones want a search. What `benchmarks/tune_solvers.py` found for the embedded
priors at sigma = 0.05 lies in `tuned.json`, by prior, method, task and number of steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from outsourced.posterior import Posterior
from outsourced.tasks.blur_kernels import MotionKernel
from outsourced.tasks.masks import RandomPixels
from outsourced.tasks.measurement import Measurement
from outsourced.tasks.region_masks import RandomStripes

Sizes = Mapping[str, float]
TUNED = Path(__file__).with_name("tuned.json")
ANY = "any task"
# Guidance adds up over the steps, so that more of them want shorter ones, over the ratio of their
# numbers: the searches in docs/tune_solvers*.csv found 0.06 to 0.18 of the sizes at 100 for 1000.
# Fewer ones want longer ones, here by the root of the ratio, a guess: steps that are too long
# diverge. Not so a variance or a rate.
FREE_OF_STEPS = ("resample", "daps")
_STRONG, _WEAK = {"omega": 1.0, "gamma": 0.1}, {"omega": 0.1, "gamma": 0.01}
_LATENT = {
    "inpaint_box": _WEAK,
    "inpaint_pixels": _STRONG,
    "destripe": _WEAK,
    "superres": _STRONG,
    "blur": _STRONG,
    "motion_blur": _STRONG,
}
PUBLISHED: Mapping[str, Mapping[str, Sizes]] = {
    "dps": {
        "inpaint_box": {"omega": 0.5},
        "inpaint_pixels": {"omega": 0.5},
        "destripe": {"omega": 0.5},
        "superres": {"omega": 0.3},
        "blur": {"omega": 0.3},
        "motion_blur": {"omega": 0.3},
        "phase_retrieval": {"omega": 1.0},
    },
    "latent_dps": {task: {"omega": sizes["omega"]} for task, sizes in _LATENT.items()},
    "gml_dps": _LATENT,
    "psld": _LATENT,
    "resample": {ANY: {"omega": 0.5, "gamma": 40.0}},
    "daps": {ANY: {"rate": 0.02}},
    "flow_dps": {ANY: {"omega": 15.0}},
    "flow_chef": {ANY: {"omega": 100.0}},
}
_OPERATORS = {
    "Inpainting": "inpaint_box",
    "Downsampling": "superres",
    "Blur": "blur",
    "BlurFFT": "blur",
    "PhaseRetrieval": "phase_retrieval",
    "CompressedSensing": "compressed_sensing",
}
# What draws the operators of a task, where it makes a task of its own.
_DRAWN = {
    RandomPixels: "inpaint_pixels",
    RandomStripes: "destripe",
    MotionKernel: "motion_blur",
}
_LIKE = {"motion_blur": "blur"}  # whose sizes will do where there are none


def task_name(task: Measurement) -> str:
    """What the tables call the task; the class of its physics where they do not know it."""
    name = type(task.physics).__name__
    parts = getattr(task.operator_sampler, "args", ())  # of the partial that tasks make
    for kind, told in _DRAWN.items():
        if any(isinstance(part, kind) for part in parts):
            return told
    return _OPERATORS.get(name) or _OPERATORS.get(type(task).__name__, name)


def step_sizes(
    method: str, posterior: Posterior, steps: int, **given: float | None
) -> tuple[float, ...]:
    """The step sizes that were given, and tuned or else published ones in place of None.

    Args:
        method: name of the sampler.
        posterior: prior and measurement.
        steps: timesteps; of the numbers of steps that were tuned, the nearest ratio counts.
        **given: step sizes by name.

    Raises:
        ValueError: one is missing that is neither tuned nor published, or one is negative.
    """
    task: Any = posterior.task
    published = PUBLISHED.get(method, {})
    known = {**published.get(ANY, {}), **published.get(task_name(task), {})}
    known |= tuned(method, posterior, steps)
    for name, value in given.items():
        if value is None and name not in known:
            raise ValueError(
                f"solver.{name} of {method} has no published value for {task_name(task)}; give "
                "one (python -m benchmarks.tune_solvers searches)"
            )
        if value is not None and value < 0:
            raise ValueError(f"solver.{name} must be >= 0, got {value}")
    return tuple(known[name] if value is None else value for name, value in given.items())


def tuned(method: str, posterior: Posterior, steps: int) -> Sizes:
    """What a search found for the posterior's prior and task; empty where there was none."""
    task: Any = posterior.task
    of_prior = _table().get(getattr(posterior.prior, "path", ""), {})
    known, name = of_prior.get(method, {}), task_name(task)
    return scaled(known, method, name if name in known else _LIKE.get(name, name), steps)


def scaled(known: Mapping[str, Mapping[str, Sizes]], method: str, task: str, steps: int) -> Sizes:
    """The sizes of a method for a task, for another number of steps than they were found for over
    the ratio, or its root where there are fewer; empty where there are none.

    Args:
        known: sizes by task and number of steps.
        method: name of the sampler.
        task: as `task_name` says.
        steps: timesteps; of the numbers that are known, the nearest ratio counts.
    """
    found = known.get(task, {})
    if not found:
        return {}
    nearest = min(found, key=lambda number: abs(math.log(int(number) / steps)))
    factor = scale(method, int(nearest), steps)
    return {name: factor * size for name, size in found[nearest].items()}


def scale(method: str, known: int, steps: int) -> float:
    """Sizes of a method at a number of steps over those at a known one."""
    ratio = 1.0 if method in FREE_OF_STEPS else known / steps
    return min(ratio, math.sqrt(ratio))


@cache
def _table() -> dict[str, dict[str, dict[str, dict[str, Sizes]]]]:
    table: dict[str, dict[str, dict[str, dict[str, Sizes]]]] = json.loads(TUNED.read_text())
    return table
