"""Estimators from a few random steps of paths that are noised back from known end points."""

import torch
from torch import Tensor

from outsourced.guidance import Context
from outsourced.kernels import Kernel
from outsourced.sampler import NoiseSampler


def denoising_log_ratio(
    sampler: NoiseSampler,
    z: Tensor,
    context: Context,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Unbiased estimate of log_ratio on backward paths from z, with grad: (n, B) in nats.

    Args:
        sampler: Scores the steps.
        z: End points, (n, B, *noise_shape).
        context: Of the B observations.
        steps: Number of steps drawn, stratified over the grid; K or more takes each once.
        generator: Source of randomness.
    """
    n, batch = z.shape[:2]
    count = min(steps, sampler.steps)
    k = _some_steps(sampler.steps, count, z, generator)
    before, after = sampler.reference.pair(z.flatten(0, 1), k, generator)
    ratio = sampler.score(before, after, k, context.repeat(n))
    return ratio.sum(0).reshape(n, batch) * (sampler.steps / count)


def adjoint_pair(
    sampler: NoiseSampler,
    end: Tensor,
    gradient: Tensor,
    context: Context,
    steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Kernel means and their regression targets w_k spread_k grad log r, in innovation units.

    Args:
        sampler: Gives the kernels.
        end: Fresh end points z_K, (N, *noise_shape).
        gradient: grad log r at them.
        context: Of the N end points.
        steps: Number of random steps S.
        generator: Source of randomness.

    Returns:
        Two tensors (S, N, *noise_shape).
    """
    k = _some_steps(sampler.steps, min(steps, sampler.steps), end, generator)
    before, _ = sampler.reference.pair(end, k, generator)
    guide = sampler.control.guide(before, k, context, sampler.conditioning)
    kernel = sampler.control(before, k, context, sampler.conditioning, guide)
    assert isinstance(kernel, Kernel)  # `Losses` refuses mixtures
    w, spread = (sampler.reference.at(name, k, before) for name in ("information", "spread"))
    return kernel.shift, w * spread * gradient


def _some_steps(steps: int, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`count` of the steps, stratified over the grid, each step equally likely: (count,)."""
    if count == steps:
        return torch.arange(count, device=like.device)
    offset = torch.rand(count, generator=generator, device=like.device)
    k = (torch.arange(count, device=like.device) + offset) * steps / count
    return k.long().clamp_max(steps - 1)
