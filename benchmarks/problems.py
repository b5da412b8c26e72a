"""Amortised inverse problems whose posteriors are known: evidence, exact draws, modes.

Every problem draws its observations from its own prior, and its truth is either closed-form or the
sum over a fine grid in the noise of a two-dimensional prior.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors import GaussianMixture, LinearGaussian, TwoMoons
from outsourced.tasks import LinearMeasurement, NonlinearMeasurement
from outsourced.tasks.base import Observation


class Truth(Protocol):
    """The exact posterior of each observation of a problem."""

    def log_z(self, obs: Observation) -> Tensor:
        """log Z(y) = log E_z r(f(z), y) in nats, (B,) float64."""

    def sample(self, obs: Observation, n: int, generator: torch.Generator) -> Tensor:
        """n exact draws of z for each observation, (n, B, d)."""


@dataclass(frozen=True)
class Problem:
    """A posterior, the truth about it, and the time grid that suits it.

    Attributes:
        name: key in `PROBLEMS`.
        posterior: prior and task.
        truth: of that posterior.
        grid: arguments of the sampler's time grid; the number of steps is a row's choice.
        modes: label of each x (N, data) in 0 .. mode_count - 1, (N,); None for a single mode.
        mode_weights: exact posterior weight of each mode for each observation, (B, mode_count).
        matrix: W of y = W z + n where the problem is linear-Gaussian in z, else None.
        sigma: noise standard deviation of the task.
    """

    name: str
    posterior: Posterior
    truth: Truth
    grid: dict[str, Any] = field(default_factory=dict)
    modes: Callable[[Tensor], Tensor] | None = None
    mode_weights: Callable[[Observation], Tensor] | None = None
    matrix: Tensor | None = None
    sigma: float = 1.0


class LinearGaussianTruth:
    """Closed form for z ~ N(0, I), y = W z + n."""

    def __init__(self, prior: LinearGaussian, task: LinearMeasurement) -> None:
        self.prior, self.matrix, self.sigma = prior, task.matrix, task.noise_level.lo

    def _posterior(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        return self.prior.noise_posterior(self.matrix, obs.y.double(), self.sigma)

    def log_z(self, obs: Observation) -> Tensor:
        return self._posterior(obs)[2]

    def sample(self, obs: Observation, n: int, generator: torch.Generator) -> Tensor:
        mean, covariance, _ = self._posterior(obs)
        noise = torch.randn((n, *mean.shape), generator=generator, dtype=mean.dtype)
        return (mean + noise @ torch.linalg.cholesky(covariance).mT).float()


class MixtureTruth:
    """Closed form for a Gaussian mixture under a linear measurement; z is the inverse map of x."""

    def __init__(self, prior: GaussianMixture, task: LinearMeasurement) -> None:
        self.prior, self.matrix, self.sigma = prior, task.matrix, task.noise_level.lo

    def log_z(self, obs: Observation) -> Tensor:
        return self.prior.posterior(self.matrix, obs.y.double(), self.sigma).log_evidence

    def sample(self, obs: Observation, n: int, generator: torch.Generator) -> Tensor:
        exact = self.prior.posterior(self.matrix, obs.y.double(), self.sigma)
        x = exact.sample(n, generator)
        z = self.prior.inverse(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return z.transpose(0, 1).float()

    def weights(self, obs: Observation) -> Tensor:
        """Posterior weight of each component, (B, components)."""
        return self.prior.posterior(self.matrix, obs.y.double(), self.sigma).weights


class GridTruth:
    """Sums over the midpoints of a grid that is uniform in (Φ(z_1), Φ(z_2)).

    Every cell has the same prior mass, so that Z is a plain mean of r. The middle of the first
    axis, where a planar prior may jump, is a cell boundary.

    Args:
        posterior: with noise of shape (2,).
        shape: cells along each axis; the first is even.
    """

    def __init__(self, posterior: Posterior, shape: tuple[int, int] = (2000, 300)) -> None:
        if shape[0] % 2:
            raise ValueError(f"the first axis of the grid must have an even size, got {shape[0]}")
        self.shape, self.task = shape, copy.deepcopy(posterior.task).double()
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape]
        u = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        self.z = torch.special.ndtri(u)
        self.x = posterior.prior(self.z)

    def log_rewards(self, y: Tensor, sigma: Tensor) -> Tensor:
        """log r of all cells under one observation y (1, m), float64 (cells,)."""
        obs = Observation(
            y.double().expand(len(self.x), -1), {}, sigma.double().expand(len(self.x))
        )
        return self.task.log_reward(self.x, obs)

    def _each(self, obs: Observation) -> list[Tensor]:
        return [self.log_rewards(one.y, one.sigma) for one in (obs[i] for i in range(len(obs)))]

    def log_z(self, obs: Observation) -> Tensor:
        cells = math.log(len(self.z))
        return torch.stack([value.logsumexp(0) - cells for value in self._each(obs)])

    def sample(self, obs: Observation, n: int, generator: torch.Generator) -> Tensor:
        draws = [self._draw(value, n, generator) for value in self._each(obs)]
        return torch.stack(draws, 1)

    def _draw(self, log_reward: Tensor, n: int, generator: torch.Generator) -> Tensor:
        total = log_reward.softmax(0).cumsum(0)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64) * total[-1]
        cell = torch.searchsorted(total, uniform).clamp_max(len(total) - 1)
        corner = torch.stack([cell // self.shape[1], cell % self.shape[1]], -1)
        jitter = torch.rand((n, 2), generator=generator, dtype=torch.float64)
        u = (corner + jitter) / torch.tensor(self.shape)
        return torch.special.ndtri(u).float()

    def weights(self, obs: Observation, modes: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Posterior mass of each mode, (B, count)."""
        label = modes(self.x)
        rows = []
        for value in self._each(obs):
            mass = torch.zeros(count, dtype=torch.float64)
            rows.append(mass.index_add(0, label, value.softmax(0)))
        return torch.stack(rows)


