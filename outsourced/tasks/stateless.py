"""Call a deepinv physics without leaving traces in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def stateless(physics: nn.Module) -> Iterator[None]:
    """Put back every buffer and sub-module of the physics on exit.

    deepinv keeps the operator parameters of the last call in its buffers; with this, no result
    and no state_dict depends on earlier calls.

    Args:
        physics: the operator; its tensors are not copied.
    """
    saved = [(m, dict(m._buffers), dict(m._modules)) for m in physics.modules()]
    try:
        yield
    finally:
        for module, buffers, modules in saved:
            module._buffers.update(buffers)
            module._modules.update(modules)


def noise_reaches(physics: nn.Module, y: Tensor, params: dict[str, Tensor]) -> Tensor:
    """Return which entries of y the noise of a deepinv physics reaches, boolean, of y's shape.

    Args:
        physics: the operator.
        y: measurements, (B, *measurement_shape); only shape, dtype and device matter.
        params: operator parameters, each (B, ...).
    """
    from deepinv.physics import ZeroNoise

    with stateless(physics):
        physics.update_parameters(**params)  # type: ignore[operator]
        physics.noise_model = ZeroNoise()
        # Whatever a physics does to its noise besides adding it (a mask) shows on ones.
        reached: Tensor = physics.noise(torch.ones_like(y)) != 0  # type: ignore[operator]
    return reached
