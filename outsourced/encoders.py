"""Observation encoders: features of observations to a vector, or to a map on the noise's grid."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def observation_encoder(
    noise_shape: tuple[int, ...], feature_shape: tuple[int, ...], width: int, dense: bool
) -> "VectorEncoder | ImageEncoder | SpatialEncoder":
    """The encoder that turns features into a vector, or into a map on a spatial noise's grid.

    Args:
        noise_shape: (d,) or (C, H, W).
        feature_shape: (D,) or (C, H, W).
        width: Size of the embedding.
        dense: Whether the control reads a vector.

    Raises:
        ValueError: A map was asked for, but the features are no image.
    """
    if dense:
        return (VectorEncoder if len(feature_shape) == 1 else ImageEncoder)(feature_shape, width)
    if len(feature_shape) != 3:
        raise ValueError(f"spatial noise {noise_shape} needs image features, got {feature_shape}")
    return SpatialEncoder(feature_shape, (noise_shape[1], noise_shape[2]), width)
