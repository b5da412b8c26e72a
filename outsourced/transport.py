"""A sampler for diffusion priors: noise carried along the prior's own flow and back.

F carries noise z to latents h = F(z) of the prior, x = decode(h). G_y is the same sampler with a
network that also sees the observation, trained to denoise the latents of simulated pairs (h, y); it
carries noise to draws of p(h | y). So z = F^{-1}(G_y(noise)) follows the posterior in noise space:
an image knows its latents, and the inversion finds their noise, which no network could read off the
image. G_y begins as F, so that the untrained sampler is the prior.

The map has no tractable density: samples have no weights, and what they are worth is seen on
simulated observations (calibration) or by moves that leave the posterior invariant.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outsourced.climb import climb
from outsourced.guidance import Context
from outsourced.networks import zero_
from outsourced.scoring import Path
from outsourced.tasks.base import Observation

SCHEDULERS = ("ddim", "flow_match_euler")  # they visit times that the network was trained at


class DiffusionProblem(Protocol):
    """What the transport asks about its problem; `Posterior` of a `DiffusionPrior` answers."""

    prior: Any
    black_box: str | None
    chunk: int
    prior_calls: int

    def grad_latent_log_reward(self, h: Tensor, obs: Observation) -> tuple[Tensor, Tensor]: ...
    def features(self, obs: Observation) -> Tensor: ...


class PatchEncoder(nn.Module):
    """Observation features (C, H, W) as a map on the noise's grid, of whole patches of pixels.

    Args:
        shape: (C, H, W) of the features.
        grid: (h, w) of the noise; H / h and W / w must be the same integer.
        width: Hidden channels.

    Attributes:
        size: Channels of the map, C (H / h)^2.

    Raises:
        ValueError: The features are no image, or do not tile the grid.
    """

    def __init__(self, shape: tuple[int, ...], grid: tuple[int, ...], width: int):
        super().__init__()
        self.patch = shape[-1] // grid[-1] if len(shape) == 3 else 0
        if not self.patch or shape[1:] != tuple(self.patch * side for side in grid):
            raise ValueError(
                f"sampler=transport needs image features that tile the noise's grid {grid}, got "
                f"features {shape}; use sampler=default"
            )
        self.size = shape[0] * self.patch**2
        self.net = nn.Sequential(
            nn.Conv2d(self.size, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            zero_(nn.Conv2d(width, self.size, 3, padding=1)),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, size, h, w)."""
        patches = F.pixel_unshuffle(features, self.patch)
        return patches + self.net(patches)


