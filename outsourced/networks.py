"""Control networks on vector and spatial noise.

A control network maps states of all steps at once, (S, N, ...) with steps k (S,), to its outputs;
what depends only on the step is computed once per step, what depends only on the observation once
per observation. Output layers are zero at initialisation.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NETWORKS = ("auto", "dense", "convolutional")
DENSE_LIMIT = 1024  # entries of spatial noise, above which `auto` convolves
LARGEST_SKIP = 2**18  # entries of a linear skip's matrix that are worth their weights


class Times(Protocol):
    """The K steps, as `Reference` knows them: corr(z_k, z_K) and the places of z_0 .. z_K in [0,
    1]."""

    rho: Tensor
    position: Tensor


def zero_(layer: nn.Module) -> nn.Module:
    """Set all parameters to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class StepEmbedding(nn.Module):
    """Learned features of the K steps from Fourier features of their position and log-SNR.

    Args:
        times: Of the K steps.
        width: Number of features.
    """

    features: Tensor

    def __init__(self, times: Times, width: int, frequencies: int = 8):
        super().__init__()
        rho, position = times.rho, times.position[:-1, None]
        self.count = len(rho) - 1
        log_snr = torch.logit((rho[:-1, None] ** 2).double(), eps=1e-4) / 10
        angles = position * math.pi * torch.arange(1, frequencies + 1)
        features = torch.cat([log_snr, position, angles.sin(), angles.cos()], 1).float()
        self.register_buffer("features", features, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(features.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self) -> Tensor:
        """Features of all steps, (K, width)."""
        return self.mlp(self.features.to(next(self.mlp.parameters()).dtype))


@dataclass
class Modulation:
    """What a `VectorNetwork` computes from S steps and N observations alone, for all its layers.

    Attributes:
        gain, shift: Of the steps, (S, 1, depth width) and (S, 1, (1 + depth) width).
        bias: Of the observations, (N, (1 + depth) width).
        skip: Features of the steps behind the linear skip, (S, 16), or None. Its matrices are made
            where they are used: those of many steps at once would be the largest tensor of all.
    """

    gain: Tensor
    shift: Tensor
    bias: Tensor
    skip: Tensor | None = None

    def at(self, k: Tensor) -> "Modulation":
        """Of some of the steps, by their position among the S."""
        skip = None if self.skip is None else self.skip[k]
        return Modulation(self.gain[k], self.shift[k], self.bias, skip)


class VectorNetwork(nn.Module):
    """Residual MLP, modulated by step (gain and shift) and observation (shift), with a linear skip.

    output = head(trunk(x; k, e)) + M(k) x + N(k) e, with M and N generated from the step: the
    optimal control of a linear-Gaussian problem is of the second form, so no width is spent on it.
    Gains depend on the step alone, so that no modulation as large as the activations is ever held.

    Args:
        inputs: Size of x.
        outputs: Size of the output.
        context: Size of the observation embedding e.
        times: Of the K steps.
        width, depth: Hidden size and number of residual blocks.
        skip_outputs: The first `skip_outputs` outputs receive the linear skip.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        times: Times,
        width: int = 256,
        depth: int = 2,
        skip_outputs: int = 0,
    ):
        super().__init__()
        self.inputs, self.outputs, self.context = inputs, outputs, context
        self.width, self.depth, self.skip_outputs = width, depth, skip_outputs
        self.step = StepEmbedding(times, 64)
        self.enter = nn.Linear(inputs, width, bias=False)
        self.step_gain = nn.Linear(64, width * depth)
        self.step_shift = nn.Linear(64, width * (1 + depth))
        self.context_shift = nn.Linear(context, width * (1 + depth), bias=False)
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = zero_(nn.Linear(width, outputs))
        if skip_outputs:
            entries = skip_outputs * (inputs + context)
            self.skip = nn.Sequential(nn.Linear(64, 16), zero_(nn.Linear(16, entries)))

    def modulation(self, k: Tensor, e: Tensor) -> Modulation:
        """Of steps k (S,) and embeddings e (N, context)."""
        steps = self.step()[k]
        gain, shift = 1 + self.step_gain(steps)[:, None], self.step_shift(steps)[:, None]
        skip = self.skip[0](steps) if self.skip_outputs else None
        return Modulation(gain, shift, self.context_shift(e), skip)

    def _linear_skip(self, x: Tensor, skip: Tensor, e: Tensor) -> Tensor:
        matrix = self.skip[1](skip).reshape(len(skip), self.skip_outputs, -1)
        on_x, on_e = matrix.split([self.inputs, self.context], -1)
        return torch.baddbmm(e @ on_e.mT, x, on_x.mT)

    def forward(self, x: Tensor, k: Tensor, e: Tensor, given: Modulation | None = None) -> Tensor:
        """x (S, N, inputs), k (S,), e (N, context), given `modulation(k, e)` if at hand: (S, N,
        outputs)."""
        m = self.modulation(k, e) if given is None else given
        gains = m.gain.split(self.width, -1)
        shift, *shifts = m.shift.split(self.width, -1)
        bias, *biases = m.bias.split(self.width, -1)
        h = F.silu(self.enter(x).add_(bias).add_(shift))
        for block, g, s, b in zip(self.blocks, gains, shifts, biases, strict=True):
            h = F.silu(torch.addcmul(s, block(h).add_(b), g)).add_(h)
        out = self.head(h)
        if m.skip is None:
            return out
        first, rest = out.split([self.skip_outputs, self.outputs - self.skip_outputs], -1)
        return torch.cat([self._linear_skip(x, m.skip, e).add_(first), rest], -1)


class SpatialNetwork(nn.Module):
    """diffusers' `UNet2DModel` on noise (C, H, W), conditioned by maps on the same grid.

    Args:
        channels: Channels of the stacked inputs on the noise grid.
        outputs: Output channels.
        size: (H, W) of the noise; sides need not be powers of two, they are padded inside.
        context: Channels of the observation map.
        times: Of the K steps.
        width: Channels at full resolution; `levels` resolutions, doubling once.
    """

    time: Tensor

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, int],
        context: int,
        times: Times,
        width: int = 32,
        levels: int = 2,
    ):
        super().__init__()
        from diffusers import UNet2DModel

        self.multiple = 2 ** (levels - 1)
        self.unet: Any = UNet2DModel(
            sample_size=max(size),
            in_channels=channels + context,
            out_channels=outputs,
            block_out_channels=(width, *[2 * width] * (levels - 1)),
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            layers_per_block=1,
            # "default" adds the step before a group norm, which would subtract it again.
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=math.gcd(width, 16),
            attention_head_dim=width // 2,
        )
        zero_(self.unet.conv_out)  # type: ignore[attr-defined]
        self.register_buffer("time", (1000 * times.position).float(), persistent=False)

    def forward(self, x: Tensor, k: Tensor, e: Tensor) -> Tensor:
        """x (S, N, channels, H, W), k (S,), e (N, context, H, W) -> (S, N, outputs, H, W)."""
        s, n = x.shape[:2]
        joint = torch.cat([x, e.expand(s, *e.shape)], 2).flatten(0, 1)
        height, width = joint.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        time = self.time[k].repeat_interleave(n)
        out = self.unet(F.pad(joint, pad), time).sample[..., :height, :width]
        return out.unflatten(0, (s, n))


class FlatNetwork(nn.Module):
    """`VectorNetwork` on flattened spatial noise (C, H, W), conditioned by a vector.

    On a CPU, at a few hundred to a thousand entries, dense layers do in a step what takes a U-Net
    tens of times as long; beyond that their weights outgrow it.

    Args:
        channels, outputs: Channels of the stacked inputs and of the output on the noise grid.
        size: (H, W) of the noise.
        context: Size of the observation embedding.
        times, width, depth: See `VectorNetwork`.
        skip: Output channels with a linear skip, where its matrices are small enough.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, int],
        context: int,
        times: Times,
        width: int = 512,
        depth: int = 2,
        skip: int = 0,
    ):
        super().__init__()
        cells = size[0] * size[1]
        fits = skip * cells * (channels * cells + context) <= LARGEST_SKIP
        sizes = (channels * cells, outputs * cells, context)
        self.grid = (outputs, *size)
        self.dense = VectorNetwork(*sizes, times, width, depth, skip * cells if fits else 0)

    def forward(self, x: Tensor, k: Tensor, e: Tensor, given: Modulation | None = None) -> Tensor:
        """x (S, N, channels, H, W), k (S,), e (N, context), given `dense.modulation(k, e)` if at
        hand: (S, N, outputs, H, W)."""
        return self.dense(x.flatten(2), k, e, given).unflatten(2, self.grid)


