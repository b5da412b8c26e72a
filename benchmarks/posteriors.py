"""Posteriors and solvers that tables ask for by the names of their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from outsourced.build import build_posterior, build_solver, images_of
from outsourced.posterior import Posterior

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PARTS = ("prior", "task", "posterior")


def configuration(prior: str, task: str, changes: list[str]) -> dict[str, Any]:
    """Prior, task, posterior and data of `train.py prior=PRIOR task=TASK`.

    Raises:
        ValueError: the prior's configuration has no held-out images.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", overrides=[f"prior={prior}", f"task={task}", *changes])
    if config.data.test is None:
        raise ValueError(f"--prior {prior} has no held-out images (data.test); use a fashion prior")
    parts = OmegaConf.to_container(config, resolve=False)
    assert isinstance(parts, dict)
    return {str(name): parts[name] for name in (*PARTS, "data")}


def load(prior: str, task: str, changes: list[str]) -> tuple[Posterior, Tensor]:
    """The posterior that `train.py prior=PRIOR task=TASK` gets, and its held-out images.

    Raises:
        ValueError: the prior's configuration has no held-out images.
    """
    config = configuration(prior, task, changes)
    images = images_of(config)
    assert images is not None
    return build_posterior({name: config[name] for name in PARTS}), images


def configured(solver: str, changes: Mapping[str, Any], posterior: Posterior) -> Any:
    """The solver of configs/solver/SOLVER.yaml with changed settings.

    Raises:
        ValueError: it does not apply to the posterior, or a setting is out of range.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "solver" / f"{solver}.yaml"))
    assert isinstance(config, dict)
    settings = {str(name): value for name, value in config.items()}
    return build_solver({**settings, **changes}, posterior, None)
