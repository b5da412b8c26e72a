"""Control networks on vector and spatial noise, and observation encoders.

A control network maps states of all steps at once, (S, N, ...) with steps k (S,), to its outputs;
what depends only on the step is computed once per step, what depends only on the observation once
per observation. Output layers are zero at initialisation.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def zero_(layer: nn.Module) -> nn.Module:
    """Set all parameters to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class StepEmbedding(nn.Module):
    """Learned features of the K steps from Fourier features of their position and log-SNR.

    Args:
        rho: corr(z_k, z_K) of the reference, (K + 1,).
        width: Number of features.
    """

    features: Tensor

    def __init__(self, rho: Tensor, width: int, frequencies: int = 8):
        super().__init__()
        self.count = steps = len(rho) - 1
        position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:-1, None]
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
        rho: corr(z_k, z_K) of the reference.
        width, depth: Hidden size and number of residual blocks.
        skip_outputs: The first `skip_outputs` outputs receive the linear skip.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        rho: Tensor,
        width: int = 256,
        depth: int = 2,
        skip_outputs: int = 0,
    ):
        super().__init__()
        self.inputs, self.outputs, self.context = inputs, outputs, context
        self.width, self.depth, self.skip_outputs = width, depth, skip_outputs
        self.step = StepEmbedding(rho, 64)
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
        rho: corr(z_k, z_K) of the reference.
        width: Channels at full resolution; `levels` resolutions, doubling once.
    """

    time: Tensor

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, int],
        context: int,
        rho: Tensor,
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
        self.register_buffer(
            "time", 1000 * torch.arange(len(rho)) / (len(rho) - 1), persistent=False
        )

    def forward(self, x: Tensor, k: Tensor, e: Tensor) -> Tensor:
        """x (S, N, channels, H, W), k (S,), e (N, context, H, W) -> (S, N, outputs, H, W)."""
        s, n = x.shape[:2]
        joint = torch.cat([x, e.expand(s, *e.shape)], 2).flatten(0, 1)
        height, width = joint.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        time = self.time[k].repeat_interleave(n)
        out = self.unet(F.pad(joint, pad), time).sample[..., :height, :width]
        return out.unflatten(0, (s, n))


class VectorEncoder(nn.Module):
    """Embedding of a vector observation: the observation itself beside an MLP of it.

    Args:
        shape: (D,) of the features.
        width: Size of the MLP's part; the embedding has `size` = D + width entries.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 64):
        super().__init__()
        (inputs,) = shape
        self.size = inputs + width
        self.mlp = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, size)."""
        return torch.cat([features, self.mlp(features)], -1)


class ImageEncoder(nn.Module):
    """Embedding of an image observation (C, H, W) as a vector, by strided convolutions.

    Args:
        shape: (C, H, W) of the features (masked image, mask, ...).
        width: Size of the embedding.
        channels: Channels of the first convolution; doubled once.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 128, channels: int = 32):
        super().__init__()
        inputs, height, side = shape
        self.size = width
        sizes = (inputs, channels, 2 * channels, 2 * channels)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        cells = math.ceil(height / 8) * math.ceil(side / 8)
        layers += [nn.Flatten(), nn.Linear(cells * sizes[-1], 2 * width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(2 * width, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, size)."""
        return self.net(features)


class SpatialEncoder(nn.Module):
    """Embedding of an image observation as a map on the noise's own grid.

    Args:
        shape: (C, H, W) of the features.
        size: (h, w) of the noise grid.
        width: Channels of the map.
    """

    def __init__(self, shape: tuple[int, ...], size: tuple[int, int], width: int = 32):
        super().__init__()
        self.size, self.grid = width, size
        self.fine = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, size, h, w)."""
        return self.coarse(F.adaptive_avg_pool2d(self.fine(features), self.grid))


def control_network(
    inputs: int,
    outputs: int,
    noise_shape: tuple[int, ...],
    context: int,
    rho: Tensor,
    width: int,
    depth: int,
    skip: int = 0,
) -> nn.Module:
    """`VectorNetwork` or `SpatialNetwork` (with `depth` levels), whichever the noise's shape needs.

    Args:
        inputs, outputs: Entries, or channels on the noise grid.
        noise_shape: (d,) or (C, H, W).
        context: Size (channels) of the observation embedding.
        rho: corr(z_k, z_K) of the reference.
        width, depth: Size of the network.
        skip: Outputs with a linear skip; vector noise only.
    """
    if len(noise_shape) == 1:
        return VectorNetwork(inputs, outputs, context, rho, width, depth, skip)
    size = (noise_shape[1], noise_shape[2])
    return SpatialNetwork(inputs, outputs, size, context, rho, width, depth)


def observation_encoder(
    noise_shape: tuple[int, ...], feature_shape: tuple[int, ...], width: int
) -> "VectorEncoder | ImageEncoder | SpatialEncoder":
    """The encoder that turns features into a vector, or into a map on a spatial noise's grid.

    Raises:
        ValueError: Spatial noise with features that are no image.
    """
    if len(noise_shape) == 1:
        return (VectorEncoder if len(feature_shape) == 1 else ImageEncoder)(feature_shape, width)
    if len(feature_shape) != 3:
        raise ValueError(f"spatial noise {noise_shape} needs image features, got {feature_shape}")
    return SpatialEncoder(feature_shape, (noise_shape[1], noise_shape[2]), width)
