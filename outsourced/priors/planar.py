"""Two-dimensional priors with curved or disconnected support, deterministic in the noise.

Φ(z_1) runs along the curve and z_2 is the Gaussian thickness across it, so each distribution is
known exactly: uniform in the curve's parameter, normal across.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from outsourced.priors.base import Prior


class PlanarPrior(Prior):
    """What the planar priors share: two-dimensional noise and data, and a thickness.

    Args:
        std: standard deviation across the curve, in units of x; >= 0.
    """

    def __init__(self, std: float) -> None:
        if std < 0:
            raise ValueError(f"{type(self).__name__}.std must be >= 0, got {std}")
        super().__init__((2,), (2,))
        self.std = float(std)
        self.freeze()

    def extra_repr(self) -> str:
        return f"std={self.std}"


class TwoMoons(PlanarPrior):
    """Two interleaved half circles of radius 1; the sign of z_1 picks the moon.

    Args:
        std: radial standard deviation.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__(std)

    def forward(self, z: Tensor) -> Tensor:
        position = 2 * torch.special.ndtr(z[:, 0])
        lower = position >= 1
        angle = math.pi * torch.where(lower, position - 1, position)
        radius = 1 + self.std * z[:, 1]
        across, up = radius * angle.cos(), radius * angle.sin()
        # The lower moon is the upper one turned by half a turn about (1/2, 1/4).
        return torch.stack([torch.where(lower, 1 - across, across),
                            torch.where(lower, 0.5 - up, up)], dim=-1)  # fmt: skip


class SwissRoll(PlanarPrior):
    """A spiral of one and a half turns that ends at distance 3 from the origin.

    Args:
        std: standard deviation along the radius.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__(std)

    def forward(self, z: Tensor) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * torch.special.ndtr(z[:, 0]))
        radius = angle / (1.5 * math.pi) + self.std * z[:, 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


class Rings(PlanarPrior):
    """Concentric circles of equal mass with radii 1, 2, ..., count.

    Args:
        count: number of circles.
        std: radial standard deviation.
    """

    def __init__(self, count: int = 2, std: float = 0.1) -> None:
        if count < 1:
            raise ValueError(f"Rings.count must be >= 1, got {count}")
        super().__init__(std)
        self.count = int(count)

    def forward(self, z: Tensor) -> Tensor:
        position = self.count * torch.special.ndtr(z[:, 0])
        # Φ rounds to 1 in the far tail, which still belongs to the last ring.
        ring = position.floor().clamp(max=self.count - 1)
        angle = 2 * math.pi * (position - ring)
        radius = 1 + ring + self.std * z[:, 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)

    def extra_repr(self) -> str:
        return f"count={self.count}, {super().extra_repr()}"
