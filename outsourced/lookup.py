"""Stored prior draws, among which the one that explains an observation best is looked up."""

from typing import Protocol

import torch
from torch import Tensor, nn

from outsourced.tasks.base import Observation

SCORED = 2**27  # entries of data that are scored at once: half a GiB in single precision


class Pairwise(Protocol):
    """Scores all pairs of data and observations; `Posterior` does."""

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor: ...


class Lookup(nn.Module):
    """Draws (z, f(z)) of the prior, kept with the sampler's weights.

    Where images that look alike come from far apart noise, as those of a generative adversarial
    network do, an encoder regresses to the mean. The best of a few thousand draws lies in one mode.
    No gradient of f is needed, and f is not called.

    Args:
        count: Number of draws.
        noise_shape: Event shape of z.
        data_shape: Event shape of x.

    Raises:
        ValueError: count < 1.
    """

    z: Tensor
    x: Tensor

    def __init__(self, count: int, noise_shape: tuple[int, ...], data_shape: tuple[int, ...]):
        super().__init__()
        if count < 1:
            raise ValueError(f"sampler.lookup must be >= 1 draws, or 0 for none, got {count}")
        # Half precision: they are starting points, and most of the bytes of a run.
        self.register_buffer("z", torch.zeros(count, *noise_shape, dtype=torch.float16))
        self.register_buffer("x", torch.zeros(count, *data_shape, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.z)

    @torch.no_grad()
    def fill(self, z: Tensor, x: Tensor) -> None:
        """Store draws z (count, *noise_shape) and their x = f(z).

        Raises:
            ValueError: Another number or shape of draws.
        """
        if z.shape != self.z.shape or x.shape != self.x.shape:
            raise ValueError(
                f"sampler.lookup={len(self)} needs z {tuple(self.z.shape)} and x "
                f"{tuple(self.x.shape)}, got {tuple(z.shape)} and {tuple(x.shape)}; lower it, or "
                "raise data.bank_size"
            )
        self.z.copy_(z)
        self.x.copy_(x)

    @torch.no_grad()
    def forward(self, conditioning: Pairwise, obs: Observation, count: int = 1) -> Tensor:
        """The stored z of the `count` largest rewards of each of B observations, the best of all
        first: (count B, *noise_shape)."""
        rows = max(1, SCORED // self.x[0].numel())
        pieces = (x.to(obs.y.dtype) for x in self.x.split(rows))
        score = torch.cat([conditioning.pairwise_log_reward(x, obs) for x in pieces])
        # Below every number: an observation whose rewards are all NaN still gets a draw.
        best = score.nan_to_num(nan=-torch.inf).topk(count, 0).indices
        return self.z[best.flatten()].to(obs.y.dtype)
