"""Samplers of inpainting masks: (n, (C, H, W), generator) -> (n, 1, H, W), 1 = observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


def image_size(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) of images of `shape` (C, H, W).

    Raises:
        ValueError: when the shape is no image's.
    """
    if len(shape) != 3:
        raise ValueError(f"a mask needs images of shape (C, H, W), got data_shape {tuple(shape)}")
    return shape[1], shape[2]


def uniform_integers(low: Tensor, high: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform integers from low to high inclusive, elementwise."""
    u = torch.rand(low.shape, generator=generator, device=low.device, dtype=torch.float64)
    return low + (u * (high - low + 1)).long()


@dataclass(frozen=True)
class RandomBox:
    """Hide one box per sample: height and width uniform in a range, position uniform inside.

    Args:
        min_side: smallest side in pixels; below 1, as a fraction of the image's shorter side.
        max_side: largest side, inclusive; in the same way.

    Raises:
        ValueError: when not 0 < min_side <= max_side, one of them is a fraction and the other is
            not, or when max_side exceeds the image.
    """

    min_side: float = 8
    max_side: float = 20

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= self.max_side or (self.min_side < 1) != (self.max_side < 1):
            raise ValueError(
                "RandomBox needs 1 <= min_side <= max_side in pixels, or fractions of the image "
                f"0 < min_side <= max_side < 1, got min_side={self.min_side}, "
                f"max_side={self.max_side}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        size = image_size(shape)
        if self.max_side > min(size):
            raise ValueError(
                f"RandomBox.max_side must fit the image {size[0]}x{size[1]}, got {self.max_side}"
            )
        unit = min(size) if self.max_side < 1 else 1
        sides = max(1, round(self.min_side * unit)), max(1, round(self.max_side * unit))
        hidden = [_interval(n, length, *sides, generator) for length in size]
        return 1.0 - (hidden[0][:, None, :, None] & hidden[1][:, None, None, :]).float()


def _interval(
    n: int, length: int, least: int, most: int, generator: torch.Generator | None
) -> Tensor:
    """Which of `length` places lie in an interval of random size and place, boolean (n, length)."""
    device = generator.device if generator is not None else None
    full = torch.full((n,), least, device=device)
    side = uniform_integers(full, torch.full_like(full, most), generator)
    start = uniform_integers(torch.zeros_like(side), length - side, generator)[:, None]
    index = torch.arange(length, device=device)
    return (index >= start) & (index < start + side[:, None])


@dataclass(frozen=True)
class RandomPixels:
    """Hide a random fraction of the pixels, the same in all channels.

    Args:
        min_ratio: smallest fraction removed.
        max_ratio: largest fraction removed; the fraction is uniform between the two, and exactly
            round(fraction * H * W) pixels are removed.

    Raises:
        ValueError: when not 0 <= min_ratio <= max_ratio < 1.
    """

    min_ratio: float
    max_ratio: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= self.max_ratio < 1:
            raise ValueError(
                "RandomPixels needs 0 <= min_ratio <= max_ratio < 1, got "
                f"min_ratio={self.min_ratio}, max_ratio={self.max_ratio}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        height, width = image_size(shape)
        device = generator.device if generator is not None else None
        u = torch.rand(n, generator=generator, device=device)
        ratio = self.min_ratio + (self.max_ratio - self.min_ratio) * u
        removed = (ratio * height * width).round()
        order = torch.rand(n, height * width, generator=generator, device=device)
        rank = order.argsort(1).argsort(1)
        return (rank >= removed[:, None]).float().view(n, 1, height, width)


class FixedMask:
    """Use one mask for every sample.

    Args:
        mask: an image file, white = keep and black = hide, or a tensor (H, W) or (1, H, W) of
            0 = hidden and 1 = observed.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the mask is not binary, observes nothing, or has another size than the
            images.
    """

    def __init__(self, mask: str | Path | Tensor) -> None:
        self.mask = mask.float() if isinstance(mask, Tensor) else _read_mask(Path(mask))
        self.mask = self.mask[None] if self.mask.dim() == 2 else self.mask
        if self.mask.dim() != 3 or self.mask.shape[0] != 1:
            raise ValueError(
                f"FixedMask.mask must be (H, W) or (1, H, W), got {tuple(self.mask.shape)}"
            )
        if not ((self.mask == 0) | (self.mask == 1)).all():
            raise ValueError("FixedMask.mask must hold 0 (hidden) and 1 (observed) only")
        if not self.mask.any():
            raise ValueError("FixedMask.mask observes no pixel; white (1) means observed")

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Repeat the mask for n images of `shape` (C, H, W); returns (n, 1, H, W)."""
        size = image_size(shape)
        if tuple(self.mask.shape[1:]) != size:
            raise ValueError(
                f"FixedMask.mask must have the image size {size[0]}x{size[1]}, got "
                f"{self.mask.shape[1]}x{self.mask.shape[2]}; resize the mask"
            )
        return self.mask[None].repeat(n, 1, 1, 1)


def _read_mask(path: Path) -> Tensor:
    import numpy as np
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"FixedMask.mask file {path} does not exist")
    with Image.open(path) as image:
        grey = np.array(image.convert("L"))
    return torch.from_numpy((grey >= 128).astype("float32"))
