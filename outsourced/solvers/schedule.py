"""Times of a diffusion or a flow, seen alike: z_t = signal z_0 + noise ε."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

FLOW_TIMES = 1000  # `predict_velocity` takes the noise level times this


@dataclass(frozen=True)
class Level:
    """One noise level: z_t = signal z_0 + noise ε.

    Attributes:
        index: position in its grid, 0 for the noisiest.
        timestep: the prior's own time, as `predict_noise` and `predict_velocity` take it.
        signal: sqrt(ᾱ) of a diffusion, 1 - s of a flow.
        noise: sqrt(1 - ᾱ) of a diffusion, s of a flow.
    """

    index: int
    timestep: float
    signal: float
    noise: float


def is_flow(prior: Any) -> bool:
    """Whether the prior predicts velocities of straight paths, not noise."""
    return prior.alphas_cumprod is None


def levels(prior: Any, steps: int, start: float | None = None) -> list[Level]:
    """Noise levels from the noisiest to the least noisy, evenly in time, then the clean end.

    A flow's times are shifted as in its training.

    Args:
        prior: a diffusion or flow prior.
        steps: levels with noise; fewer where a diffusion has fewer training steps below `start`.
        start: timestep of the first; the last step of training by default.

    Returns:
        at most steps + 1 levels, the last of signal 1 and noise 0.
    """
    if is_flow(prior):
        s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        s = prior.shift * s / (1 + (prior.shift - 1) * s)
        s = s if start is None else s * (start / FLOW_TIMES)
        times, signal, noise = s * FLOW_TIMES, 1 - s, s
    else:
        alphas = prior.alphas_cumprod.double().cpu()
        first = len(alphas) - 1 if start is None else start
        grid = torch.linspace(first, 0, steps, dtype=torch.float64).round().long()
        times = grid.unique().flip(0)
        signal, noise = alphas[times].sqrt(), (1 - alphas[times]).sqrt()
    rows = zip(times.tolist(), signal.tolist(), noise.tolist(), strict=True)
    noisy = [Level(index, *row) for index, row in enumerate(rows)]
    return [*noisy, Level(len(noisy), 0.0, 1.0, 0.0)]


def ancestral_variance(now: Level, after: Level) -> float:
    """Variance of z_after given z_now and z_0, of DDPM's posterior (Ho et al., 2020, eq. 7)."""
    share = now.signal / after.signal * after.noise
    return (after.noise / now.noise) ** 2 * (now.noise**2 - share**2)
