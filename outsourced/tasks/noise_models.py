"""What a sensor adds to A(x): white Gaussian noise, or the shot noise of counted photons.

All arguments y and clean = A(x) are (B, *measurement_shape), sigma (B, 1, ...) broadcasts against
them, and seen tells which entries are observed; log-densities are summed in float64, (B,).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

DARK = 1.0  # photons that a dark entry counts on average: keeps log-likelihoods finite


class NoiseModel(Protocol):
    """A density of y given A(x) and sigma."""

    def draw(self, clean: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor: ...
    def whiten(self, y: Tensor, clean: Tensor, sigma: Tensor) -> Tensor: ...
    def slope(self, clean: Tensor, sigma: Tensor) -> Tensor: ...
    def log_density(self, y: Tensor, clean: Tensor, sigma: Tensor, seen: Tensor) -> Tensor: ...
    def log_bound(self, y: Tensor, sigma: Tensor, seen: Tensor) -> Tensor: ...
    def check(self, y: Tensor, sigma: Tensor) -> None: ...


class GaussianNoise:
    """y ~ N(A(x), sigma^2)."""

    def draw(self, clean: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a draw of y; the generator may live on another device than A(x)."""
        device = generator.device if generator is not None else clean.device
        noise = torch.randn(clean.shape, generator=generator, device=device, dtype=clean.dtype)
        return clean + sigma * noise.to(clean.device)

    def whiten(self, y: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Return (y - A(x)) / sigma."""
        return (y - clean) / sigma

    def slope(self, clean: Tensor, sigma: Tensor) -> Tensor:
        """Return 1 / sigma: how fast A(x) moves in standard deviations."""
        return 1 / sigma

    def log_density(self, y: Tensor, clean: Tensor, sigma: Tensor, seen: Tensor) -> Tensor:
        """Return log p(y | x)."""
        whitened = torch.where(seen, self.whiten(y, clean, sigma), 0.0)
        square = whitened.flatten(1).square().sum(1, dtype=torch.float64)
        return self.log_bound(y, sigma, seen) - 0.5 * square

    def log_bound(self, y: Tensor, sigma: Tensor, seen: Tensor) -> Tensor:
        """Return log p(y | x) where A(x) = y, which no x exceeds."""
        norm = (sigma.flatten().double() * math.sqrt(2 * math.pi)).log()
        return -seen.flatten(1).sum(1).double() * norm

    def check(self, y: Tensor, sigma: Tensor) -> None:
        """Accept every y."""


class PoissonNoise:
    """y = 2 (counts - dark) / peak - 1 with counts ~ Poisson(peak (A(x) + 1) / 2 + dark).

    Of mean A(x), which runs from -1 (black) to 1 (white); what lies below counts as black. White
    counts peak = 4 / sigma^2 photons, so that sigma is the standard deviation of y at white, the
    largest there is. One photon more comes from the dark sensor.
    """

    def _rate(self, clean: Tensor, sigma: Tensor) -> Tensor:
        return 2 / sigma.square() * (clean + 1).clamp_min(0) + DARK

    def _counts(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Whole photons; rounded only as far as float32 has blurred them."""
        counts = 2 / sigma.double().square() * (y.double() + 1) + DARK
        near = counts.round()
        return torch.where((counts - near).abs() < 1e-6 * counts + 1e-3, near, counts).clamp_min(0)

    def draw(self, clean: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a draw of y; the generator may live on another device than A(x)."""
        rate = self._rate(clean, sigma)
        device = generator.device if generator is not None else clean.device
        counts = torch.poisson(rate.to(device), generator=generator).to(clean.device)
        return 0.5 * sigma.square() * (counts - DARK) - 1

    def whiten(self, y: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Return (counts - rate) / sqrt(rate)."""
        rate = self._rate(clean, sigma)
        return (2 / sigma.square() * (y + 1) + DARK - rate) / rate.sqrt()

    def slope(self, clean: Tensor, sigma: Tensor) -> Tensor:
        """Return what makes slope * whiten the derivative of log p in A(x), and its square the
        Fisher information: how fast A(x) moves in standard deviations."""
        rate = self._rate(clean, sigma)
        return torch.where(clean > -1, 2 / sigma.square() / rate.sqrt(), 0.0)

    def log_density(self, y: Tensor, clean: Tensor, sigma: Tensor, seen: Tensor) -> Tensor:
        """Return log p(counts | x)."""
        return self._sum(self._counts(y, sigma), self._rate(clean, sigma).double(), seen)

    def log_bound(self, y: Tensor, sigma: Tensor, seen: Tensor) -> Tensor:
        """Return log p where the rates are the counts, which no x exceeds."""
        counts = self._counts(y, sigma)
        return self._sum(counts, counts, seen)

    @staticmethod
    def _sum(counts: Tensor, rate: Tensor, seen: Tensor) -> Tensor:
        terms = torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
        return torch.where(seen, terms, 0.0).flatten(1).sum(1)

    def check(self, y: Tensor, sigma: Tensor) -> None:
        """Refuse y that no number of photons gives.

        Raises:
            ValueError: when an entry stands for less than no photon.
        """
        lowest = (y + 1 + 0.5 * DARK * sigma.square()).min()
        if lowest < -1e-4:
            raise ValueError(
                "observation.y must be >= -1 - sigma^2 / 2 under Poisson noise (no photon), got "
                f"{y.min().item():.4g}"
            )


NOISES: dict[str, type[NoiseModel]] = {
    "gaussian": GaussianNoise,
    "poisson": PoissonNoise,
}


def noise_model(name: str) -> NoiseModel:
    """The noise of a task by name.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in NOISES:
        raise ValueError(f"task.noise must be one of {', '.join(NOISES)}, got {name!r}")
    return NOISES[name]()
