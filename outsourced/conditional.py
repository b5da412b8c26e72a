"""A diffusion network that also sees an observation, and the encoder that shows it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outsourced.adapters import Adapted, add_adapters, shared_copy
from outsourced.networks import zero_

DEPTH = 3  # residual blocks of the encoder
GROUPS = 8  # of its normalisation
SHOWN = 32  # channels that it shows the network beside its Gaussian
VARIANCES = (-8.0, 3.0)  # least and largest log variance of an entry


class Block(nn.Module):
    """A residual block of two convolutions; the identity at first."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(GROUPS, width), nn.SiLU(), zero_(nn.Conv2d(width, width, 3, padding=1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same."""
        return x + self.net(x)


class ObservationEncoder(nn.Module):
    """Observations as maps on the grid of latents: a Gaussian estimate of the latents, and more.

    Args:
        shape: (C, H, W) of the observation features.
        latent_shape: (c, h, w) of the latents; H / h and W / w must be the same integer.
        estimated: Whether a first estimate of the latents is given beside the features.
        width: Hidden channels, a multiple of 8.

    Attributes:
        size: Channels of the map; the first 2 c are mean and log variance of the latents.

    Raises:
        ValueError: The features are no image, or do not tile the grid; a width out of range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        estimated: bool,
        width: int,
    ):
        super().__init__()
        grid = latent_shape[1:]
        self.patch = shape[-1] // grid[-1] if len(shape) == 3 else 0
        if not self.patch or shape[1:] != tuple(self.patch * side for side in grid):
            raise ValueError(
                f"sampler=transport needs image features that tile the noise's grid {grid}, got "
                f"features {shape}; use sampler=default"
            )
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"sampler.width must be a multiple of {GROUPS}, got {width}")
        self.channels, self.estimated = latent_shape[0], estimated
        seen = shape[0] * self.patch**2 + estimated * self.channels
        self.size = 2 * self.channels + SHOWN + seen
        self.trunk = nn.Sequential(
            nn.Conv2d(seen, width, 3, padding=1),
            *[Block(width) for _ in range(DEPTH)],
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
        )
        self.head = zero_(nn.Conv2d(width, 2 * self.channels, 3, padding=1))
        self.out = nn.Conv2d(width, SHOWN, 1)

    def forward(self, features: Tensor, estimate: Tensor | None) -> Tensor:
        """(B, C, H, W) and latents (B, c, h, w), if `estimated`, -> (B, size, h, w)."""
        seen = F.pixel_unshuffle(features, self.patch)
        if self.estimated:
            assert estimate is not None
            seen = torch.cat([estimate, seen], 1)
        hidden = self.trunk(seen)
        mean, log_variance = self.head(hidden).chunk(2, 1)
        if self.estimated:
            mean = mean + estimate
        return torch.cat([mean, log_variance.clamp(*VARIANCES), self.out(hidden), seen], 1)

    def gaussian(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, (B, c, h, w) each, of a map (B, size, h, w)."""
        mean, log_variance = embedding[:, : 2 * self.channels].chunk(2, 1)
        return mean, log_variance


def gaussian_loss(mean: Tensor, log_variance: Tensor, value: Tensor) -> Tensor:
    """-log N(value; mean, variance) of an entry, up to a constant, mean over entries: (B,) nats."""
    error = (value - mean).square() * torch.exp(-log_variance)
    return 0.5 * (error + log_variance).flatten(1).mean(1)


def widened(
    network: Any,
    inputs: int,
    outputs: int,
    adapters: int | None = None,
    checkpointing: bool = False,
) -> Any:
    """A trainable copy of a U-Net that takes further channels and gives further ones.

    At first it does not look at the former, and the latter are 0.

    Args:
        network: A U-Net of diffusers, with `conv_in` and `conv_out`.
        inputs, outputs: How many.
        adapters: Rank of trainable adapters of all layers but these two; the other weights are then
            the U-Net's own, and frozen. By default all are copied and trained.
        checkpointing: Keep few activations for the backward pass, and compute the others again.

    Raises:
        ValueError: A rank below 1, or adapters of a network in half precision, whose gradients
            would vanish.
    """
    dtype = next(network.parameters()).dtype
    if adapters is None:
        found = copy.deepcopy(network).float().requires_grad_(True)
    elif dtype == torch.float16:
        raise ValueError("sampler.adapters needs prior.dtype=bfloat16 or float32, got float16")
    else:
        found = shared_copy(network)
        add_adapters(found, adapters, ("conv_in", "conv_out"))
    found.conv_in = _padded(found.conv_in, inputs, 0)
    found.conv_out = _padded(found.conv_out, 0, outputs)
    found.train()  # U-Nets of some versions keep all activations otherwise
    if checkpointing:
        found.enable_gradient_checkpointing()
    return found if adapters is None else Adapted(found, dtype)


def _padded(old: Any, inputs: int, outputs: int) -> nn.Conv2d:
    channels = old.in_channels + inputs, old.out_channels + outputs
    new = zero_(nn.Conv2d(*channels, old.kernel_size, old.stride, old.padding))
    with torch.no_grad():
        new.weight[: old.out_channels, : old.in_channels] = old.weight  # type: ignore[operator]
        new.bias[: old.out_channels] = old.bias  # type: ignore[operator]
    return new.to(old.weight.device)  # type: ignore[return-value]
