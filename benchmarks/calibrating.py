"""Whether samples of simulated observations spread as far from the truth as they say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.merit import calibration
from outsourced.metrics.calibration import coverage, ranks

BLOCKS = 4  # to a side of an image
LEVELS = (0.5, 0.9)  # of the intervals


def blocks(x: Tensor) -> Tensor:
    """Means of images (..., C, H, W) over 4 x 4 blocks of pixels and all channels, (..., 16)."""
    means = functional.adaptive_avg_pool2d(x.flatten(0, -4), BLOCKS).mean(1).flatten(1)
    return means.unflatten(0, x.shape[:-3])


def against_draws(
    x: Tensor, truth: Tensor, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Coverage of pixel intervals, and how uniform the ranks of block means are.

    Ranks are those of block means, not of noise coordinates: the latter mean nothing for solvers
    that guide a diffusion. They are taken among the first 2^k - 1 samples, so that bins are equal.

    Args:
        x: n samples for each of B observations, (n, B, C, H, W).
        truth: the images behind the observations, exact posterior draws, (B, C, H, W).
        generator: source of randomness of ties and of intervals between samples.

    Returns:
        `cover_50` and `cover_90`: shares of pixels in the central intervals; where there are enough
        observations, `rank_p`: the smallest p-value of the blocks times their number, at most 1,
        and `rank_below`: the share of blocks whose p-value is below 0.05.

    Source: Talts et al., 2018.
    """
    inside = coverage(x.flatten(2), truth.flatten(1), LEVELS, generator).mean(1)
    found = {f"cover_{level:.0%}"[:-1]: float(c) for level, c in zip(LEVELS, inside, strict=True)}
    n = 2 ** ((len(x) + 1).bit_length() - 1) - 1
    test = calibration(ranks(blocks(x[:n]), blocks(truth), generator), n)
    if test:
        found["rank_p"] = min(1.0, test["p_min"] * test["p_of"])
        found["rank_below"] = test["p_below"] / test["p_of"]
    return found
