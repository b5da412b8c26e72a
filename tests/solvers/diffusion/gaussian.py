"""Priors whose clean states are Gaussian, so that every network output has a closed form."""

import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors import Prior
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.moment import Moment
from outsourced.solvers.schedule import levels
from outsourced.tasks import LinearMeasurement, Observation

STATE, DATA = 3, 5
T = 1000


def matrix(rows: int, columns: int, seed: int, scale: float = 0.5) -> Tensor:
    draw = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return scale * draw.double()


class GaussianDiffusion(Prior):
    """h ~ N(mean, covariance), in pixels: x = h. Exact noise and velocity."""

    def __init__(self, dim: int = DATA, flow: bool = False, data: int | None = None) -> None:
        super().__init__((dim,), (data or dim,))
        self.factor = matrix(dim, dim, 1, 0.3) + 0.6 * torch.eye(dim, dtype=torch.float64)
        self.mean = matrix(dim, 1, 2)[:, 0]
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64).square()
        self.alphas_cumprod = None if flow else (1 - betas).cumprod(0)
        self.calls, self.shift, self.clamp = 10, 1.0, False
        self.freeze()

    @property
    def covariance(self) -> Tensor:
        return self.factor @ self.factor.T

    def parts(self, z: Tensor, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional means of the clean state and of the noise."""
        total = signal**2 * self.covariance + noise**2 * torch.eye(*self.noise_shape).double()
        solved = torch.linalg.solve(total, (z.double() - signal * self.mean).T).T
        return (self.mean + signal * solved @ self.covariance).to(z), (noise * solved).to(z)

    def predict_noise(self, z_t: Tensor, timestep: int) -> Tensor:
        alpha = self.alphas_cumprod[timestep]
        return self.parts(z_t, alpha.sqrt(), (1 - alpha).sqrt())[1]

    def predict_velocity(self, z_t: Tensor, timestep: float) -> Tensor:
        s = torch.tensor(timestep / T, dtype=torch.float64)
        clean, noise = self.parts(z_t, 1 - s, s)
        return noise - clean

    def decode(self, h: Tensor) -> Tensor:
        return h

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(z @ self.factor.T.to(z) + self.mean.to(z))


class GaussianLatent(GaussianDiffusion):
    """x = D h + c, code E x + e, drawn with deviation `spread`; `bend` makes both nonlinear."""

    def __init__(self, flow: bool = False, spread: float = 0.2, bend: float = 0.0) -> None:
        super().__init__(STATE, flow, DATA)
        self.spread, self.bend = spread, bend
        self.D, self.E = matrix(DATA, STATE, 3), matrix(STATE, DATA, 4)
        self.c, self.e = matrix(DATA, 1, 5)[:, 0], matrix(STATE, 1, 6)[:, 0]

    def decode(self, h: Tensor) -> Tensor:
        x = h @ self.D.T.to(h) + self.c.to(h)
        return x + self.bend * x.sin()

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h = x @ self.E.T.to(x) + self.e.to(x)
        h = h + self.bend * h.sin()
        if generator is None:
            return h
        spread = self.spread * (1 + self.bend * h.cos())
        return h + spread * torch.randn(h.shape, generator=generator, dtype=h.dtype)


def posterior(
    prior: Prior, rows: int = 4, sigma: float = 0.05, dtype: torch.dtype = torch.float64
) -> Posterior:
    """With a measurement that neither is symmetric nor has orthogonal rows."""
    task = LinearMeasurement(matrix(rows, DATA, 7).float(), sigma=sigma).to(dtype)
    return Posterior(prior, task)


def observe(problem: Posterior, count: int = 2, seed: int = 8) -> Observation:
    """Observations of the prior's own data, in the task's precision."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *problem.prior.noise_shape, generator=generator)
    return problem.task.sample(problem.prior(z.to(problem.task.matrix)), generator)


def state(problem: Posterior, count: int = 2, seed: int = 9) -> Tensor:
    """Noise to start from, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *problem.prior.noise_shape, generator=generator).double()


def first(solver: DiffusionSampler, obs: Observation, index: int = 0) -> Moment:
    """The first step of a solver, or a later one."""
    now, after = levels(solver.prior, solver.steps)[index : index + 2]
    return Moment(now, after, obs, torch.Generator().manual_seed(4))
