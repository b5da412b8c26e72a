"""Inpainting: part of the pixels are observed, through a mask that is drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .base import Observation
from .checks import check_shape
from .free_masks import MaskSampler
from .masks import RandomBox
from .measurement import Measurement
from .noise_models import GaussianNoise
from .pairwise import pairwise_gaussian


class Inpaint(Measurement):
    """y = mask * (x + n).

    Args:
        data_shape: (C, H, W).
        mask: sampler (n, data_shape, generator) -> (n, 1, H, W) of 0 = hidden, 1 = observed.
        sigma: noise standard deviation on [-1, 1] images, or a pair (lo, hi).
        noise: "gaussian" or "poisson".

    Raises:
        ValueError: when the masks are not binary or have a wrong size, or sigma is not > 0.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        mask: MaskSampler = RandomBox(),  # noqa: B008 - frozen
        sigma: float | Sequence[float] = 0.05,
        noise: str = "gaussian",
    ) -> None:
        from deepinv.physics import Inpainting

        shape = tuple(int(s) for s in data_shape)
        _check_masks(mask(2, shape, torch.Generator().manual_seed(0)), shape)
        draw = partial(_mask_params, mask)
        super().__init__(Inpainting(img_size=shape), shape, sigma, draw, noise)

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """Return log p(y_j | x_i) - log p(y_j | 0) of all pairs, (N, B) nats, at once.

        Args:
            x: images, (N, C, H, W).
            obs: B observations.

        Raises:
            ValueError: when an observation or an image does not fit the task.
        """
        if not isinstance(self.noise, GaussianNoise):
            return super().pairwise_log_reward(x, obs)
        self.check(obs)
        check_shape("x", x, self.data_shape)
        seen = obs.params["mask"].expand_as(obs.y)
        return pairwise_gaussian(x.flatten(1), obs.y.flatten(1), seen.flatten(1), obs.sigma)


def _mask_params(
    mask: MaskSampler, n: int, shape: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Tensor]:
    return {"mask": mask(n, shape, generator)}


def _check_masks(masks: Tensor, shape: tuple[int, ...]) -> None:
    expected = (2, 1, *shape[1:])
    if tuple(masks.shape) != expected:
        raise ValueError(f"task.mask must return {expected} for two, got {tuple(masks.shape)}")
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError("task.mask must hold 0 (hidden) and 1 (observed) only")