def linear_gaussian() -> Problem:
    """16 dimensions, 8 measurements, sigma 0.3; W has entries N(0, 1/8)."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 16, generator=generator) / math.sqrt(8)
    prior, task = LinearGaussian(dim=16), LinearMeasurement(matrix, sigma=0.3)
    return Problem(
        "linear",
        Posterior(prior, task),
        LinearGaussianTruth(prior, task),
        {"log_snr_min": -2.0, "log_snr_max": 5.0, "late": 0.85},
        matrix=matrix,
        sigma=0.3,
    )


def mixture() -> Problem:
    """8 modes on a ring, 7.7 standard deviations apart, under one weak oblique measurement."""
    prior = GaussianMixture.ring(modes=8, radius=1.0, std=0.1)
    task = LinearMeasurement([[0.94, 0.34]], sigma=1.0)
    truth = MixtureTruth(prior, task)

    def nearest(x: Tensor) -> Tensor:
        return torch.cdist(x, prior.means.to(x)).argmin(-1)

    return Problem(
        "mixture",
        Posterior(prior, task),
        truth,
        {"log_snr_min": -3.0, "log_snr_max": 7.0},
        nearest,
        truth.weights,
        sigma=1.0,
    )


def two_moons() -> Problem:
    """Two moons under y = |x_1| + n, sigma 0.2: left and right on the upper moon, and the lower."""
    prior = TwoMoons(std=0.1)
    task = NonlinearMeasurement("outsourced.tasks.functions.absolute_first", [2], 0.2)
    posterior = Posterior(prior, task)
    truth = GridTruth(posterior)
    return Problem(
        "moons",
        posterior,
        truth,
        {"log_snr_min": -3.0, "log_snr_max": 7.0},
        moon,
        lambda obs: truth.weights(obs, moon, 3),
        sigma=0.2,
    )


def moon(x: Tensor) -> Tensor:
    """Which part of the two moons x (N, 2) is on: 0 upper left, 1 upper right, 2 lower, (N,)."""
    upper = (x.norm(dim=-1) - 1).abs() + (-x[:, 1]).clamp_min(0)
    below = torch.stack([1 - x[:, 0], 0.5 - x[:, 1]], -1)  # the lower moon, turned onto the upper
    lower = (below.norm(dim=-1) - 1).abs() + (-below[:, 1]).clamp_min(0)
    return torch.where(lower < upper, 2, (x[:, 0] > 0).long())


PROBLEMS = {"linear": linear_gaussian, "mixture": mixture, "moons": two_moons}
