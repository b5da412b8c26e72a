"""A normalizing flow of images in two scales as a prior: exactly invertible, with a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from outsourced.priors.base import Prior
from outsourced.priors.flow_networks import DetailFlow, haar, inverse_haar
from outsourced.priors.flow_tokens import TokenFlow
from outsourced.weights import Embedded


class ImageFlow(Embedded, Prior):
    """A normalizing flow of images in two scales, as in Wavelet Flow (Yu et al., 2020).

    p(x) = p(low) p(details | low), low and details the orthonormal Haar transform of x. An
    autoregressive flow with transformers makes the half-resolution image, which holds what is
    global about it; a conditional Glow of convolutions makes the details. Both noises lie on one
    grid of 4×4 blocks of pixels: the first 4C channels of z are those of the half-resolution
    image, the others those of the details, each near the pixels that it moves. x is not clamped.
    `ImageFlow.from_weights("fashion_flow")` gives the embedded prior.

    Args:
        width: width of the transformers of the half-resolution image.
        layers: layers of each transformer.
        heads: attention heads of each layer; divides the width.
        blocks: autoregressive maps, one transformer each.
        patch: side of a token, in blocks of 4×4 pixels.
        features: channels of the features that the details read off the half-resolution image.
        reader_blocks: residual blocks that read them.
        hidden: width of the networks of the convolutional couplings.
        steps: number of convolutional couplings.
        image_shape: (C, H, W); H and W multiples of 4 patch.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or the image size
            is not divisible by 4 patch.
    """

    embedded = "fashion_flow"

    def __init__(
        self,
        width: int = 120,
        layers: int = 3,
        heads: int = 4,
        blocks: int = 4,
        patch: int = 2,
        features: int = 64,
        reader_blocks: int = 3,
        hidden: int = 64,
        steps: int = 8,
        image_shape: Sequence[int] = (1, 32, 32),
    ) -> None:
        sizes = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "blocks": blocks,
            "patch": patch,
            "features": features,
            "reader_blocks": reader_blocks,
            "hidden": hidden,
            "steps": steps,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"ImageFlow.{name} must be >= 1, got {size}")
        if width % heads:
            raise ValueError(
                f"ImageFlow.heads must divide ImageFlow.width = {width}, got {heads}; try "
                f"width={width // heads * heads or heads}"
            )
        planes, rows, columns = image_shape
        side = 4 * patch
        if rows % side or columns % side:
            raise ValueError(
                f"ImageFlow.image_shape needs H and W divisible by {side}, got "
                f"{tuple(image_shape)}; pad the images"
            )
        grid = (rows // 4, columns // 4)
        super().__init__((16 * planes, *grid), tuple(image_shape))
        self.config = {**sizes, "image_shape": list(image_shape)}
        self.low = TokenFlow((4 * planes, *grid), patch, width, layers, heads, blocks)
        self.details = DetailFlow(12 * planes, 4 * planes, features, reader_blocks, hidden, steps)
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        """Map noise to images.

        Args:
            z: noise, (B, 16 C, H/4, W/4).

        Returns:
            images about [-1, 1], (B, C, H, W).
        """
        split = self.data_shape[0] * 4
        low = self.low(z[:, :split])
        details = self.details(z[:, split:], low)
        return inverse_haar(F.pixel_shuffle(low, 2), F.pixel_shuffle(details, 2))

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise behind images.

        Args:
            x: images, (B, C, H, W).

        Returns:
            z with forward(z) = x, (B, *noise_shape), and the log-determinant of dz/dx, (B,).
        """
        low, details = (F.pixel_unshuffle(part, 2) for part in haar(x))
        z_low, det_low = self.low.inverse(low)
        z_details, det_details = self.details.inverse(details, low)
        return torch.cat([z_low, z_details], 1), det_low + det_details

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of images (B, C, H, W) in nats, (B,), by change of variables."""
        z, log_det = self.inverse(x)
        normal = -0.5 * z.square().flatten(1).sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)
        return normal + log_det
