"""The loop over timesteps that all per-instance diffusion samplers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from outsourced.metrics.image import residual
from outsourced.posterior import PRECISIONS, Posterior
from outsourced.solvers.base import Samples, check_request, clock, tile
from outsourced.solvers.moment import Moment, norms
from outsourced.solvers.prerequisites import check_counts, check_problem, check_steps
from outsourced.solvers.schedule import Level, ancestral_variance, is_flow, levels
from outsourced.tasks.base import Observation
from outsourced.tasks.measurement import Measurement

Preview = Callable[[int, Tensor], None]
Loss = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor], Tensor]


class Diverged(ValueError):
    """The state of a sampler is not finite any more."""


class DiffusionSampler:
    """Carries noise to posterior samples along a diffusion or flow prior; subclasses make a step.

    The prior needs `predict_noise` (or `predict_velocity`, a flow), `decode`, and for most methods
    `encode`. Samples come one by one: nothing is computed over a batch. At most posterior.chunk of
    them are in memory at once; where steps draw noise, another chunk gives other samples.

    Args:
        posterior: prior and task.
        steps: timesteps that are visited.
        strict: end the run where a sample is not finite any more; else carry it on as NaN, and the
            others as if it were not there.
        checkpointing: keep no activations of network, decoder and encoder for the backward pass,
            but compute them again: less memory, a third more time.
        preview: called as preview(step, estimate of x_0 (R, *data_shape)) with the R samples that
            are in memory, at every `preview_every`-th step and after the last.
        preview_every: steps between two previews.

    Step sizes are numbers; set as attributes they may also be tensors (R,), one for each row of
    `solve`, as a search over many at once does.

    Attributes:
        network_calls: evaluations of the network so far, one for each sample and call.

    Raises:
        ValueError: a prior or a task that the method cannot work with, or numbers out of range.
    """

    name: ClassVar[str]
    latent: ClassVar[bool | None] = True  # works on latents, on pixels, or (None) on both
    flow: ClassVar[bool | None] = None  # works on flows, on diffusions, or (None) on both
    linear: ClassVar[bool] = False  # needs a linear operator
    tempered: ClassVar[bool] = False  # knows what to do with posterior.beta
    eta = 0.0  # of `advance`; methods that offer a choice set it

    def __init__(
        self,
        posterior: Posterior,
        steps: int,
        strict: bool = True,
        checkpointing: bool = False,
        preview: Preview | None = None,
        preview_every: int = 50,
    ) -> None:
        check_problem(type(self), posterior)
        check_steps(posterior.prior, steps)
        check_counts(preview_every=preview_every)
        self.posterior, self.steps = posterior, steps
        self.strict, self.checkpointing = strict, checkpointing
        self.preview, self.preview_every = preview, preview_every
        self.network_calls = 0

    @property
    def prior(self) -> Any:
        """The posterior's prior, known to be a diffusion or a flow."""
        return self.posterior.prior

    @property
    def task(self) -> Measurement:
        """The posterior's task, known to be a measurement."""
        task: Any = self.posterior.task
        return task

    def step(self, z: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """From one noise level to the next, for R samples at once.

        Args:
            z: state, (R, *noise_shape).
            at: the levels, the observations and the source of randomness.

        Returns:
            the next state, and the estimate of x_0 behind it (R, *data_shape).
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Draw n samples for each of the B observations.

        Args:
            obs: B observations.
            n: samples for each.
            generator: source of randomness.
            progress: show a progress bar with the residual in units of sigma.

        Returns:
            samples whose z is the noise they started from, so f(z) is another image; prior_calls
            is network calls in units of one f(z), rounded up; the diagnostic `network_calls` (B,)
            is what the n samples of each observation took. Backward passes do not count.

        Raises:
            ValueError: when n < 1 or the observations do not fit the task.
            Diverged: a sample is not finite any more, and `strict`.
        """
        check_request(obs, n)
        self.task.check(obs)
        begin, calls = clock(obs.y.device), self.network_calls
        generator = generator or _fresh(obs.y.device)
        z = self.posterior.draw_noise(n * len(obs), generator)
        x = self.solve(z, tile(obs, n), generator, progress)
        calls = self.network_calls - calls
        each = torch.full((len(obs),), calls / len(obs), device=obs.y.device)
        shape = (n, len(obs))
        return Samples(
            x.unflatten(0, shape),
            z.unflatten(0, shape),
            log_weight=None,
            prior_calls=math.ceil(calls / self.prior.calls),
            seconds=clock(obs.y.device) - begin,
            diagnostics={"network_calls": each},
        )

    @torch.no_grad()
    def solve(
        self,
        z: Tensor,
        obs: Observation,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Carry given noise (R, *noise_shape) to samples (R, *data_shape) of R observations.

        Raises:
            Diverged: a sample is not finite any more, and `strict`.
        """
        rows = range(0, len(z), self.posterior.chunk)
        with tqdm(total=len(rows) * self.steps, disable=not progress, desc=self.name) as bar:
            pieces = [slice(first, first + self.posterior.chunk) for first in rows]
            return torch.cat([self._carry(z[rows], obs[rows], generator, bar) for rows in pieces])

    def _carry(
        self, z: Tensor, obs: Observation, generator: torch.Generator | None, bar: Any
    ) -> Tensor:
        grid = levels(self.prior, self.steps)
        for now, after in pairwise(grid):
            z, image = self.step(z, Moment(now, after, obs, generator))
            if self.strict:
                self._check(z, now)
            if self.preview is not None and now.index % self.preview_every == 0:
                self.preview(now.index, image)
            if not bar.disable:
                bar.set_postfix(residual=f"{self.residual(image, obs).mean():.3f}", refresh=False)
            bar.update()
        x = self.decode(z)
        x = x.clamp(-1, 1) if getattr(self.prior, "clamp", False) else x
        if self.preview is not None:
            self.preview(self.steps, x)
        return x

    def _check(self, z: Tensor, now: Level) -> None:
        broken = len(z) - int(z.isfinite().flatten(1).all(1).sum())
        if broken:
            raise Diverged(
                f"solver {self.name} diverged at step {now.index + 1} of {self.steps}, in "
                f"{broken} of {len(z)} samples; lower its step sizes"
            )

    def residual(self, x: Tensor, obs: Observation) -> Tensor:
        """Root-mean-square residual of images in units of sigma, (R,)."""
        return residual(self.task.whitened_residual(x, obs), self.task.count(obs))

    def distance(self, x: Tensor, obs: Observation, noise: Tensor | None = None) -> Tensor:
        """‖y - A x‖ over the observed entries, in the units of y, (R,).

        Args:
            x: images, (R, *data_shape).
            obs: R observations.
            noise: drawn noise in units of sigma to add to A x, (R, *measurement_shape).
        """
        whitened = self.task.whitened_residual(x, obs)
        if noise is not None:
            seen = self.task.observed(obs.y, obs.params)
            whitened = whitened - torch.where(seen, noise, 0.0).flatten(1)
        return norms(whitened * obs.sigma[:, None])

    def estimate(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """What the network says of z: its clean part and its noise, both (R, *noise_shape)."""
        self.network_calls += len(z)
        if is_flow(self.prior):
            velocity = self._apply(lambda z: self.prior.predict_velocity(z, level.timestep), z)
            return z - level.noise * velocity, z + level.signal * velocity
        noise = self._apply(lambda z: self.prior.predict_noise(z, int(level.timestep)), z)
        return (z - level.noise * noise) / level.signal, noise

    def advance(self, clean: Tensor, noise: Tensor, at: Moment) -> Tensor:
        """The unguided next state of a clean part and a noise: DDIM at eta = 0, DDPM at eta = 1.

        Song, Meng & Ermon, 2021, arXiv 2010.02502, eq. 12 and 16.
        """
        variance = self.eta**2 * ancestral_variance(at.now, at.after)
        kept = math.sqrt(max(at.after.noise**2 - variance, 0.0))
        z = at.after.signal * clean + kept * noise
        return z + math.sqrt(variance) * at.normal(z) if variance > 0 else z

    def guide(self, z: Tensor, at: Moment, loss: Loss) -> tuple[Tensor, Tensor]:
        """The unguided next state minus the gradient in z of a loss, and the estimate of x_0.

        Args:
            z: state, (R, *noise_shape).
            at: the levels and the source of randomness.
            loss: of the clean estimate and its image, one number per sample, (R,).
        """
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            clean, noise = self.estimate(leaf, at.now)
            image = self.decode(clean)
            (gradient,) = torch.autograd.grad(loss(clean, image).sum(), leaf)
        moved = self.advance(clean.detach(), noise.detach(), at)
        return moved - gradient, image.detach()

    def decode(self, h: Tensor) -> Tensor:
        """Images, not clamped, of clean states."""
        return self._apply(self.prior.decode, h)

    def encode(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Clean states of images: the encoder's mode, or a draw where a seed is given."""

        def call(x: Tensor) -> Tensor:
            # From a seed, since a checkpointed call must draw the same again.
            draw = None if seed is None else torch.Generator(x.device).manual_seed(seed)
            return self.prior.encode(x, draw)

        return self._apply(call, x)

    def _apply(self, function: Network, value: Tensor) -> Tensor:
        """A network in the posterior's precision, checkpointed where that is asked for."""

        def call(value: Tensor) -> Tensor:
            name = self.posterior.precision
            lower = name != "float32"
            kind = torch.autocast(value.device.type, PRECISIONS[name]) if lower else nullcontext()
            with kind:
                return function(value).to(value.dtype)

        if self.checkpointing and torch.is_grad_enabled() and value.requires_grad:
            return checkpoint(call, value, use_reentrant=False, preserve_rng_state=False)
        return call(value)


def _fresh(device: torch.device) -> torch.Generator:
    """A generator seeded by torch's own, for calls that give none."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
