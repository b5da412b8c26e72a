"""A small generative adversarial network (Goodfellow et al., 2014, arXiv 1406.2661) as a prior."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outsourced.priors.base import Prior
from outsourced.weights import Embedded

BASE = 4  # height and width of the first feature map
SILU_GAIN = 1.68  # 1 / root mean square of silu(n), n ~ N(0, 1)


def preserve_variance(module: nn.Module) -> None:
    """Initialise one layer so that z keeps its influence through a deep stack of SiLUs.

    PyTorch's default shrinks the features at each layer, and an untrained generator then gives
    nearly the same image for every z, from which the game finds few modes (He et al., 2015, arXiv
    1502.01852).
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        inputs = module.weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d):
            # An output pixel sees kernel / stride of the kernel in each direction.
            inputs = module.in_channels * module.weight[0, 0].numel() // math.prod(module.stride)
        nn.init.normal_(module.weight, std=SILU_GAIN / math.sqrt(inputs))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class StyledUp(nn.Module):
    """Double height and width, with the channels scaled by the style of the whole image first.

    The style reaches every resolution (Karras et al., 2019, arXiv 1812.04948), which keeps parts
    of one garment consistent. Nothing is normalised: the map stays smooth, and each sample alone.

    Args:
        channels_in: channels before.
        channels_out: channels after.
        style: dimension of the style.
    """

    def __init__(self, channels_in: int, channels_out: int, style: int) -> None:
        super().__init__()
        self.scale = nn.Linear(style, channels_in)
        self.up = nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        """Features (B, channels_in, H, W) and styles (B, style) to (B, channels_out, 2H, 2W)."""
        return F.silu(self.up(h * (1 + self.scale(style)[:, :, None, None])))


class GAN(Embedded, Prior):
    """The generator of an adversarial network: x = tanh(convolutions(style(z))), z ~ N(0, I).

    `GAN.from_weights("fashion_gan")` gives the embedded Fashion-MNIST prior; its discriminator
    lives in the recipe and is not kept.

    Args:
        latent: dimension of the noise z.
        style: dimension of the style that z is mapped to.
        channels: channels of the feature maps at 4×4, 8×8, ...; one doubling of the resolution
            between two of them.
        image_shape: (C, H, W) of x; H = W = 4 · 2^(len(channels) − 1).

    Raises:
        ValueError: a size is not positive, or the image size is not that of the last feature map.
    """

    embedded = "fashion_gan"

    def __init__(
        self,
        latent: int = 64,
        style: int = 128,
        channels: tuple[int, ...] = (128, 80, 48, 16),
        image_shape: tuple[int, ...] = (1, 32, 32),
    ) -> None:
        _check(latent, style, channels, image_shape)
        super().__init__((latent,), tuple(image_shape))
        self.config = {
            "latent": latent,
            "style": style,
            "channels": list(channels),
            "image_shape": list(image_shape),
        }
        self.style = nn.Sequential(
            nn.Linear(latent, style), nn.SiLU(), nn.Linear(style, style), nn.SiLU()
        )
        self.stem = nn.Linear(style, channels[0] * BASE**2)
        self.blocks: Any = nn.ModuleList(
            StyledUp(size_in, size_out, style) for size_in, size_out in itertools.pairwise(channels)
        )
        self.head = nn.Conv2d(channels[-1], image_shape[0], 3, padding=1)
        self.apply(preserve_variance)
        with torch.no_grad():
            # Full-sized scales would double the features at each block, and saturate the tanh.
            scaled: list[Any] = [self.head, *(block.scale for block in self.blocks)]
            for layer in scaled:
                layer.weight.mul_(0.3)
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: noise, (B, latent).

        Returns:
            images in (-1, 1), (B, C, H, W).
        """
        style = self.style(z)
        h = F.silu(self.stem(style)).unflatten(-1, (-1, BASE, BASE))
        for block in self.blocks:
            h = block(h, style)
        return self.head(h).tanh()


def _check(
    latent: int, style: int, channels: tuple[int, ...], image_shape: tuple[int, ...]
) -> None:
    for name, size in {"latent": latent, "style": style}.items():
        if size <= 0:
            raise ValueError(f"GAN.{name} must be > 0, got {size}")
    if not channels or min(channels) <= 0:
        raise ValueError(f"GAN.channels must be a list of sizes > 0, got {list(channels)}")
    side = BASE * 2 ** (len(channels) - 1)
    if tuple(image_shape[1:]) != (side, side):
        raise ValueError(
            f"GAN.image_shape must end in {side}, {side} for {len(channels)} channels, got "
            f"{tuple(image_shape)}; give one number of channels for each of 4x4, 8x8, ..., HxW"
        )
