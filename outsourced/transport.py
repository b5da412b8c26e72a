"""A sampler for diffusion priors: noise carried along a conditional copy of the prior's own flow.

F carries noise z to latents h = F(z) of the prior, x = decode(h). G_y is a sampler of a few steps,
whose network is a copy of the prior's that also sees the observation, trained to denoise the
latents of simulated pairs (h, y); it carries noise to draws of p(h | y). z = F^{-1}(G_y(noise))
follows the posterior in noise space: an image knows its latents, and the inversion finds their
noise, which no network could read off the image. Who wants x alone decodes G_y(noise) instead.
G_y begins as F, so that the untrained sampler is the prior.

The map has no tractable density: samples have no weights, and what they are worth is seen on
simulated observations (calibration) or by moves that leave the posterior invariant.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from outsourced.conditional import ObservationEncoder, gaussian_loss, widened
from outsourced.guidance import Context
from outsourced.levels import MOST, Levels
from outsourced.linearised import Linearised
from outsourced.refinement import fits, refined
from outsourced.scoring import Path
from outsourced.tasks.base import Observation
from outsourced.tasks.linear_estimate import DataGaussian

SCHEDULERS = ("ddim", "flow_match_euler")  # they visit times that the network was trained at
REGRESSION = 0.1  # weight of the encoder's own loss beside the network's


class DiffusionProblem(Protocol):
    """What the transport asks about its problem; `Posterior` of a `DiffusionPrior` answers."""

    prior: Any
    black_box: str | None
    chunk: int
    prior_calls: int
    estimates_latents: bool

    def linearise_latents(self, h: Tensor, obs: Observation) -> Linearised: ...
    def fitted_rows(self, device: torch.device) -> int: ...
    def latent_estimate(
        self, obs: Observation, about: DataGaussian | None = None
    ) -> Tensor | None: ...
    def features(self, obs: Observation) -> Tensor: ...


class NoiseTransport(nn.Module):
    """z = F^{-1}(G_y(noise)) for a diffusion prior with a U-Net; see the module's text.

    Args:
        noise_shape: Event shape of z, (C, h, w).
        feature_shape: Event shape of the observation features, (C', H, W).
        conditioning: The problem, whose prior is a `DiffusionPrior`.
        steps: Of G_y, spaced evenly in log SNR over the times of the prior's sampler, and of second
            order; by default they are the prior's own.
        between: Noise / signal where G_y's network takes over from the exact flow of the encoder's
            Gaussian, and where it hands back to it, in units of the latents; by default the network
            has the whole way. In much noise a posterior looks Gaussian, in little it does not
            matter which one it is.
        refine: Conjugate gradients of `perturbed_fit` from the draws of G_y, which each take a
            product with the Jacobian of the decoder and one with its transpose; a list of them for
            several fits, each about the end of the one before. 0 for black boxes.
        tolerance: At which a step of the inversion has converged, in standard deviations of the
            noise; smaller ones take more network calls.
        width: Hidden channels of the observation encoder.
        adapters: Rank of low-rank adapters: they, the first and the last layer train, and G_y's
            network has all other weights of the frozen one. By default all of a copy train.
        checkpointing: Of G_y's network in training: less memory, more time.
        axes: Principal axes of the Gaussian of x that the first estimate of linear measurements
            supposes; each takes the memory of an image. By default that is the ridge estimate.

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
        steps: int | None = None,
        between: tuple[float, float] | None = None,
        refine: int | Sequence[int] = 0,
        tolerance: float = 0.001,
        width: int = 128,
        axes: int | None = None,
        adapters: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        if tolerance <= 0:
            raise ValueError(f"sampler.tolerance must be > 0, got {tolerance}")
        prior, self.refine = conditioning.prior, fits(refine, conditioning.black_box)
        _check_prior(prior)
        self.levels, self.second_order = _levels(prior, steps, between), steps is not None
        self.steps, self.handed = len(self.levels) - (between is not None), between is not None
        self._problem = (conditioning,)  # a tuple hides the frozen prior from state_dict
        self.noise_shape, self.tolerance = tuple(noise_shape), tolerance
        self.about = None if axes is None else DataGaussian(prior.data_shape, axes)
        shapes = tuple(feature_shape), self.noise_shape
        self.encoder = ObservationEncoder(*shapes, conditioning.estimates_latents, width)
        channels = self.noise_shape[0]
        sizes = channels + self.encoder.size, channels
        self.network = widened(prior.network, *sizes, adapters, checkpointing)

    @property
    def conditioning(self) -> DiffusionProblem:
        """The problem that this sampler is asked about."""
        return self._problem[0]

    def encode(self, obs: Observation, paths: int | None = None) -> Context:
        """Everything that is computed once per observation, whatever the number of paths."""
        with torch.no_grad():
            estimate = self.conditioning.latent_estimate(obs, self.about)
        return Context(self.encoder(self.conditioning.features(obs), estimate), obs)

    def latents(self, noise: Tensor, context: Context) -> Tensor:
        """G_y(noise): latents of the posteriors of N observations, (N, *noise_shape)."""
        mean, log_variance = self.encoder.gaussian(context.embedding)
        about, before = (mean, log_variance.exp()), None
        state = self.levels.enter(*about, noise, 0) if self.handed else noise
        for step in range(self.steps):
            clean = self._clean(state, step, context)
            state = self.levels.ahead(clean, state, step, before)
            before = clean if self.second_order else None
        return self.levels.leave(*about, state, self.steps) if self.handed else state

    def _clean(self, state: Tensor, step: int, context: Context) -> Tensor:
        """The latents that the network takes a state for."""
        level = torch.full((len(state),), step)
        output = self._call(state, level, context.embedding)
        return self.levels.read(output, state, level)[0]

    def _call(self, state: Tensor, level: Tensor, embedding: Tensor) -> Tensor:
        """The network's own output, or that of the encoder's Gaussian, by shares that it gives."""
        mean, log_variance = (part.detach() for part in self.encoder.gaussian(embedding))
        guess = self.levels.gaussian(mean, log_variance.exp(), state, level)
        joint = torch.cat([state, guess, embedding], 1)
        times = self.levels.timesteps[level.cpu()].to(state.device)
        found = self.conditioning.prior.apply_network(self.network, joint, times)
        output, share = found.chunk(2, 1)
        return output + share * (guess - output)

    @torch.no_grad()
    def draw(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        context: Context | None = None,
        temperature: float = 1.0,
        refine: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noise and the latents that it is carried to, (n, B, *noise_shape) each, in chunks.

        Args:
            obs: B observations.
            n: Samples of each.
            generator: Source of randomness.
            context: `encode(obs)`, if at hand.
            temperature: Standard deviation of the noise, and of that of the refinement.
            refine: Conjugate gradients of each fit, in the place of the sampler's own.
        """
        problem, rounds = self.conditioning, self.refine if refine is None else refine
        context = (self.encode(obs) if context is None else context).repeat(n)
        like, rows = context.embedding, n * len(obs)

        def normal(*shape: int) -> Tensor:
            options: Any = {"device": like.device, "dtype": like.dtype, "generator": generator}
            return temperature * torch.randn((rows, *shape), **options)

        noise = normal(*self.noise_shape)
        shifts = normal(obs.y[0].numel()) if rounds else None
        ends = []
        for piece in torch.arange(rows, device=like.device).split(problem.chunk):
            part = context.select(piece)
            h = self.latents(noise[piece], part)
            if shifts is not None:
                linearise, most = problem.linearise_latents, problem.fitted_rows(h.device)
                h = refined(linearise, h, part.obs, shifts[piece], rounds, most)
            ends.append(h)
        shape = (n, len(obs))
        return noise.unflatten(0, shape), torch.cat(ends).unflatten(0, shape)

    @torch.no_grad()
    def forward_path(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> Path:
        """Noise and the z that it is carried to, n for each of B observations; as `draw`."""
        noise, latents = self.draw(obs, n, generator, context, **options)
        flat, ends = latents.flatten(0, 1), []
        for h in flat.split(self.conditioning.chunk):
            z, calls = self.conditioning.prior.invert(h, self.tolerance)
            ends.append(z)
            self.conditioning.prior_calls += round(calls)
        return Path(torch.stack([noise, torch.cat(ends).unflatten(0, noise.shape[:2])]))

    def forward(self, obs: Observation, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise z ~ q(z | y): (n, B, *noise_shape)."""
        return self.forward_path(obs, n, generator).end

    def regression_loss(self, h: Tensor, obs: Observation) -> Tensor:
        """-log density of latents (B, *noise_shape) under the encoder's Gaussian, nats an entry,
        with grad: (B,)."""
        return gaussian_loss(*self.encoder.gaussian(self.encode(obs).embedding), h)

    def matching_loss(
        self, h: Tensor, obs: Observation, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Squared error of the network's output on noised latents, and a share of the encoder's
        own loss, with grad: (B,).

        The minimum of the former over all networks is the denoiser of p(h | y) (Vincent, 2011; Ho
        et al., 2020, arXiv 2006.11239, eq. 14), where h and y are joint draws.

        Args:
            h: Latents, (B, *noise_shape).
            obs: B observations.
            steps: Noise levels drawn for each, of those that the sampler visits.
            generator: Source of randomness.
        """
        embedding = self.encode(obs).embedding
        total = torch.zeros(len(h), device=h.device)
        for _ in range(steps):
            level = torch.randint(self.steps, (len(h),), generator=generator, device=h.device)
            noise = torch.randn(h.shape, generator=generator, device=h.device, dtype=h.dtype)
            output = self._call(self.levels.noised(h, noise, level), level, embedding)
            error = output - self.levels.output(h, noise, level)
            total = total + error.square().flatten(1).mean(1)
        return total / steps + REGRESSION * gaussian_loss(*self.encoder.gaussian(embedding), h)


def _levels(prior: Any, steps: int | None, between: Sequence[float] | None) -> Levels:
    """The levels that a sampler visits; with `between` also the one that it ends at.

    Raises:
        ValueError: More of them than the prior's sampler has, or less than one; a range that is
            empty or that no step is to visit.
    """
    about = prior.timesteps, prior.alphas_cumprod, prior.schedule.prediction_type
    count = len(prior.timesteps)
    if steps is None and between is None:
        return Levels.visited(*about)
    if steps is None or not 1 <= steps <= count:
        raise ValueError(
            f"sampler.steps must lie in 1 .. {count}, the steps of the prior, got {steps}"
        )
    if between is None:
        return Levels.spaced(*about, steps)
    first, last = between
    if not MOST >= first > last > 0:
        raise ValueError(
            "sampler.between must be two falling ratios of noise and signal, at most "
            f"{MOST:g} and above 0, got {list(between)}"
        )
    return Levels.spaced(*about, steps + 1, (first, last))


def _check_prior(prior: Any) -> None:
    """Refuse priors that have no copy with further channels, or whose sampler has no inverse."""
    if not (hasattr(prior, "invert") and hasattr(prior.network, "conv_in")):
        raise ValueError(
            f"sampler=transport needs a diffusion prior with a U-Net, got {type(prior).__name__}; "
            "use sampler=default"
        )
    if prior.schedule.name not in SCHEDULERS:
        raise ValueError(
            f"sampler=transport needs prior.scheduler={'|'.join(SCHEDULERS)}, got "
            f"{prior.schedule.name!r}"
        )
