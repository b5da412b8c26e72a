"""Masks of whole regions: a half, all but a box, stripes. (n, shape, generator) -> (n, 1, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .masks import image_size, uniform_integers

SIDES = ("left", "right", "top", "bottom")
DIRECTIONS = ("rows", "columns", "both")


def _draw(n: int, count: int, generator: torch.Generator | None) -> Tensor:
    """n uniform integers from 0 to count - 1."""
    device = generator.device if generator is not None else None
    return torch.randint(count, (n,), generator=generator, device=device)


@dataclass(frozen=True)
class RandomHalf:
    """Hide one half of the image.

    Args:
        sides: the halves that may be hidden, each as likely: "left", "right", "top", "bottom".

    Raises:
        ValueError: when no side is given, or an unknown one.
    """

    sides: Sequence[str] = SIDES

    def __post_init__(self) -> None:
        if not self.sides or not set(self.sides) <= set(SIDES):
            raise ValueError(f"RandomHalf.sides must be some of {SIDES}, got {list(self.sides)}")

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        height, width = image_size(shape)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
        observed = {
            "left": columns >= width // 2,
            "right": columns < width - width // 2,
            "top": rows >= height // 2,
            "bottom": rows < height - height // 2,
        }
        masks = torch.stack([observed[side].expand(height, width) for side in self.sides])
        chosen = _draw(n, len(self.sides), generator)
        return masks.to(chosen.device)[chosen, None].float()


@dataclass(frozen=True)
class Outpaint:
    """Observe one box, and hide all around it.

    Args:
        min_ratio: smallest side of the box, as a fraction of the image's.
        max_ratio: largest side, inclusive; height and width are drawn apart.
        centred: whether the box lies in the middle, or anywhere.

    Raises:
        ValueError: when not 0 < min_ratio <= max_ratio < 1.
    """

    min_ratio: float = 0.5
    max_ratio: float = 0.75
    centred: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_ratio <= self.max_ratio < 1:
            raise ValueError(
                "Outpaint needs 0 < min_ratio <= max_ratio < 1, got "
                f"min_ratio={self.min_ratio}, max_ratio={self.max_ratio}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        rows, columns = (self._interval(n, size, generator) for size in image_size(shape))
        return (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def _interval(self, n: int, length: int, generator: torch.Generator | None) -> Tensor:
        ends = torch.tensor([self.min_ratio, self.max_ratio]) * length
        least, most = ends.round().clamp(1, length - 1).long().expand(n, 2).unbind(1)
        if generator is not None:
            least, most = least.to(generator.device), most.to(generator.device)
        side = uniform_integers(least, most, generator)
        room = length - side
        # Drawn even where it is not used: a mask does not depend on what is drawn after it.
        start = uniform_integers(torch.zeros_like(side), room, generator)
        start = (room // 2 if self.centred else start)[:, None]
        index = torch.arange(length, device=side.device)
        return (index >= start) & (index < start + side[:, None])


@dataclass(frozen=True)
class RandomStripes:
    """Hide parallel stripes, as of dead sensor lines.

    Args:
        min_period: smallest distance from one stripe to the next, in pixels.
        max_period: largest distance, inclusive.
        ratio: fraction of each period that is hidden, rounded to whole lines, but at least one line
            hidden and one observed.
        direction: "rows", "columns", or "both" for either at random.

    Raises:
        ValueError: when not 2 <= min_period <= max_period, the ratio is not in (0, 1) or the
            direction is unknown.
    """

    min_period: int = 4
    max_period: int = 8
    ratio: float = 0.5
    direction: str = "both"

    def __post_init__(self) -> None:
        if not 2 <= self.min_period <= self.max_period:
            raise ValueError(
                "RandomStripes needs 2 <= min_period <= max_period, got "
                f"min_period={self.min_period}, max_period={self.max_period}"
            )
        if not 0 < self.ratio < 1:
            raise ValueError(f"RandomStripes.ratio must lie in (0, 1), got {self.ratio}")
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"RandomStripes.direction must be one of {DIRECTIONS}, got {self.direction!r}"
            )

    def __call__(
        self, n: int, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n masks for images of `shape` (C, H, W); returns (n, 1, H, W)."""
        height, width = image_size(shape)
        upright = _draw(n, 2, generator)
        least = torch.full_like(upright, self.min_period)
        period = uniform_integers(least, torch.full_like(least, self.max_period), generator)
        phase = uniform_integers(torch.zeros_like(period), period - 1, generator)
        hidden = (self.ratio * period).round().long().clamp_min(1).minimum(period - 1)
        index = torch.arange(max(height, width), device=period.device)
        observed = (index + phase[:, None]) % period[:, None] >= hidden[:, None]
        rows = observed[:, None, :height, None].expand(n, 1, height, width)
        columns = observed[:, None, None, :width].expand(n, 1, height, width)
        if self.direction != "both":
            upright.fill_(self.direction == "columns")
        return torch.where(upright[:, None, None, None] == 1, columns, rows).float()
