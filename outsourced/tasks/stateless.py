"""Call a deepinv physics without leaving traces in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
