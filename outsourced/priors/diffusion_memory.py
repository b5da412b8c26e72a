"""How much memory one sample needs in a network, found without running the network."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = Callable[[Tensor], Tensor]


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once.

    Attributes:
        peak: The largest count so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._seen:  # a view of what is counted already
            return
        size = storage.nbytes()
        self._seen.add(storage)
        weakref.finalize(storage, self._free, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        self.live -= size


def bytes_per_sample(function: Function, like: Tensor, grad: bool) -> int:
    """Bytes that each further sample of a batch adds to the peak memory of a call.

    The call runs on tensors without contents, so it costs no arithmetic; work spaces of
    libraries, which no tensor owns, are not seen.

    Args:
        function: Maps (B, ...) to (B, ...), each row alone.
        like: One sample (1, ...) on the device and in the dtype of the calls.
        grad: Whether the call keeps what its gradient needs and takes that gradient.
    """
    # A compiled network would be compiled for tensors without contents. Decorating `_peak` would
    # import the compiler with this module, which takes seconds.
    peak = torch.compiler.disable(_peak)
    one, two = (peak(function, like, count, grad) for count in (1, 2))
    return max(two - one, 1)


def _peak(function: Function, like: Tensor, count: int, grad: bool) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = _Live()
    with FakeTensorMode(allow_non_fake_inputs=True), live, torch.set_grad_enabled(grad):
        x = torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device)
        out = function(x.requires_grad_(grad))
        if grad:
            torch.autograd.grad(out.sum(), x)
    return live.peak
