"""Derivative of an operator along many tangents at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[Tensor, dict[str, Tensor]], Tensor]


def directional(
    apply: Apply, linear: bool, columns: Tensor, x: Tensor, params: dict[str, Tensor]
) -> Tensor:
    """Return the derivatives of A at x along tangents, (d, B, *measurement_shape).

    Args:
        apply: the noiseless operator A(x, params).
        linear: whether A is, so that it can be applied to the tangents themselves.
        columns: d tangents for each x, (d, B, *data_shape).
        x: data, (B, *data_shape).
        params: operator parameters, each (B, ...).
    """
    d, n = columns.shape[:2]
    if linear:
        index = torch.arange(n, device=x.device).repeat(d)
        repeated = {k: v[index] for k, v in params.items()}
        return apply(columns.flatten(0, 1), repeated).unflatten(0, (d, n))
    # One by one: any physics is differentiable in x, not every one can be mapped over tangents.
    return torch.stack([torch.func.jvp(lambda u: apply(u, params), (x,), (c,))[1] for c in columns])
