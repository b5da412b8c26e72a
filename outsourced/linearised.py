"""Least squares through a linearised map by a few conjugate gradients, each sample on its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linearised:
    """Whitened residuals near B points: residual + J d at a distance d.

    Attributes:
        residual: at the points, (B, m); 0 where nothing is observed.
        push: J d of d (B, ...), (B, m); 0 there, too.
        pull: J^T u of u (B, m), (B, ...).
    """

    residual: Tensor
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


def perturbed_fit(at: Linearised, noise: Tensor, steps: int) -> Tensor:
    """Steps d towards the least |residual + noise + J d|^2, (B, ...).

    With fresh noise of the measurement in every sample, minimisers scatter as a posterior does in
    the directions that the data determine (Bardsley et al., 2014, doi 10.1137/140964023). The first
    conjugate gradients go along these directions and leave the others as they were.

    Args:
        at: the residual and its Jacobian.
        noise: standard normal, (B, m); J^T has none of it where nothing is observed.
        steps: conjugate gradients, at least 1; each takes a `push` and a `pull`.

    Raises:
        ValueError: steps < 1.

    Source: Hestenes & Stiefel, 1952, section 10 (conjugate gradients for least squares).
    """
    if steps < 1:
        raise ValueError(f"a fit takes at least 1 step, got {steps}")
    rest = -(at.residual + noise)
    direction = at.pull(rest)
    found, size = torch.zeros_like(direction), _square(direction)
    for step in range(steps):
        image = at.push(direction)
        # A sample that is at its minimum stands still: 0 / tiny is 0.
        rate = size / _square(image).clamp_min(1e-30)
        found = found + _column(rate, found) * direction
        if step == steps - 1:
            break
        rest = rest - _column(rate, rest) * image
        gradient = at.pull(rest)
        after = _square(gradient)
        direction = gradient + _column(after / size.clamp_min(1e-30), found) * direction
        size = after
    return found


def _square(value: Tensor) -> Tensor:
    return value.flatten(1).square().sum(1)


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
