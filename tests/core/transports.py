"""Transports on a diffusion whose denoiser is known: pixels that are Gaussian and independent."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from outsourced.posterior import Posterior
from outsourced.priors.base import Prior
from outsourced.priors.diffusion_schedule import Schedule
from outsourced.transport import NoiseTransport

SHAPE, SCALE, SIGMA, STEPS = (1, 4, 4), 0.6, 0.4, 60


class Linear(nn.Module):
    """A denoiser that is linear at every timestep: conv_out of gain[t, c] conv_in(x)_c."""

    def __init__(self, alphas: Tensor):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.conv_out.weight.fill_(1.0)
            self.conv_out.bias.zero_()
            self.conv_in.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            self.conv_in.bias.zero_()
        # E[noise | state] where pixels are N(0, SCALE^2).
        gain = (1 - alphas).sqrt() / (alphas * SCALE**2 + 1 - alphas)
        self.gain = nn.Parameter(torch.stack([gain, 0.5 * torch.ones_like(gain)], 1))

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        gain = self.gain[torch.as_tensor(timestep).long().expand(len(x))]
        return (self.conv_out(gain[:, :, None, None] * self.conv_in(x)),)


class GaussianDiffusion(Prior):
    """DDIM on independent Gaussian pixels: f multiplies noise by a constant."""

    def __init__(self) -> None:
        from diffusers import DDIMScheduler

        super().__init__(SHAPE, SHAPE)
        self.schedule = Schedule(
            DDIMScheduler(clip_sample=False, set_alpha_to_one=True), None, STEPS
        )
        self.alphas_cumprod = self.schedule.begin().alphas_cumprod.clone()
        self.network = Linear(self.alphas_cumprod)
        self.timesteps, self.calls = self.schedule.timesteps, STEPS
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        return self.denoise(z)

    def decode(self, h: Tensor) -> Tensor:
        return h

    encode = image = decode

    def denoise(self, z: Tensor) -> Tensor:
        return self.schedule.integrate(lambda x, t: self.network(x, t)[0], z)

    def invert(self, h: Tensor, tolerance: float) -> tuple[Tensor, float]:
        z = self.schedule.invert(lambda x, t: self.network(x, t)[0], h, tolerance)
        return z, 2.0 * len(h)

    def apply_network(self, network: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
        return network(x, timestep)[0]


def transport(posterior: Posterior, **options) -> NoiseTransport:
    torch.manual_seed(0)
    shapes = posterior.prior.noise_shape, posterior.task.feature_shape
    return NoiseTransport(*shapes, posterior, **{"width": 8, **options})


@contextmanager
def recorded(prior: Prior) -> Iterator[list[Tensor]]:
    """The times, (B,) each, that networks are asked at."""
    seen: list[Tensor] = []
    apply = prior.apply_network

    def record(network: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return apply(network, x, timestep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "apply_network", record)
        yield seen
