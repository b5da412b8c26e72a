"""A measurement of mixed noise whose posterior is known in closed form."""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from outsourced.tasks.base import Observation

DOUBLE = torch.float64
MODES = [((6,), "auto", "diagonal"), ((6,), "auto", "full"), ((2, 4, 3), "auto", "diagonal")]
MODES.append(((2, 4, 3), "convolutional", "diagonal"))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Mixing:
    """y = g(M z) + sigma n for noise of any shape; g(u) = u + bend sin(u)."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], bend: float = 0.0):
        self.matrix, self.shape, self.bend = matrix, shape, bend
        self.data_shape = (len(matrix),)

    def apply(self, z: Tensor) -> Tensor:
        u = z.flatten(1) @ self.matrix.T
        return u + self.bend * u.sin()

    def observe(self, n: int, seed: int = 6) -> Observation:
        y = self.apply(draw(n, *self.shape, seed=seed)) + 0.3 * draw(n, len(self.matrix), seed=9)
        return Observation(y, {}, 0.5 + 0.2 * torch.arange(n).to(DOUBLE))

    def features(self, obs: Observation) -> Tensor:
        if len(self.shape) == 1:
            return obs.y
        return obs.y[:, :1, None, None].expand(-1, *self.shape)

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor:
        return -0.5 * ((obs.y - self.apply(z)) / obs.sigma[:, None]).square().sum(-1)

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        gap = (obs.y - x.to(DOUBLE)[:, None]) / obs.sigma[:, None]
        return -0.5 * gap.square().sum(-1)

    def jacobian(self, z: Tensor, obs: Observation) -> Tensor:
        """(B, m, d), by hand."""
        u = z.flatten(1) @ self.matrix.T
        slope = (1 + self.bend * u.cos()) / obs.sigma[:, None]
        return -slope[:, :, None] * self.matrix

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]:
        gap = (obs.y - self.apply(z)) / obs.sigma[:, None]
        gradient = -torch.einsum("bm,bmd->bd", gap, self.jacobian(z, obs))
        return self.log_reward(z, obs), gradient.reshape(z.shape)

    def random_vjp(self, z: Tensor, obs: Observation, count: int) -> Tensor:
        jacobian = self.jacobian(z, obs)
        found = torch.einsum("km,bmd->kbd", draw(count, jacobian.shape[1], seed=4), jacobian)
        return found.reshape(count, *z.shape)

    def jvp(self, z: Tensor, obs: Observation, tangents: Tensor) -> Tensor:
        return torch.einsum("bmd,kbd->kbm", self.jacobian(z, obs), tangents.flatten(2))

    def exact(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, covariance and log Z of the posterior without bend."""
        jacobian = self.jacobian(torch.zeros(len(obs), *self.shape, dtype=DOUBLE), obs)
        eye = torch.eye(self.matrix.shape[1], dtype=DOUBLE)
        covariance = torch.linalg.inv(eye + jacobian.mT @ jacobian)
        white = obs.y / obs.sigma[:, None]
        mean = -(covariance @ jacobian.mT @ white[..., None])[..., 0]
        marginal = torch.eye(len(self.matrix), dtype=DOUBLE) + jacobian @ jacobian.mT
        law = MultivariateNormal(torch.zeros(len(self.matrix), dtype=DOUBLE), marginal)
        return mean, covariance, law.log_prob(white) + len(self.matrix) / 2 * math.log(2 * math.pi)
