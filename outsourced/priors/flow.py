"""A multi-scale coupling flow of images as a prior: exactly invertible, with a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from outsourced.priors.base import Prior
from outsourced.priors.flow_networks import DenseFlow, DetailFlow, haar, inverse_haar
from outsourced.weights import Embedded


class ImageFlow(Embedded, Prior):
    """A normalizing flow of images in two scales, as in Wavelet Flow (Yu et al., 2020).

    p(x) = p(low) p(details | low), low and details the orthonormal Haar transform of x. A flow of
    dense couplings in the principal axes of the data makes the half-resolution image, which holds
    what is global about it; a conditional Glow of convolutions makes the details. Both noises lie
    on one grid of 4×4 blocks of pixels: the first 4C channels of z are those of the
    half-resolution image, the others those of the details, each near the pixels that it moves.
    x is not clamped. `ImageFlow.from_weights("fashion_flow")` gives the embedded prior.

    Args:
        hidden: width of the networks of the dense couplings.
        couplings: number of dense couplings.
        features: channels of the features that the details read off the half-resolution image.
        blocks: residual blocks that read them.
        detail_hidden: width of the networks of the convolutional couplings.
        steps: number of convolutional couplings.
        image_shape: (C, H, W); H and W multiples of 4.

    Raises:
        ValueError: a size is not positive, or the image size is not divisible by 4.
    """

    embedded = "fashion_flow"

    def __init__(
        self,
        hidden: int = 256,
        couplings: int = 8,
        features: int = 48,
        blocks: int = 2,
        detail_hidden: int = 48,
        steps: int = 6,
        image_shape: Sequence[int] = (1, 32, 32),
    ) -> None:
        sizes = {
            "hidden": hidden,
            "couplings": couplings,
            "features": features,
            "blocks": blocks,
            "detail_hidden": detail_hidden,
            "steps": steps,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"ImageFlow.{name} must be >= 1, got {size}")
        planes, height, width = image_shape
        if height % 4 or width % 4:
            raise ValueError(
                f"ImageFlow.image_shape needs H and W divisible by 4, got {tuple(image_shape)}; "
                "pad the images"
            )
        super().__init__((16 * planes, height // 4, width // 4), tuple(image_shape))
        self.config = {**sizes, "image_shape": list(image_shape)}
        self.low = DenseFlow(planes * height * width // 4, hidden, couplings)
        self.details = DetailFlow(12 * planes, 4 * planes, features, blocks, detail_hidden, steps)
        self.freeze()

    def _low_shape(self) -> tuple[int, int, int]:
        planes, height, width = self.data_shape
        return planes, height // 2, width // 2

    def forward(self, z: Tensor) -> Tensor:
        """Map noise to images.

        Args:
            z: noise, (B, 16 C, H/4, W/4).

        Returns:
            images about [-1, 1], (B, C, H, W).
        """
        split = self.data_shape[0] * 4
        low = self.low(F.pixel_shuffle(z[:, :split], 2).flatten(1)).unflatten(1, self._low_shape())
        details = self.details(z[:, split:], F.pixel_unshuffle(low, 2))
        return inverse_haar(low, F.pixel_shuffle(details, 2))

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise behind images.

        Args:
            x: images, (B, C, H, W).

        Returns:
            z with forward(z) = x, (B, *noise_shape), and the log-determinant of dz/dx, (B,).
        """
        low, details = haar(x)
        z_low, det_low = self.low.inverse(low.flatten(1))
        z_details, det_details = self.details.inverse(
            F.pixel_unshuffle(details, 2), F.pixel_unshuffle(low, 2)
        )
        z_low = F.pixel_unshuffle(z_low.unflatten(1, self._low_shape()), 2)
        return torch.cat([z_low, z_details], 1), det_low + det_details

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of images (B, C, H, W) in nats, (B,), by change of variables."""
        z, log_det = self.inverse(x)
        normal = -0.5 * z.square().flatten(1).sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)
        return normal + log_det
