"""From a resolved configuration to objects, and from a run folder back to a trained sampler."""

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor

from outsourced.distilling import inherit, student_config
from outsourced.networks import is_dense
from outsourced.posterior import Posterior
from outsourced.run import WEIGHTS, Run
from outsourced.sampler import NoiseSampler

FULL_COVARIANCE_LIMIT = 64  # above it a triangular factor costs more than the network
GAUSS_NEWTON_LIMIT = 64  # one tangent through f for every dimension of the noise
SMALL_NOISE = 128  # entries, up to which a network of width 256 will do


@dataclass
class Problem:
    """A posterior, and the sampler that is trained for it."""

    posterior: Posterior
    sampler: NoiseSampler


def build_posterior(config: dict[str, Any]) -> Posterior:
    """Prior and task of a configuration.

    Raises:
        ValueError: The task does not fit the prior's data.
    """
    prior = instantiate(config["prior"])
    task = instantiate(_with_shape(config["task"], prior.data_shape))
    if tuple(task.data_shape) != tuple(prior.data_shape):
        raise ValueError(
            f"the task is for data of shape {tuple(task.data_shape)}, but the prior generates "
            f"{tuple(prior.data_shape)}; choose another task=... or prior=..."
        )
    return Posterior(prior, task, **config["posterior"])


