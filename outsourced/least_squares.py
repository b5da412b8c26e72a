"""Least squares by conjugate gradients, each row of a batch on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
ROUNDING = 16.0  # a gradient's relative rounding error, in units of the type's own


def least_squares(
    push: Map, pull: Map, right: Tensor, steps: int, damping: Tensor | None = None
) -> Tensor:
    """Steps towards the x of least |right - J x|^2 + damping |x|^2, from x = 0: (B, ...).

    Args:
        push: J of x (B, ...), shaped as `right`.
        pull: J^T of u, shaped as `right`: (B, ...).
        right: (B, ...).
        steps: iterations, at least 1; each takes a `push` and a `pull`.
        damping: >= 0, (B,); none by default.

    Raises:
        ValueError: steps < 1.

    Source: Hestenes & Stiefel, 1952, section 10; with damping Paige & Saunders, 1982, section 2.
    """
    if steps < 1:
        raise ValueError(f"least squares take at least 1 step, got {steps}")
    weight = right.new_zeros(len(right)) if damping is None else damping
    direction, rest = pull(right), right
    found, size = torch.zeros_like(direction), _square(direction)
    # Below it a gradient is rounding, and steps along it would walk away from the minimum.
    floor = (ROUNDING * torch.finfo(size.dtype).eps) ** 2 * size
    for step in range(steps):
        image = push(direction)
        curvature = _square(image) + weight * _square(direction)
        rate = size / curvature.clamp_min(1e-30) * (size > floor)
        found = found + _column(rate, found) * direction
        if step == steps - 1:
            break
        rest = rest - _column(rate, rest) * image
        gradient = pull(rest) - _column(weight, found) * found
        after = _square(gradient)
        direction = gradient + _column(after / size.clamp_min(1e-30), found) * direction
        size = after
    return found


def _square(value: Tensor) -> Tensor:
    return value.flatten(1).square().sum(1)


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
