"""Image quality, per image. Inputs are (B, C, H, W) in [-1, 1]; values outside are clamped."""

from __future__ import annotations

import torch
from torch import Tensor


def _unit(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() != 4 or x.shape != target.shape:
        raise ValueError(
            f"images must be two (B, C, H, W) of one shape, got {tuple(x.shape)} and "
            f"{tuple(target.shape)}"
        )
    return x.clamp(-1, 1) * 0.5 + 0.5, target.clamp(-1, 1) * 0.5 + 0.5


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each image, on [0, 1] with range 1, (B,).

    Identical images give +inf.

    Args:
        x: images in [-1, 1], (B, C, H, W).
        target: the true images, of the same shape.

    Raises:
        ValueError: when the shapes differ or are not (B, C, H, W).
    """
    x, target = _unit(x, target)
    return -10 * (x - target).square().flatten(1).mean(1).log10()


def ssim(x: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each image, on [0, 1] with range 1, (B,).

    Wang, Bovik, Sheikh & Simoncelli, 2004: 11 x 11 Gaussian window of width 1.5.

    Args:
        x: images in [-1, 1], (B, C, H, W), H and W at least 11.
        target: the true images, of the same shape.

    Raises:
        ValueError: when the shapes differ, are not (B, C, H, W), or are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, target = _unit(x, target)
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"ssim needs images of at least 11x11, got {tuple(x.shape[-2:])}")
    # The variances are differences of two moments: float32 is wrong in the fourth digit.
    score = structural_similarity_index_measure(
        x.double(), target.double(), data_range=1.0, reduction="none"
    )
    return torch.as_tensor(score).reshape(len(x)).to(x.dtype)


def residual(whitened: Tensor, count: Tensor) -> Tensor:
    """Return the root-mean-square residual in units of the noise, about 1 at the truth, (B,).

    Args:
        whitened: (y - A x) / sigma with 0 where nothing is observed, (B, m).
        count: number of observed entries of each sample, (B,); 0 gives NaN.

    Raises:
        ValueError: when the shapes do not match.
    """
    if whitened.dim() != 2 or count.shape != whitened.shape[:1]:
        raise ValueError(
            f"residual needs whitened (B, m) and count (B,), got {tuple(whitened.shape)} and "
            f"{tuple(count.shape)}"
        )
    return (whitened.double().square().sum(1) / count).sqrt().to(whitened.dtype)