def _with_shape(config: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """A task's configuration, its `data_shape: null` filled in, also those of its parts."""
    filled = {k: _with_shape(v, shape) if isinstance(v, dict) else v for k, v in config.items()}
    if "data_shape" in filled and filled["data_shape"] is None:
        filled["data_shape"] = list(shape)
    return filled


def resolve(config: dict[str, Any], posterior: Posterior) -> dict[str, Any]:
    """The sampler's configuration with `auto` replaced by what suits the posterior.

    Gauss-Newton guidance and a full covariance for vector noise of a few dozen dimensions, the
    gradient for other differentiable priors and tasks, neither for black boxes; networks as wide
    as the noise asks for.

    Raises:
        ValueError: Guidance was asked for that the posterior has no gradient for.
    """
    sampler = dict(config["sampler"])
    if "informed" not in sampler:  # a transport: nothing of it is automatic
        return sampler
    shape = posterior.prior.noise_shape
    if sampler["informed"] == "auto":
        small = len(shape) == 1 and shape[0] <= GAUSS_NEWTON_LIMIT
        if not posterior.differentiable:
            sampler["informed"] = "none"
        elif small and hasattr(posterior.task, "whitened_jacobian"):
            sampler["informed"] = "gauss_newton"
        else:
            sampler["informed"] = "gradient"
    _check_informed(sampler, posterior)
    if sampler["covariance"] == "auto":
        full = len(shape) == 1 and shape[0] <= FULL_COVARIANCE_LIMIT
        sampler["covariance"] = "full" if full else "diagonal"
    # Keys that a run folder of an older version lacks have the sampler's own defaults.
    for name, size in _sizes(shape, is_dense(shape, sampler.get("network", "auto"))).items():
        if sampler.get(name) == "auto":
            sampler[name] = size
    return sampler


def _check_informed(sampler: dict[str, Any], posterior: Posterior) -> None:
    """Refuse guidance by gradients that do not exist, before a bank is built for nothing."""
    informed, black_box = sampler["informed"], posterior.black_box
    dear = [name for name in ("climb", "rank") if informed == "anchor" and sampler.get(name)]
    if black_box is not None and (dear or informed in ("gradient", "gauss_newton")):
        asked = ", ".join(f"sampler.{name}={sampler[name]}" for name in dear or ["informed"])
        raise ValueError(
            f"{asked} needs the gradient of log r, but {black_box} is a black box; use "
            "sampler.informed=anchor sampler.climb=0 sampler.rank=0, or sampler.informed=none"
        )
    if hasattr(posterior.task, "whitened_jacobian"):
        return
    if "rank" in dear:
        asked, instead = f"sampler.rank={sampler['rank']}", "sampler.rank=0"
    elif informed == "gauss_newton":
        asked, instead = (
            "sampler.informed=gauss_newton",
            "sampler.informed=gradient, anchor or none",
        )
    else:
        return
    raise ValueError(
        f"{asked} needs a measurement with a residual, got the task "
        f"{type(posterior.task).__name__}; use {instead}"
    )


def _sizes(noise_shape: tuple[int, ...], dense: bool) -> dict[str, int]:
    """Width of the control network and size of an observation's embedding."""
    entries = math.prod(noise_shape)
    if not dense:
        return {"width": 64, "embedding": 64}
    if entries <= SMALL_NOISE:
        return {"width": 256, "embedding": 128}
    return {"width": min(1024, 2 * entries), "embedding": 256}


def build(config: dict[str, Any], teacher: Problem | None = None) -> Problem:
    """Posterior and untrained sampler of a configuration; a student's of its teacher."""
    posterior = build_posterior(config) if teacher is None else teacher.posterior
    sampler = instantiate(
        resolve(config, posterior),
        noise_shape=posterior.prior.noise_shape,
        feature_shape=posterior.task.feature_shape,
        conditioning=posterior,
    )
    if teacher is not None:
        done, total = inherit(sampler, teacher.sampler)
        print(f"the student starts with {done} of its {total} weights from its teacher")
    return Problem(posterior, sampler)


def load_run(folder: str, weights: str = WEIGHTS) -> Problem:
    """The posterior and the trained sampler of a run folder.

    Args:
        folder: Path of a finished run.
        weights: Their file; `warm.safetensors` holds those at the end of the warm start.

    Raises:
        FileNotFoundError, ValueError: Not a run, not finished, damaged, or of another prior.
    """
    run = Run(folder)
    problem = build(run.config)
    run.load_weights(problem.sampler, problem.posterior.prior.fingerprint(), weights)
    problem.sampler.eval()
    return problem


def with_teacher(
    config: dict[str, Any], chosen: list[str]
) -> tuple[dict[str, Any], Problem | None]:
    """The configuration of a training; if `distill` names a run, the student's and its teacher.

    Args:
        config: Of the command.
        chosen: Names of the settings that were given.

    Raises:
        FileNotFoundError, ValueError: See `load_run` and `student_config`.
    """
    folder = config["distill"]
    if folder is None:
        return config, None
    student = student_config(config, Run(folder).config, chosen)
    return student, load_run(folder)


def problem_of(
    config: dict[str, Any], amortized: bool
) -> tuple[Posterior, NoiseSampler | None, Tensor | None]:
    """What a command samples from: posterior, trained sampler and held-out images, if any.

    Args:
        config: Of the command: `run`, or `prior`, `task`, `posterior` and `data`.
        amortized: Whether its solver is the trained sampler of the run.

    Raises:
        FileNotFoundError: `run` is not a run folder.
        ValueError: Both a run and a prior or task, or neither; options of another solver.
    """
    run, given = config["run"], [name for name in ("prior", "task") if config.get(name)]
    others = [name for name in ("correct", "candidates", "moves") if config[name] is not None]
    if others and not amortized:
        raise ValueError(f"{others[0]}=... is for solver=amortized; see solver.* for the others")
    if run is not None and given:
        raise ValueError(f"run={run} has its own prior and task; leave {' and '.join(given)} out")
    if run is None and amortized:
        raise ValueError(
            "run is required by solver=amortized: give the folder of a trained sampler as "
            "run=..., or choose another solver=... with prior=... and task=..."
        )
    if run is None and len(given) < 2:
        raise ValueError("without run=..., both prior=... and task=... are required")
    if amortized:
        problem = load_run(run)
        return problem.posterior, problem.sampler, held_out(run)
    whole = config if run is None else Run(run).config
    return build_posterior(whole), None, images_of(whole)


def build_solver(
    config: dict[str, Any], posterior: Posterior, sampler: NoiseSampler | None
) -> Callable[..., Any]:
    """The solver of a configuration.

    Args:
        config: `_target_` and its own arguments.
        posterior: Prior and task to solve.
        sampler: The trained sampler, for solvers that need one.
    """
    parts = {} if sampler is None else {"sampler": sampler}
    make = instantiate(config, _partial_=True)
    return make(posterior=posterior, **parts)


def held_out(folder: str) -> Tensor | None:
    """The held-out images of a run's data, if it has any.

    Args:
        folder: Path of the run.
    """
    return images_of(Run(folder).config)


def images_of(config: dict[str, Any]) -> Tensor | None:
    """The held-out images of a configuration's data, if it has any."""
    images: Tensor | None = instantiate(config["data"]["test"])
    return images


def code_version() -> str:
    """Package version, with the commit (and whether it was changed) in a git checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("outsourced")
    except PackageNotFoundError:
        number = "unknown"
    here = Path(__file__).resolve()
    # An installed package may lie inside somebody else's checkout: its own file must be tracked.
    if shutil.which("git") is None or not _git(here, "ls-files", here.name):
        return number
    commit = _git(here, "describe", "--always", "--dirty", "--exclude", "*")
    return f"{number}+{commit}" if commit else number


def _git(file: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""
