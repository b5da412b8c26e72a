"""Lay a measurement and the parameters of its operator side by side for an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RADII = (math.pi / 8, math.pi / 4, math.pi / 2)  # of the frequencies of `transfer`
DIRECTIONS = 4


def transfer(kernels: Tensor) -> Tensor:
    """Return the Fourier transform of kernels at a few low frequencies, (B, 24): real, imaginary.

    An embedding that says, anywhere on a grid, how much of each frequency a blur has left.

    Args:
        kernels: (B, 1, k, k), k odd; the middle entry is the origin.
    """
    angles = torch.arange(DIRECTIONS, device=kernels.device) * math.pi / DIRECTIONS
    radii = torch.tensor(RADII, device=kernels.device)[:, None]
    place = (torch.arange(kernels.shape[-1], device=kernels.device) - kernels.shape[-1] // 2).to(
        kernels.dtype
    )
    rows, columns = (
        torch.exp(-1j * (radii * wave).flatten()[:, None] * place)
        for wave in (angles.sin(), angles.cos())
    )
    values = torch.einsum("bij,fi,fj->bf", kernels[:, 0].to(rows.dtype), rows, columns)
    return torch.cat([values.real, values.imag], 1).to(kernels.dtype)


def is_grid(shape: tuple[int, ...]) -> bool:
    """Whether data of this shape are images (C, H, W)."""
    return len(shape) == 3


def resized(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring measurements to the grid of images, (B, C', H, W), or flatten them, (B, D).

    Args:
        y: (B, *measurement_shape).
        shape: (C, H, W) of the images.
    """
    if not is_grid(tuple(y.shape[1:])):
        return y.flatten(1)
    return F.interpolate(y, shape[-2:], mode="bilinear", antialias=True)


def stack_flat(first: Tensor, extra: Sequence[Tensor]) -> Tensor:
    """Flatten and join tensors of one batch, (B, D).

    Args:
        first: (B, ...), sets the dtype.
        extra: more tensors, (B,) or (B, ...).
    """
    return torch.cat([p.reshape(len(first), -1).to(first) for p in (first, *extra)], 1)


def stack_on_grid(first: Tensor, extra: Sequence[Tensor]) -> Tensor:
    """Join tensors of one batch as channels of one image, (B, C', H, W).

    Args:
        first: (B, C, H, W), sets the image grid and the dtype.
        extra: numbers (B,) or (B, k), which become constant channels, and images (B, c, h, w)
            such as masks and kernels, which are centred in the grid with zeros around.

    Raises:
        ValueError: when an image is larger than the grid.
    """
    size = first.shape[-2:]
    return torch.cat([first, *(_on_grid(p, size).to(first) for p in extra)], 1)


def _on_grid(value: Tensor, size: torch.Size) -> Tensor:
    if value.dim() < 4:
        return value.reshape(len(value), -1, 1, 1).expand(-1, -1, *size)
    top, left = (size[0] - value.shape[-2]) // 2, (size[1] - value.shape[-1]) // 2
    pad = (left, size[1] - value.shape[-1] - left, top, size[0] - value.shape[-2] - top)
    if min(pad) < 0:
        raise ValueError(
            f"operator parameters must fit the image grid {tuple(size)}, got {tuple(value.shape)}"
        )
    return F.pad(value, pad)
