"""Problems with closed forms in float64, samplers on them, and noise that reads off matrices."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from outsourced.control import ANCHOR_GAIN, GATE_GAIN
from outsourced.reference import Reference
from outsourced.sampler import NoiseSampler
from outsourced.tasks.base import Observation


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Linear:
    """f is the identity and y = W z + sigma n: the posterior and every log h_k are Gaussian."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def observe(self, n: int, sigma: float = 0.4, seed: int = 5) -> Observation:
        y = 2 * randn(n, len(self.matrix), seed=seed)
        return Observation(y, {}, sigma * (1 + 0.5 * torch.arange(n).double()))

    def features(self, obs: Observation) -> Tensor:
        return obs.y

    def _residual(self, z: Tensor, obs: Observation) -> Tensor:
        return (obs.y - z @ self.matrix.T) / obs.sigma[:, None]

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor:
        norm = len(self.matrix) * (obs.sigma * math.sqrt(2 * math.pi)).log()
        return -0.5 * self._residual(z, obs).square().sum(-1) - norm

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]:
        gradient = self._residual(z, obs) @ self.matrix / obs.sigma[:, None]
        return self.log_reward(z, obs), gradient

    def gauss_newton(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        curvature = self.matrix.T @ self.matrix / obs.sigma.square()[:, None, None]
        return *self.grad_log_reward(z, obs), curvature

    def _marginal(self, variance: Tensor, obs: Observation) -> Tensor:
        eye = torch.eye(len(self.matrix), dtype=torch.float64)
        return variance * self.matrix @ self.matrix.T + obs.sigma.square()[:, None, None] * eye

    def posterior(
        self, obs: Observation, mean: Tensor | float = 0.0, variance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, d), covariance (B, d, d) of z ~ N(mean, variance I) given y: Kalman's gain."""
        variance = torch.as_tensor(variance, dtype=torch.float64)
        mean = torch.zeros(len(obs), self.matrix.shape[1], dtype=torch.float64) + mean
        gain = variance * self.matrix.T @ torch.linalg.inv(self._marginal(variance, obs))
        innovation = obs.y - mean @ self.matrix.T
        eye = torch.eye(self.matrix.shape[1], dtype=torch.float64)
        covariance = variance * (eye - gain @ self.matrix)
        return mean + (gain @ innovation[..., None])[..., 0], covariance

    def next_state(
        self, z: Tensor, k: int, reference: Reference, obs: Observation
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of z_{k+1} given z_k = z (B, d) and y: the optimal kernel, from the
        covariances of (z_{k+1}, y) given z_k."""
        a, now, later = reference.rho[k] / reference.rho[k + 1], *reference.rho[k : k + 2]
        cross = (later - a * now) * self.matrix.T
        gain = cross @ torch.linalg.inv(self._marginal(1 - now**2, obs))
        innovation = obs.y - now * z @ self.matrix.T
        eye = torch.eye(self.matrix.shape[1], dtype=torch.float64)
        mean = a * z + (gain @ innovation[..., None])[..., 0]
        return mean, (1 - a**2) * eye - gain @ cross.T

    def log_flow(self, z: Tensor, rho: Tensor, obs: Observation) -> Tensor:
        """log h_k(z) = log E[r(z_K) | z_k = z] for z (..., B, d): (..., B)."""
        law = MultivariateNormal(rho * z @ self.matrix.T, self._marginal(1 - rho**2, obs))
        return law.log_prob(obs.y)

    def log_z(self, obs: Observation) -> Tensor:
        zero = torch.zeros(len(obs), self.matrix.shape[1], dtype=torch.float64)
        return self.log_flow(zero, torch.zeros((), dtype=torch.float64), obs)


class Saturating:
    """y = tanh(z) + sigma n, entry by entry, for noise of any shape: a nonlinear posterior."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = self.data_shape = shape

    def observe(self, n: int, sigma: float = 0.4, seed: int = 6) -> Observation:
        y = torch.tanh(randn(n, *self.shape, seed=seed))
        return Observation(y, {}, sigma * (1 + 0.5 * torch.arange(n).double()))

    def features(self, obs: Observation) -> Tensor:
        return obs.y

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor:
        square = (obs.y - torch.tanh(z)).square().flatten(1).sum(-1)
        return -0.5 * square / obs.sigma.square()

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        square = (obs.y - x[:, None]).square().flatten(2).sum(-1)
        return -0.5 * square / obs.sigma.square()

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self.log_reward(leaf, obs)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    def gauss_newton(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        slope = (1 - torch.tanh(z).square()) / obs.sigma[:, None]
        return *self.grad_log_reward(z, obs), torch.diag_embed(slope.square())


def randomise(module: torch.nn.Module, size: float = 0.1, seed: int = 3) -> None:
    """Move every weight, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise)


@pytest.fixture
def linear() -> Linear:
    """Three noisy combinations of four unknowns."""
    return Linear(randn(3, 4, seed=1))


@pytest.fixture
def make_sampler() -> Callable[..., NoiseSampler]:
    """A small float64 sampler with random weights (or the untouched zero-initialised one)."""

    def build(problem, noise_shape, feature_shape, random=True, steps=4, **options):
        torch.manual_seed(0)
        options = {"width": 16, "depth": 1, "embedding": 8, "steps": steps} | options
        sampler = NoiseSampler(noise_shape, feature_shape, problem, **options).double()
        if random:
            randomise(sampler)
        return sampler

    return build


@pytest.fixture
def problems() -> dict[str, Saturating]:
    """The same nonlinear problem on vector and on spatial noise."""
    return {"vector": Saturating((3,)), "spatial": Saturating((2, 4, 3))}


@pytest.fixture
def sampler_of(problems, make_sampler):
    """mode -> (sampler with random weights, three observations)."""

    def build(mode, **options):
        kind, informed, covariance = mode
        problem = problems["spatial" if kind == "convolutional" else kind]
        network = kind if kind == "convolutional" else "auto"
        options = {"informed": informed, "covariance": covariance, "network": network} | options
        if informed == "anchor":
            options = {"lookup": 20, "climb": 3, "anchors": 2} | options
        sampler = make_sampler(problem, problem.shape, problem.shape, **options)
        if sampler.anchoring is not None:
            with torch.no_grad():
                sampler.control.gate.mul_(2 / ANCHOR_GAIN)  # half open, not far beyond the limit
            z = randn(20, *problem.shape, seed=7)
            sampler.anchoring.lookup.fill(z, torch.tanh(z))
        return sampler, problem.observe(3)

    return build


@pytest.fixture
def optimal(linear, make_sampler) -> NoiseSampler:
    """The posterior itself: open gates, zero network outputs; one Newton step finds the mean."""
    sampler = make_sampler(
        linear, (4,), (3,), random=False, steps=7, informed="gauss_newton", anchor_steps=1
    )
    with torch.no_grad():
        sampler.control.gate.fill_(1 / GATE_GAIN)
    return sampler


@pytest.fixture
def chain_covariance() -> Callable[[Reference], Tensor]:
    """Covariance of (z_0, .., z_K): corr(z_i, z_j) = rho_i / rho_j for i < j."""

    def compute(reference: Reference) -> Tensor:
        rho = reference.rho
        low = torch.minimum(rho[:, None], rho)
        high = torch.maximum(rho[:, None], rho)
        ratio = low / high.where(high > 0, 1.0)
        return ratio.fill_diagonal_(1.0)

    return compute


@pytest.fixture
def play_noise(monkeypatch) -> Callable[[list[Tensor]], None]:
    """Let torch.randn return the given tensors one after the other, whatever generator it gets."""

    def play(tensors: list[Tensor]) -> None:
        queue = iter(tensors)

        def fake(shape, **_):
            value = next(queue)
            assert value.shape == torch.Size(shape)
            return value

        monkeypatch.setattr(torch, "randn", fake)

    return play
