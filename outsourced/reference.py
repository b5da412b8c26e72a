"""The uncontrolled process: time grids, exact Ornstein-Uhlenbeck kernels and bridges.

The chain z_0 -> ... -> z_K is stationary with law N(0, I) and reversible, so that the same kernel
run backward is the noising process. Everything follows from rho_k = corr(z_k, z_K). Both ends are
exact: rho_0 = 0 (z_0 carries nothing about z_K, so N(0, I) is the exact start law of *every*
posterior) and rho_K = 1.
"""

import math

import torch
from torch import Tensor, nn

SCHEDULES = ("log_snr", "cosine")


def correlations(
    steps: int, schedule: str, log_snr_min: float, log_snr_max: float, late: float = 1.0
) -> Tensor:
    """rho_k = corr(z_k, z_K) on the grid, float64, shape (steps + 1,), rho_0 = 0 and rho_K = 1.

    Args:
        steps: Number of kernels K >= 1.
        schedule: `log_snr` (log rho^2 / (1 - rho^2) uniform in between) or `cosine`
            (rho_k = sin(pi k / 2K); Nichol & Dhariwal 2021, without the offset).
        log_snr_min, log_snr_max: Log signal-to-noise ratios of z_1 and z_{K-1}; `log_snr` only.
        late: Exponent > 0 of the position on the `log_snr` grid; below 1 the steps crowd at the
            end.

    Raises:
        ValueError: Unknown schedule or values out of range.
    """
    if steps < 1:
        raise ValueError(f"sampler.steps must be >= 1, got {steps}")
    if schedule not in SCHEDULES:
        raise ValueError(
            f"sampler.schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"
        )
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"sampler.log_snr_min must be < sampler.log_snr_max, got {log_snr_min} and "
            f"{log_snr_max}"
        )
    if late <= 0:
        raise ValueError(f"sampler.late must be > 0, got {late}")
    position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if schedule == "cosine":
        rho = torch.sin(position * math.pi / 2)
    else:
        inner = torch.linspace(0, 1, max(steps - 1, 1), dtype=torch.float64) ** late
        log_snr = log_snr_min + (log_snr_max - log_snr_min) * inner
        rho = torch.zeros(steps + 1, dtype=torch.float64)
        rho[1:steps] = torch.sigmoid(log_snr[: steps - 1]).sqrt()
    rho[0], rho[-1] = 0.0, 1.0
    return rho


class Reference(nn.Module):
    """Stationary Ornstein-Uhlenbeck chain with exact kernels N(a_k z_k, (1 - a_k^2) I).

    Args:
        steps, schedule, log_snr_min, log_snr_max, late: See `correlations`.
        grid: Steps of a finer grid, of which these are every (grid / steps)-th; None: of their own.

    Attributes (float64, not saved; index k = 0 .. K-1 unless said otherwise):
        rho: corr(z_k, z_K), shape (K + 1,).
        a: corr(z_k, z_{k+1}) = rho_k / rho_{k+1}.
        scale: sqrt(1 - a_k^2), standard deviation of one kernel.
        spread: sqrt(1 - rho_k^2), standard deviation of z_K given z_k.
        position: Place of the times on the grid, from 0 to 1, shape (K + 1,).
        information: w_k in (0, 1]; w_k^2 is the share of the kernel's variance that z_K explains,
            so that the bridge has variance (1 - w_k^2) scale_k^2 and w_{K-1} = 1.
    """

    rho: Tensor
    a: Tensor
    scale: Tensor
    spread: Tensor
    information: Tensor
    position: Tensor

    def __init__(
        self,
        steps: int = 24,
        schedule: str = "log_snr",
        log_snr_min: float = -3.0,
        log_snr_max: float = 6.0,
        late: float = 1.0,
        grid: int | None = None,
    ):
        super().__init__()
        if grid is not None and grid < steps:
            raise ValueError(f"sampler.grid must be >= sampler.steps = {steps}, got {grid}")
        self.steps, self.grid = steps, steps if grid is None else grid
        rho = correlations(self.grid, schedule, log_snr_min, log_snr_max, late)
        index = torch.linspace(0, self.grid, steps + 1, dtype=torch.float64).round().long()
        rho, position = rho[index], torch.linspace(0, 1, self.grid + 1, dtype=torch.float64)[index]
        a = rho[:-1] / rho[1:]
        scale = (1 - a**2).sqrt()
        spread = (1 - rho[:-1] ** 2).sqrt()
        values = {"rho": rho, "a": a, "scale": scale, "spread": spread}
        values |= {"information": scale * rho[1:] / spread, "position": position}
        self._cast: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def at(self, name: str, k: Tensor, like: Tensor) -> Tensor:
        """Coefficient `name` at steps k (S,), shaped to broadcast over `like` (S, N, *shape)."""
        key = (name, like.dtype, like.device)
        if key not in self._cast:  # converted once, not at each of many uses
            self._cast[key] = getattr(self, name).to(like.device, like.dtype)
        return self._cast[key][k].reshape(-1, *[1] * (like.ndim - 1))

    def innovation(self, z: Tensor, z_next: Tensor, k: Tensor) -> Tensor:
        """(z_{k+1} - a_k z_k) / scale_k: N(0, I) under the reference. Shapes (S, N, *shape)."""
        return (z_next - self.at("a", k, z) * z) / self.at("scale", k, z)

    def advance(self, z: Tensor, innovation: Tensor, k: Tensor) -> Tensor:
        """z_{k+1} = a_k z_k + scale_k * innovation. Shapes (S, N, *shape), k (S,)."""
        return self.at("a", k, z) * z + self.at("scale", k, z) * innovation

    def forward_path(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uncontrolled path from z_0 (N, *shape): (K + 1, N, *shape)."""
        path = [z]
        for k in range(self.steps):
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            index = torch.tensor([k], device=z.device)
            path.append(self.advance(path[-1][None], noise[None], index)[0])
        return torch.stack(path)

    def backward_path(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noising path that ends in z_K = z (N, *shape): (K + 1, N, *shape), drawn from z_K
        back."""
        path = [z]
        for k in reversed(range(self.steps)):
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            path.append(self.a[k].to(z.dtype) * path[-1] + self.scale[k].to(z.dtype) * noise)
        return torch.stack(path[::-1])

    def pair(
        self, z: Tensor, k: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z_k, z_{k+1}) given z_K = z, for each step in k (S,): two tensors (S, N, *shape)."""
        shape = (len(k), *z.shape)
        first, second = torch.randn(
            (2, *shape), generator=generator, dtype=z.dtype, device=z.device
        ).unbind()
        rho = self.rho[k + 1].to(z.dtype).reshape(-1, *[1] * z.ndim)
        later = rho * z + (1 - rho**2).clamp_min(0).sqrt() * first
        return self.at("a", k, later) * later + self.at("scale", k, later) * second, later

    def bridge_moments(self, z: Tensor, end: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z_{k+1} given z_k = z and z_K = end (Gaussian bridge)."""
        w, spread = self.at("information", k, z), self.at("spread", k, z)
        delta = (end - self.at("rho", k, z) * z) / spread
        return self.advance(z, w * delta, k), (1 - w**2) * self.at("scale", k, z) ** 2
