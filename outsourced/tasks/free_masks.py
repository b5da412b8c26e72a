"""Free-form masks, and mixtures of masks: (n, shape, generator) -> (n, 1, H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .masks import image_size, uniform_integers

MaskSampler = Callable[[int, Sequence[int], torch.Generator | None], Tensor]


@dataclass(frozen=True)
class BrushStrokes:
    """Hide what a few strokes of a round brush cover; each stroke is a wandering chain of segments.

    Args:
        min_strokes: smallest number of strokes.
        max_strokes: largest number, inclusive.
        segments: segments of a stroke.
        length: of a segment at most, as a fraction of the image's shorter side; it is uniform.
        min_width: smallest diameter of the brush, as a fraction of the shorter side.
        max_width: largest diameter; each stroke has its own, uniform between the two.
        turn: standard deviation of the turn from one segment to the next, in radians.

    Raises:
        ValueError: when a number is out of range.
    """

    min_strokes: int = 1
    max_strokes: int = 4
    segments: int = 4
    length: float = 0.4
    min_width: float = 0.06
    max_width: float = 0.2
    turn: float = 0.8

    def __post_init__(self) -> None:
        if not 1 <= self.min_strokes <= self.max_strokes or self.segments < 1:
            raise ValueError(
                "BrushStrokes needs 1 <= min_strokes <= max_strokes and segments >= 1, got "
                f"{self.min_strokes}, {self.max_strokes} and {self.segments}"
            )
        if not 0 < self.min_width <= self.max_width < 1:
            raise ValueError(
                "BrushStrokes needs 0 < min_width <= max_width < 1, got "
                f"min_width={self.min_width}, max_width={self.max_width}"
            )
        if not (self.length > 0 and self.turn >= 0):
            raise ValueError(
                "BrushStrokes needs length > 0 and turn >= 0, got "
                f"length={self.length}, turn={self.turn}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        size = image_size(shape)
        device = generator.device if generator is not None else torch.device("cpu")
        least = torch.full((n,), self.min_strokes, device=device)
        count = uniform_integers(least, torch.full_like(least, self.max_strokes), generator)
        chains, radius = self._strokes(n, size, generator)
        hidden = torch.zeros(n, *size, dtype=torch.bool, device=device)
        for stroke in range(self.max_strokes):  # one by one: distances of all would be large
            wanted = (stroke < count)[:, None, None]
            reach = radius[:, stroke, None, None]
            for segment in range(self.segments):
                ends = chains[:, stroke, segment : segment + 2]
                hidden |= wanted & (_distance(ends, size) <= reach)
        return 1.0 - hidden[:, None].float()

    def _strokes(
        self, n: int, size: tuple[int, int], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Corners (n, strokes, segments + 1, 2) and radii (n, strokes), in pixels."""
        device = generator.device if generator is not None else torch.device("cpu")
        shape, unit = (n, self.max_strokes, self.segments), min(size)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        start = uniform(n, self.max_strokes, 1, 2) * torch.tensor(size, device=device) - 0.5
        turn = self.turn * torch.randn(shape, generator=generator, device=device)
        turn[..., 0] = 2 * math.pi * uniform(n, self.max_strokes)
        angle, length = turn.cumsum(-1), self.length * unit * uniform(*shape)
        move = torch.stack([length * angle.sin(), length * angle.cos()], -1)
        chains = torch.cat([start, start + move.cumsum(2)], 2)
        spread = self.max_width - self.min_width
        width = unit * (self.min_width + spread * uniform(n, self.max_strokes))
        return chains, 0.5 * width.clamp_min(math.sqrt(2))  # never falls between pixels


def _distance(ends: Tensor, size: tuple[int, int]) -> Tensor:
    """Distance of every pixel from segments with corners (n, 2, 2): (n, H, W), in pixels."""
    height, width = size
    start, step = ends[:, 0], ends[:, 1] - ends[:, 0]
    rows = torch.arange(height, device=ends.device)[None, :, None] - start[:, 0, None, None]
    columns = torch.arange(width, device=ends.device)[None, None, :] - start[:, 1, None, None]
    along = rows * step[:, 0, None, None] + columns * step[:, 1, None, None]
    square = step.square().sum(1)[:, None, None].clamp_min(1e-12)
    place = (along / square).clamp(0, 1)
    off = rows - place * step[:, 0, None, None], columns - place * step[:, 1, None, None]
    return (off[0].square() + off[1].square()).sqrt()


class MixedMasks:
    """Draw each sample's mask from one of several samplers.

    Args:
        masks: mask samplers.
        weights: how often each is drawn, in any unit; equally by default.

    Raises:
        ValueError: when there is no sampler, or the weights are not one number > 0 for each.
    """

    def __init__(
        self, masks: Sequence[MaskSampler], weights: Sequence[float] | None = None
    ) -> None:
        self.masks = tuple(masks)
        self.weights = tuple([1.0] * len(self.masks) if weights is None else weights)
        right = len(self.weights) == len(self.masks) and all(w > 0 for w in self.weights)
        if not self.masks or not right:
            raise ValueError(
                f"MixedMasks needs masks, and a weight > 0 for each of them, got {len(self.masks)} "
                f"masks and weights {list(self.weights)}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        device = generator.device if generator is not None else torch.device("cpu")
        weights = torch.tensor(self.weights, dtype=torch.float32, device=device)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        masks = [mask(n, shape, generator).to(device) for mask in self.masks]
        return torch.stack(masks)[chosen, torch.arange(n, device=device)]