class NoiseTransport(nn.Module):
    """z = F^{-1}(G_y(noise)) for a diffusion prior with a U-Net; see the module's text.

    Args:
        noise_shape: Event shape of z, (C, h, w).
        feature_shape: Event shape of the observation features, (C', H, W).
        conditioning: The problem, whose prior is a `DiffusionPrior`.
        tolerance: At which a step of the inversion has converged, in standard deviations of the
            noise; smaller ones take more network calls.
        refine: Steps of a climb of log r, with the latents in the place of the noise, from the
            draws of G_y; each takes a gradient through the decoder alone. 0 for black boxes.
        rate: Of the climb, in standard deviations of the latents.
        width: Hidden channels of the observation encoder.

    Raises:
        ValueError: The prior is no diffusion with a U-Net and a one-step scheduler, or numbers are
            out of range.
    """

    weighted = False  # paths have no density
    anchoring = None

    def __init__(
        self,
        noise_shape: tuple[int, ...],
        feature_shape: tuple[int, ...],
        conditioning: DiffusionProblem,
        tolerance: float = 0.001,
        refine: int = 0,
        rate: float = 0.05,
        width: int = 128,
    ):
        super().__init__()
        if tolerance <= 0:
            raise ValueError(f"sampler.tolerance must be > 0, got {tolerance}")
        if refine < 0:
            raise ValueError(f"sampler.refine must be >= 0 steps, got {refine}")
        for name, value in (("width", width), ("rate", rate)):
            if value <= 0:
                raise ValueError(f"sampler.{name} must be > 0, got {value}")
        prior = conditioning.prior
        if refine and conditioning.black_box is not None:
            raise ValueError(
                f"sampler.refine={refine} needs the gradient of log r, but "
                f"{conditioning.black_box} is a black box; use sampler.refine=0"
            )
        if not (hasattr(prior, "invert") and hasattr(prior.network, "conv_in")):
            raise ValueError(
                "sampler=transport needs a diffusion prior with a U-Net, got "
                f"{type(prior).__name__}; use sampler=default"
            )
        if prior.schedule.name not in SCHEDULERS:
            raise ValueError(
                f"sampler=transport needs prior.scheduler={'|'.join(SCHEDULERS)}, got "
                f"{prior.schedule.name!r}"
            )
        self._problem = (conditioning,)  # a tuple hides the frozen prior from state_dict
        self.noise_shape, self.tolerance = tuple(noise_shape), tolerance
        self.refine, self.rate = refine, rate
        self.encoder = PatchEncoder(tuple(feature_shape), self.noise_shape[1:], width)
        self.network = _widened(prior.network, self.encoder.size)

    @property
    def conditioning(self) -> DiffusionProblem:
        """The problem that this sampler is asked about."""
        return self._problem[0]

    def encode(self, obs: Observation, paths: int | None = None) -> Context:
        """Everything that is computed once per observation, whatever the number of paths."""
        return Context(self.encoder(self.conditioning.features(obs)), obs)

    def latents(self, noise: Tensor, context: Context) -> Tensor:
        """G_y(noise): latents of the posteriors of N observations, (N, *noise_shape)."""

        def predict(h: Tensor, timestep: Tensor) -> Tensor:
            return self._call(h, timestep, context.embedding)

        return self.conditioning.prior.schedule.integrate(predict, noise)

    def _refined(self, h: Tensor, obs: Observation) -> Tensor:
        """Latents a few steps up log r(decode(h)) - |h|^2 / 2, each on its own."""
        if not self.refine:
            return h
        gradient = self.conditioning.grad_latent_log_reward
        # The climb does not look at the point after its last gradient.
        return climb(lambda h: gradient(h, obs), h, self.refine + 1, self.rate)

    def _call(self, h: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        joint = torch.cat([h, embedding], 1)
        return self.conditioning.prior.apply_network(self.network, joint, timestep)

    @torch.no_grad()
    def forward_path(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        context: Context | None = None,
    ) -> Path:
        """Noise and what it is carried to, n for each of B observations, in chunks.

        Args:
            obs: B observations.
            n: Samples of each.
            generator: Source of randomness.
            context: `encode(obs)`, if at hand.
        """
        context = (self.encode(obs) if context is None else context).repeat(n)
        rows, problem = n * len(obs), self.conditioning
        like = context.embedding
        shape = (rows, *self.noise_shape)
        noise = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        ends = []
        for piece in torch.arange(rows, device=like.device).split(problem.chunk):
            part = context.select(piece)
            h = self._refined(self.latents(noise[piece], part), part.obs)
            z, calls = problem.prior.invert(h, self.tolerance)
            ends.append(z)
            problem.prior_calls += round(calls)
        return Path(torch.stack([noise, torch.cat(ends)]).unflatten(1, (n, len(obs))))

    def forward(self, obs: Observation, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise z ~ q(z | y): (n, B, *noise_shape)."""
        return self.forward_path(obs, n, generator).end

    def matching_loss(
        self, h: Tensor, obs: Observation, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Squared error of the network's output on noised latents, with grad: (B,).

        Its minimum over all networks is the denoiser of p(h | y) (Vincent, 2011; Ho et al., 2020,
        arXiv 2006.11239, eq. 14), where h and y are joint draws.

        Args:
            h: Latents, (B, *noise_shape).
            obs: B observations.
            steps: Noise levels drawn for each, of those that the sampler visits.
            generator: Source of randomness.
        """
        embedding = self.encode(obs).embedding
        levels = self.conditioning.prior.timesteps.to(h.device)
        count = len(levels)
        total = torch.zeros(len(h), device=h.device)
        for _ in range(steps):
            pick = torch.randint(count, (len(h),), generator=generator, device=h.device)
            noise = torch.randn(h.shape, generator=generator, device=h.device, dtype=h.dtype)
            state, target = self._noised(h, noise, levels[pick])
            error = self._call(state, levels[pick], embedding) - target
            total = total + error.square().flatten(1).mean(1)
        return total / steps

    def _noised(self, h: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Input and wanted output of the network at timesteps (B,)."""
        prior = self.conditioning.prior
        if prior.alphas_cumprod is None:  # a rectified flow
            s = (timestep / 1000).reshape(-1, *[1] * (h.ndim - 1)).to(h.dtype)
            return (1 - s) * h + s * noise, noise - h
        alpha = prior.alphas_cumprod.to(h)[timestep.long()].reshape(-1, *[1] * (h.ndim - 1))
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        kind = prior.schedule.prediction_type
        targets = {"epsilon": noise, "sample": h, "v_prediction": signal * noise - spread * h}
        return signal * h + spread * noise, targets[kind]


def _widened(network: Any, channels: int) -> Any:
    """A trainable copy of a U-Net with more input channels, which it does not look at yet."""
    found = copy.deepcopy(network).float().requires_grad_(True).train()
    old = found.conv_in
    new = nn.Conv2d(
        old.in_channels + channels, old.out_channels, old.kernel_size, old.stride, old.padding
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    found.conv_in = new.to(old.weight.device)
    return found
