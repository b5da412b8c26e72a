"""Image quality, per image. Inputs are (B, C, H, W) in [-1, 1]; values outside are clamped."""

from __future__ import annotations

from collections.abc import Sequence

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


def perceptual(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the distance of the normalised feature maps of images, in [0, 4], (B,).

    Zhang et al., 2018, eq. 1, with all weights one: in every layer the features of a position are
    scaled to unit length, their squared distance is averaged over positions; the mean over layers.
    It is LPIPS only with the networks and weights of that name, so name the features beside it.

    Args:
        maps: feature maps of the images, one tensor (B, C, H, W) a layer.
        targets: those of the true images, of the same shapes.

    Raises:
        ValueError: when there is no layer, or shapes differ.
    """
    shapes = [tuple(m.shape) for m in maps], [tuple(m.shape) for m in targets]
    if not maps or shapes[0] != shapes[1] or any(len(shape) != 4 for shape in shapes[0]):
        raise ValueError(f"perceptual needs equal feature maps (B, C, H, W), got {shapes}")
    layers = [
        (_unit_length(a) - _unit_length(b)).square().sum(1).flatten(1).mean(1)
        for a, b in zip(maps, targets, strict=True)
    ]
    return torch.stack(layers).mean(0)


def _unit_length(maps: Tensor) -> Tensor:
    # A position without any feature has no direction: it counts as 0, not as NaN.
    return maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True).clamp_min(1e-10)
