"""Likelihood-informed inputs of the control: what log r says at the current guess of z_K.

A guidance turns (z_k, k, observation) into a first estimate of the normalised mean shift
delta = (E[z_K | z_k, y] - rho_k z_k) / spread_k, and inputs for the network that are O(1) at every
step. By Stein's identity for the Gaussian N(rho_k z_k, spread_k^2 I), delta is the posterior mean
of spread_k * grad log r(z_K): zero of the force spread_k * grad log r(guess) - delta(guess).
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from outsourced.kernels import rotate
from outsourced.laplace import Anchored, Laplace
from outsourced.low_rank import LowRank
from outsourced.networks import FlatNetwork, Modulation, VectorNetwork
from outsourced.reference import Reference
from outsourced.tasks.base import Observation


class Conditioning(Protocol):
    """What a sampler may ask about its problem; `Posterior` answers."""

    @property
    def data_shape(self) -> tuple[int, ...]: ...
    def features(self, obs: Observation) -> Tensor: ...
    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor: ...
    def log_reward(self, z: Tensor, obs: Observation) -> Tensor: ...
    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]: ...
    def gauss_newton(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor, Tensor]: ...
    def random_vjp(self, z: Tensor, obs: Observation, count: int) -> Tensor: ...
    def jvp(self, z: Tensor, obs: Observation, tangents: Tensor) -> Tensor: ...


@dataclass
class LaplaceTarget:
    """What `fit_laplace` asks about the posteriors of observations."""

    conditioning: Conditioning
    obs: Observation

    def linearise(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.conditioning.gauss_newton(z, self.obs[rows])

    def log_reward(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.conditioning.log_reward(z, self.obs[rows])

    def grad_log_reward(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.conditioning.grad_log_reward(z, self.obs[rows])


@dataclass
class Context:
    """Everything that is computed once per observation.

    Attributes:
        embedding: (N, c) for vector noise, (N, c, h, w) for spatial noise.
        obs: The N observations. Of several anchors, the other tensors have N rows for each, those
            of all first anchors first.
        laplace: Gauss-Newton approximation of each posterior, or None.
        anchored: Gaussian about each anchor of each posterior, or None.
        anchors: Number of anchors of an observation.
        share: Of the paths of an observation that each anchor has, (anchors, N); None: all alike.
        once: What networks have computed from the embedding alone, by their identity.
    """

    embedding: Tensor
    obs: Observation
    laplace: Laplace | None = None
    anchored: Anchored | LowRank | None = None
    anchors: int = 1
    share: Tensor | None = None
    once: dict[int, Modulation] = field(default_factory=dict)

    def repeat(self, n: int) -> "Context":
        """n copies along the batch, ordered as `Tensor.repeat`: (n N, ...).

        Of several anchors each copy has one, in turn or by their shares.
        """
        if n == self.anchors == 1:
            return self
        count, device = len(self.obs), self.embedding.device
        each = torch.arange(count, device=device)
        turn = torch.arange(n, device=device)[:, None]
        if self.share is None:
            turn = turn % self.anchors
        else:  # evenly over the shares: each anchor's copies are as many, up to one
            place = ((turn + 0.5) / n).expand(n, count).T.contiguous().to(self.share)
            reached = self.share.cumsum(0).T[:, :-1].contiguous()
            turn = torch.searchsorted(reached, place).T
        return self._rows((count * turn + each).flatten(), each.repeat(n), 1)

    def select(self, index: Tensor) -> "Context":
        """The observations at `index` (n,), with all their anchors."""
        first = len(self.obs) * torch.arange(self.anchors, device=index.device)
        found = self._rows((first[:, None] + index).flatten(), index, self.anchors)
        return replace(found, share=None if self.share is None else self.share[:, index])

    def _rows(self, rows: Tensor, index: Tensor, anchors: int) -> "Context":
        laplace = None if self.laplace is None else self.laplace.select(rows)
        anchored = None if self.anchored is None else self.anchored.select(rows)
        return Context(self.embedding[rows], self.obs[index], laplace, anchored, anchors)


def evaluate(network: nn.Module, x: Tensor, k: Tensor, context: Context) -> Tensor:
    """A control network at x; in a roll-out, what does not depend on the state is kept."""
    rolling = len(k) == 1 and not torch.is_grad_enabled()
    if not rolling or not isinstance(network, VectorNetwork | FlatNetwork):
        return network(x, k, context.embedding)
    of_all = context.once.get(id(network))
    if of_all is None:
        dense = network.dense if isinstance(network, FlatNetwork) else network
        every = torch.arange(dense.step.count, device=k.device)
        of_all = context.once[id(network)] = dense.modulation(every, context.embedding)
    return network(x, k, context.embedding, of_all.at(k))


def gradient_at(conditioning: Conditioning, guess: Tensor, obs: Observation) -> Tensor:
    """grad log r at guesses (S, N, *shape), each n under its own observation."""
    s, n = guess.shape[:2]
    index = torch.arange(n, device=guess.device).repeat(s)
    _, gradient = conditioning.grad_log_reward(guess.flatten(0, 1), obs[index])
    return gradient.unflatten(0, (s, n))


class GradientGuidance(nn.Module):
    """Guess z_K by a small network, and read grad log r there.

    Args:
        network: Maps (z, k, embedding) to delta; zero at initialisation.
        reference: The uncontrolled process.
    """

    def __init__(self, network: nn.Module, reference: Reference):
        super().__init__()
        self.network, self.reference = network, reference

    def forward(
        self, z: Tensor, k: Tensor, context: Context, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z (S, N, *shape) -> (delta, unit force, log size of the force), the last (S, N)."""
        rho, spread = (self.reference.at(name, k, z) for name in ("rho", "spread"))
        delta = evaluate(self.network, z, k, context)
        guess = (rho * z + spread * delta).detach()
        force = spread * gradient_at(conditioning, guess, context.obs) - delta.detach()
        size = force.flatten(2).square().mean(-1)
        unit = force / (1 + size).sqrt().reshape(*size.shape, *[1] * (z.ndim - 2))
        return delta, unit, torch.log1p(size) / 10


class GaussNewtonGuidance:
    """Guess z_K by the Laplace approximation, then correct it by one exact gradient.

    With C = V diag(c) V^T the normalised covariance of z_K given z_k, the Newton step from a guess
    is C force; C^{1/2} force is the error of the guess in posterior standard deviations, hence
    O(1).

    Args:
        reference: The uncontrolled process.
        limit: Largest error along each eigenvector, in posterior standard deviations, that one step
            may correct: the quadratic model is local.
    """

    def __init__(self, reference: Reference, limit: float = 3.0):
        self.reference, self.limit = reference, limit

    @torch.no_grad()
    def __call__(
        self, z: Tensor, k: Tensor, context: Context, conditioning: Conditioning
    ) -> Tensor:
        """z (S, N, d) -> stacked (delta, whitened error), (2, S, N, d)."""
        laplace = context.laplace
        assert laplace is not None
        rho, spread = (self.reference.at(name, k, z) for name in ("rho", "spread"))
        delta, c = laplace.posterior(z, rho, spread)
        gradient = gradient_at(conditioning, rho * z + spread * delta, context.obs)
        force = rotate(laplace.basis, spread * gradient - delta, transpose=True)
        error = (c.sqrt() * force).clamp(-self.limit, self.limit)
        delta = delta + rotate(laplace.basis, c.sqrt() * error)
        return torch.stack([delta, rotate(laplace.basis, error)])
