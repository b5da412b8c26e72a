"""Paths, and their scores under a sampler: densities with gradient, evidence and state flow."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outsourced.control import Control
from outsourced.guidance import Conditioning, Context
from outsourced.reference import Reference
from outsourced.tasks.base import Observation


@dataclass
class Path:
    """Paths z_0 .. z_K: n for each of B observations.

    Attributes:
        z: (K + 1, n, B, *noise_shape).
        guide: Cached guidance of the visited states, (2, K, n B, d), or None.
        log_ratio: log P_phi / P_ref of the whole path in nats (n, B), where the draw gave it.
    """

    z: Tensor
    guide: Tensor | None = None
    log_ratio: Tensor | None = None

    @property
    def end(self) -> Tensor:
        """z_K, (n, B, *noise_shape)."""
        return self.z[-1]


class PathScores(nn.Module):
    """What a sampler says of given paths.

    Attributes:
        reference: The uncontrolled process.
        control: The kernels.
        log_z_head: Learned log Z of an embedding.
        flow: Network of the state flow, or None.
        dense: Whether an embedding is a vector, or a map on the noise's grid.
        max_rows: Kernels scored at once.
    """

    reference: Reference
    control: Control
    log_z_head: nn.Module
    flow: nn.Module | None
    dense: bool
    max_rows: int

    @property
    @abstractmethod
    def conditioning(self) -> Conditioning:
        """The problem that the sampler is asked about."""

    @property
    def steps(self) -> int:
        """Number of kernels K."""
        return self.reference.steps

    @abstractmethod
    def encode(self, obs: Observation, paths: int | None = None) -> Context:
        """Everything that is computed once per observation."""

    def log_z(self, context: Context) -> Tensor:
        """Learned log Z(y) in nats, (B,); on top of the Laplace estimate where there is one."""
        context = context.repeat(1)  # by the first anchor
        embedding = context.embedding if self.dense else context.embedding.mean((-2, -1))
        value = self.log_z_head(embedding).squeeze(-1)
        if context.anchored is not None:  # costs a pass of f, which most objectives do not need
            with torch.no_grad():
                reward = self.conditioning.log_reward(context.anchored.anchor, context.obs)
            return value + context.anchored.log_z(reward)
        return value if context.laplace is None else value + context.laplace.log_z

    def log_flow(self, path: Path, context: Context) -> Tensor:
        """Learned log F(z_k, y) - log N(z_k) of the states k = 0 .. K-1, (K, n, B)."""
        n, batch = path.z.shape[1:3]
        k = torch.arange(self.steps, device=path.z.device)
        value = self.log_flow_at(path.z[:-1].flatten(1, 2), k, context.repeat(n))
        return value.unflatten(1, (n, batch))

    def log_flow_at(self, z: Tensor, k: Tensor, context: Context) -> Tensor:
        """Learned log F(z_k, y) - log N(z_k) of states z (S, N, *noise_shape) at steps k (S,):
        (S, N)."""
        if self.flow is None:
            raise ValueError("this sampler has no flow network; build it with sampler.flow=true")
        value = self.flow(z, k, context.embedding).flatten(2).mean(-1)
        # The flow of z_0 does not depend on z_0, which is independent of z_K: it is log Z.
        later = (k > 0).to(value.dtype)[:, None]
        return self.log_z(context) + later * value

    @torch.no_grad()
    def guided(self, path: Path, context: Context) -> Tensor:
        """The guidance of all states of a path, (2, K, n B, d); cached where the draw left it."""
        if path.guide is not None:
            return path.guide
        z = path.z[:-1].flatten(1, 2)
        k = torch.arange(self.steps, device=z.device)
        guide = self.control.guide(z, k, context.repeat(path.z.shape[1]), self.conditioning)
        assert guide is not None
        return guide

    def _score(
        self, z: Tensor, after: Tensor, k: Tensor, context: Context, guide: Tensor | None
    ) -> Tensor:
        kernel = self.control(z, k, context, self.conditioning, guide)
        return kernel.log_ratio(self.reference.innovation(z, after, k))

    def score(
        self, z: Tensor, after: Tensor, k: Tensor, context: Context, guide: Tensor | None = None
    ) -> Tensor:
        """log P_phi(after | z) - log P_ref(after | z) in nats for steps k (S,), with grad: (S,
        N)."""
        rows = max(1, self.max_rows // z.shape[1])
        parts = []
        for start in range(0, len(k), rows):
            piece = slice(start, start + rows)
            cached = None if guide is None else guide[:, piece]
            if cached is None:
                cached = self.control.guide(z[piece], k[piece], context, self.conditioning)
            arguments = (z[piece], after[piece], k[piece], context, cached)
            if torch.is_grad_enabled() and len(k) > rows:
                parts.append(checkpoint(self._score, *arguments, use_reentrant=False))
            else:
                parts.append(self._score(*arguments))
        return torch.cat(parts)

    def step_log_ratio(self, path: Path, context: Context) -> Tensor:
        """log P_phi / P_ref of every step of the paths, with grad: (K, n, B)."""
        n, batch = path.z.shape[1:3]
        z = path.z.flatten(1, 2)
        k = torch.arange(self.steps, device=z.device)
        ratio = self.score(z[:-1], z[1:], k, context.repeat(n), path.guide)
        return ratio.unflatten(1, (n, batch))

    def log_ratio(self, path: Path, obs: Observation | Context) -> Tensor:
        """log P_phi / P_ref of whole paths, with grad: (n, B) in nats."""
        context = obs if isinstance(obs, Context) else self.encode(obs, path.z.shape[1])
        return self.step_log_ratio(path, context).sum(0)