def is_dense(noise_shape: tuple[int, ...], network: str) -> bool:
    """Whether a control on this noise is a dense network, which reads a vector of an observation.

    Args:
        noise_shape: (d,) or (C, H, W).
        network: `dense`, `convolutional`, or `auto`: dense up to `DENSE_LIMIT` entries.

    Raises:
        ValueError: Unknown network, or a convolutional one on vector noise.
    """
    vector = len(noise_shape) == 1
    if network not in NETWORKS:
        raise ValueError(f"sampler.network must be one of {', '.join(NETWORKS)}, got {network!r}")
    if vector and network == "convolutional":
        raise ValueError(
            f"sampler.network=convolutional needs spatial noise (C, H, W), got {noise_shape}; use "
            "dense or auto"
        )
    small = math.prod(noise_shape) <= DENSE_LIMIT
    return network == "dense" or vector or (network == "auto" and small)


def control_network(
    inputs: int,
    outputs: int,
    noise_shape: tuple[int, ...],
    context: int,
    times: Times,
    width: int,
    depth: int,
    skip: int = 0,
    network: str = "auto",
) -> nn.Module:
    """`VectorNetwork`, `FlatNetwork` or `SpatialNetwork` (with `depth` levels), see `is_dense`.

    Args:
        inputs, outputs: Entries, or channels on the noise grid.
        noise_shape: (d,) or (C, H, W).
        context: Size (channels) of the observation embedding.
        times: Of the K steps.
        width, depth: Size of the network.
        skip: Outputs (channels) with a linear skip; dense networks only.
        network: See `is_dense`.
    """
    if len(noise_shape) == 1:
        return VectorNetwork(inputs, outputs, context, times, width, depth, skip)
    size = (noise_shape[1], noise_shape[2])
    if is_dense(noise_shape, network):
        return FlatNetwork(inputs, outputs, size, context, times, width, depth, skip)
    return SpatialNetwork(inputs, outputs, size, context, times, width, depth)
