"""Floating-point operations of the networks, counted on tensors without contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.large_rows import Scene

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Count:
    """Operations of a network for one sample.

    Attributes:
        forward: of a call.
        both: of a call and the backward pass of all that needs a gradient.
    """

    forward: float
    both: float

    @property
    def checkpointed(self) -> float:
        """Of a call, and of the same call again with its backward pass."""
        return self.forward + self.both


def operations(
    function: Callable[..., Tensor],
    inputs: Sequence[Shape],
    weights: Sequence[Tensor] | None = None,
    through: bool = False,
) -> Count:
    """Count a multiplication with addition as two, and nothing else.

    Attention counts as its two matrix products, whichever kernel computes it.

    Args:
        function: of one tensor for each of `inputs`, which are on the CPU as its weights are.
        inputs: shapes and types.
        weights: whose gradients the backward pass computes; by default those of the inputs.
        through: the inputs', too.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def run(grad: bool) -> float:
        counter = FlopCounterMode(display=False)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake, sdpa_kernel(SDPBackend.MATH), counter, torch.set_grad_enabled(grad):
            given = [torch.empty(shape, dtype=dtype) for shape, dtype in inputs]
            if weights is None or through:
                given = [value.requires_grad_(grad) for value in given]
            wanted = [*(weights or ()), *(given if weights is None or through else ())]
            # Clones: the counter's hooks on inputs of modules cannot be on leaves.
            out = function(*(value.clone() for value in given))
            if grad:
                torch.autograd.grad(out.sum(), wanted)
        return float(counter.get_total_flops())

    return Count(run(False), run(True))


@dataclass(frozen=True)
class Parts:
    """Operations of one sample in each network; `kernel` of the trained one's."""

    predict: Count
    decode: Count
    encode: Count
    embed: Count
    kernel: Count


def count_parts(scene: Scene) -> Parts:
    """The networks of a scene that is still on the CPU."""
    prior: Any = scene.posterior.prior
    latent: Shape = ((1, *prior.noise_shape), prior.dtype)
    image: Shape = ((1, *prior.data_shape), prior.dtype)
    time = prior.timesteps[0]
    return Parts(
        predict=operations(lambda h: prior._predict(h, time), [latent]),
        decode=operations(prior.decode, [latent]),
        encode=operations(prior.encode, [image]),
        embed=_embed(scene),
        kernel=_kernel(scene),
    )


def _embed(scene: Scene) -> Count:
    encoder = scene.sampler.encoder
    features = (1, *scene.posterior.task.feature_shape)  # type: ignore[misc]
    latent = (1, *scene.sampler.noise_shape)
    shapes = [(shape, torch.float32) for shape in (features, latent)]
    return operations(encoder, shapes, list(encoder.parameters()))


def _kernel(scene: Scene) -> Count:
    prior: Any = scene.posterior.prior
    network, (channels, *grid) = scene.sampler.network, scene.sampler.noise_shape
    joint = (1, 2 * channels + scene.sampler.encoder.size, *grid)
    time = prior.timesteps[:1]
    shapes = [(joint, torch.float32)]
    weights = list(network.parameters())  # of adapters and, through the input, of the encoder
    return operations(lambda x: prior.apply_network(network, x, time), shapes, weights, True)
