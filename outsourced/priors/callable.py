"""Any function or module from noise to data as a prior, black boxes included."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outsourced.priors.base import Prior

PROBE_SEED = 0
PROBE_TOLERANCE = 1e-4


class CallablePrior(Prior):
    """x = function(z) for a function of yours, checked once with a probe of two noises.

    The fingerprint covers the function's name, its kwargs and a module's weights, not its source.

    Args:
        function: a function or module from (B, *noise_shape) to (B, *data_shape), a class of
            which one instance is such a function, or the dotted path of any of these
            ("package.module.name"). A module is frozen in place.
        noise_shape: event shape of z.
        data_shape: event shape of x; probed by default.
        differentiable: whether gradients flow through the function; probed by default. Where
            False, the function is called without grad on detached noise and may return numpy.
        kwargs: passed to the class at construction, or to the function in every call.

    Raises:
        ValueError: a path that does not resolve, or a function that fails the probe: wrong batch
            or shape, not floating point, not finite, not deterministic, or samples that depend on
            the rest of their batch.
    """

    def __init__(
        self,
        function: str | Callable[..., Any] | nn.Module,
        noise_shape: Sequence[int],
        data_shape: Sequence[int] | None = None,
        differentiable: bool | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        target = _resolve(function) if isinstance(function, str) else function
        arguments = dict(kwargs or {})
        name = function if isinstance(function, str) else _name(target)
        if not callable(target):
            raise ValueError(f"prior.function {name} must be callable, got {type(target).__name__}")
        if isinstance(target, type):
            target, arguments = target(**arguments), {}
        shape = tuple(int(size) for size in noise_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"prior.noise_shape must be positive sizes, got {shape}")
        super().__init__(shape, (), differentiable is not False)
        self._name, self._kwargs = name, dict(kwargs or {})
        self.module = target if isinstance(target, nn.Module) else None
        self._function = functools.partial(target, **arguments)
        self.freeze()
        z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(PROBE_SEED))
        z = z.to(next((t.device for t in self.parameters()), z.device))
        x = self._probe(z)
        if data_shape is not None and tuple(data_shape) != tuple(x.shape[1:]):
            raise ValueError(
                f"prior.data_shape is {tuple(data_shape)}, but {name} returned {tuple(x.shape[1:])}"
            )
        self.data_shape = tuple(x.shape[1:])
        if differentiable is not False:
            self.differentiable = self._probe_gradient(z, bool(differentiable))

    def forward(self, z: Tensor) -> Tensor:
        """Call the function: (B, *noise_shape) -> (B, *data_shape), in the dtype of z."""
        x = self._call(z) if self.differentiable else _BlackBox.apply(z, self)
        if x.shape != (len(z), *self.data_shape):
            raise ValueError(
                f"{self._name} returned shape {tuple(x.shape)} for {len(z)} noises, expected "
                f"{(len(z), *self.data_shape)}"
            )
        return x

    def extra_repr(self) -> str:
        return f"function={self._name}, kwargs={self._kwargs}"

    def _call(self, z: Tensor) -> Tensor:
        x = self._function(z)
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{self._name} must return a floating-point tensor or array, got {got}; scale "
                "images to [-1, 1]"
            )
        return x.to(z)

    @torch.no_grad()
    def _probe(self, z: Tensor) -> Tensor:
        first, second, alone = self._call(z), self._call(z), self._call(z[:1])
        if first.ndim < 2 or len(first) != len(z) or len(alone) != 1:
            raise ValueError(
                f"{self._name} must map (B, {', '.join(map(str, self.noise_shape))}) to (B, ...) "
                f"with one event axis at least, got {tuple(first.shape)} for B=2 and "
                f"{tuple(alone.shape)} for B=1"
            )
        if not first.isfinite().all():
            raise ValueError(f"{self._name} returned values that are not finite")
        if not _close(first, second):
            raise ValueError(
                f"{self._name} must be deterministic, but two calls with the same noise differ by "
                f"{(first - second).abs().max():.3g}; draw nothing inside, use eval mode"
            )
        if not _close(first[:1], alone):
            raise ValueError(
                f"{self._name} must treat each sample alone, but the first of two differs from a "
                f"single call by {(first[:1] - alone).abs().max():.3g}; no batch statistics"
            )
        return first

    def _probe_gradient(self, z: Tensor, required: bool) -> bool:
        reason = "its output has no gradient"
        try:
            with torch.enable_grad():
                noise = z.clone().requires_grad_(True)
                x = self._call(noise)
                if x.requires_grad:
                    (gradient,) = torch.autograd.grad(x.sum(), noise)
                    if gradient.isfinite().all():
                        return True
                    reason = "its gradient is not finite"
        except (RuntimeError, TypeError) as error:
            # The same call succeeded without grad: what fails here is differentiation.
            reason = str(error)
        if required:
            raise ValueError(
                f"prior.differentiable is True, but {self._name} cannot be differentiated "
                f"({reason}); set it to False"
            )
        return False


class _BlackBox(torch.autograd.Function):
    """A call without grad whose derivative is refused rather than silently zero."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, prior: CallablePrior) -> Tensor:
        ctx.name = prior._name
        return prior._call(z.detach()).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"a gradient through the prior {ctx.name} was requested, but it is not differentiable; "
            "use an objective that needs none (TrajectoryBalance, LogVariance, PathLikelihood) or "
            "a differentiable prior"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * float(a.abs().max()))


def _name(target: Any) -> str:
    owner = target if hasattr(target, "__qualname__") else type(target)
    return f"{owner.__module__}.{owner.__qualname__}"


def _resolve(path: str) -> Any:
    module_path, _, attribute = path.rpartition(".")
    if not module_path:
        raise ValueError(f"prior.function must be a dotted path package.module.name, got {path!r}")
    try:
        return getattr(importlib.import_module(module_path), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"prior.function {path!r} cannot be imported ({error}); its module must be on the "
            "Python path"
        ) from error
