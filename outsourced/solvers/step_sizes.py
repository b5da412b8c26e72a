"""Published step sizes of diffusion samplers, by the name of the task.

DPS: Chung et al., 2023, arXiv 2209.14687, appendix D. PSLD: Rout et al., 2023, arXiv 2307.00619,
settings of the authors' code for Stable Diffusion 1.5 at 512 px; they run latent DPS and GML-DPS
with the same. They belong to those priors and image sizes: other ones want a search, see
`benchmarks/tune_solvers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outsourced.tasks.masks import RandomPixels
from outsourced.tasks.measurement import Measurement

_STRONG, _WEAK = {"omega": 1.0, "gamma": 0.1}, {"omega": 0.1, "gamma": 0.01}
_LATENT = {
    "inpaint_box": _WEAK,
    "inpaint_pixels": _STRONG,
    "superres": _STRONG,
    "blur": _STRONG,
}
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "dps": {
        "inpaint_box": {"omega": 0.5},
        "inpaint_pixels": {"omega": 0.5},
        "superres": {"omega": 0.3},
        "blur": {"omega": 0.3},
        "phase_retrieval": {"omega": 1.0},
    },
    "latent_dps": {task: {"omega": sizes["omega"]} for task, sizes in _LATENT.items()},
    "gml_dps": _LATENT,
    "psld": _LATENT,
}
_OPERATORS = {
    "Inpainting": "inpaint_box",
    "Downsampling": "superres",
    "Blur": "blur",
    "BlurFFT": "blur",
    "PhaseRetrieval": "phase_retrieval",
}


def task_name(task: Measurement) -> str:
    """What the tables call the task; the class of its physics where they do not know it."""
    name = type(task.physics).__name__
    masks = getattr(task.operator_sampler, "args", ())  # of the partial that `Inpaint` makes
    if name == "Inpainting" and any(isinstance(mask, RandomPixels) for mask in masks):
        return "inpaint_pixels"
    return _OPERATORS.get(name, name)


def step_sizes(method: str, task: Any, **given: float | None) -> tuple[float, ...]:
    """The step sizes that were given, and published ones in place of None.

    Args:
        method: name of the sampler.
        task: a measurement.
        **given: step sizes by name.

    Raises:
        ValueError: one is missing that nobody published, or is negative.
    """
    known = PUBLISHED.get(method, {}).get(task_name(task), {})
    for name, value in given.items():
        if value is None and name not in known:
            raise ValueError(
                f"solver.{name} of {method} has no published value for {task_name(task)}; give "
                "one (python -m benchmarks.tune_solvers searches)"
            )
        if value is not None and value < 0:
            raise ValueError(f"solver.{name} must be >= 0, got {value}")
    return tuple(known[name] if value is None else value for name, value in given.items())
