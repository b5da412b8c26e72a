"""What a diffusion sampler asks of prior and task, refused before any work."""

from __future__ import annotations

from typing import Any

from outsourced.posterior import Posterior
from outsourced.solvers.schedule import is_flow
from outsourced.tasks.measurement import Measurement


def check_problem(method: Any, posterior: Posterior) -> None:
    """Refuse a posterior that a method cannot sample.

    Args:
        method: class with `name`, `latent`, `flow`, `linear` and `tempered`.
        posterior: prior and task.

    Raises:
        ValueError: the prior is no diffusion or flow or of the wrong kind, the task is a black
            box, measures nothing or not linearly, or beta would have no effect.
    """
    name, prior, task = f"solver {method.name}", posterior.prior, posterior.task
    kind = type(prior).__name__
    if not (hasattr(prior, "alphas_cumprod") and prior.differentiable):
        raise ValueError(
            f"{name} needs a diffusion or flow-matching prior, got {kind}; use a solver in noise "
            "space, such as pcn or mala"
        )
    if method.flow and not is_flow(prior):
        raise ValueError(f"{name} needs a flow-matching prior, got {kind}; use psld, daps or dps")
    latent = hasattr(prior, "encode")
    if method.latent is not None and method.latent != latent:
        wanted, other = ("latents", "dps") if method.latent else ("pixels", "psld or latent_dps")
        raise ValueError(f"{name} needs a prior on {wanted}, got {kind}; use {other}")
    if not task.differentiable:
        raise ValueError(
            f"{name} needs the gradient of log r, but the task {type(task).__name__} is a black "
            "box; use pcn or smc"
        )
    if not isinstance(task, Measurement):
        raise ValueError(f"{name} needs a measurement y = A(x) + n, got {type(task).__name__}")
    if method.linear and not task.linear:
        raise ValueError(f"{name} needs a linear operator, got {type(task.physics).__name__}")
    if not method.tempered and posterior.beta != 1:
        raise ValueError(
            f"{name} takes its strength from its own step sizes, so posterior.beta must be 1, got "
            f"{posterior.beta}"
        )


def check_steps(prior: Any, steps: int) -> None:
    """Refuse a number of steps that the prior's training does not allow.

    Raises:
        ValueError: out of range, or a diffusion that ends at pure noise, where nothing tells the
            clean part.
    """
    check_counts(steps=steps)
    if is_flow(prior):
        return
    if steps > len(prior.alphas_cumprod):
        raise ValueError(
            f"solver.steps must be <= {len(prior.alphas_cumprod)}, the steps of the prior's "
            f"training, got {steps}"
        )
    if prior.alphas_cumprod.min() <= 0:
        raise ValueError(
            "the prior's alphas_cumprod must be > 0 for this solver, got 0 at its last step (zero "
            "terminal SNR); load the model with rescale_betas_zero_snr=false"
        )


def check_counts(**counts: int) -> None:
    """Refuse numbers below 1.

    Args:
        **counts: settings of a solver by name.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"solver.{name} must be >= 1, got {value}")


def check_eta(eta: float) -> float:
    """Refuse an eta outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"solver.eta must be in [0, 1] (0: DDIM, 1: DDPM), got {eta}")
    return eta
