"""What a posterior says about the latents of a diffusion prior, h = denoise(z), x = decode(h)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from outsourced.linearised import Linearised
from outsourced.priors.base import Prior
from outsourced.tasks.base import Observation, Task
from outsourced.tasks.linear_estimate import DataGaussian, linear_estimate
from outsourced.tasks.measurement import Measurement
from outsourced.tasks.ridge import ridge_estimate

CACHED = 32  # rows: of many, what autograd keeps of a decoder leaves the cache of a CPU


class LatentView(ABC):
    """Part of `Posterior`; everything here passes by f, through the autoencoder alone."""

    prior: Prior
    task: Task
    beta: float
    prior_calls: int
    chunk: int

    @abstractmethod
    def _pieces(self, count: int) -> Iterator[slice]: ...

    @abstractmethod
    def _signal(self, x: Tensor, obs: Observation, about: Tensor) -> Tensor: ...

    @abstractmethod
    def _require_residual(self, what: str) -> None: ...

    def denoise(self, z: Tensor) -> Tensor:
        """Latents of a diffusion prior for noise z, in chunks: (B, *noise_shape) both."""
        make: Any = self.prior.denoise
        self.prior_calls += len(z)
        return torch.cat([make(z[piece]) for piece in self._pieces(len(z))])

    def decode_latents(self, h: Tensor) -> Tensor:
        """x of latents h (B, *noise_shape) of a diffusion prior, in chunks: (B, *data_shape)."""
        image: Any = self.prior.image
        return torch.cat([image(h[piece]) for piece in self._pieces(len(h))])

    @torch.no_grad()
    def linearise_latents(self, h: Tensor, obs: Observation) -> Linearised:
        """Whitened residuals near latents h (B, *noise_shape) of a diffusion prior, times
        sqrt(beta), through its decoder alone.

        Raises:
            ValueError: Black-box prior or task, or a task without residual.
        """
        self._require_residual("a fit of latents")
        decode: Any = self.prior.decode
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            image = decode(leaf)
            signal = self._signal(image, obs, image.detach())
        x, start = image.detach(), signal.detach()
        # A difference whose entries are the root of what the decoder rounds by.
        rounding = torch.finfo(getattr(self.prior, "dtype", h.dtype)).eps
        reach = max(0.01, math.sqrt(rounding * h[0].numel()))

        def push(d: Tensor) -> Tensor:
            length = d.flatten(1).norm(dim=1).clamp_min(1e-30) / reach
            moved = decode(h + d / length.reshape(-1, *[1] * (d.ndim - 1)))
            return (self._signal(moved, obs, x) - start) * length[:, None]

        def pull(u: Tensor) -> Tensor:
            return torch.autograd.grad(signal, leaf, u, retain_graph=True)[0]

        task: Any = self.task
        residual = math.sqrt(self.beta) * task.whitened_residual(x, obs)
        return Linearised(residual, push, pull)

    def fitted_rows(self, device: torch.device) -> int:
        """Rows that are linearised at once: those that fit into `prior.memory_gb`, and few where a
        CPU is the faster for it."""
        prior: Any = self.prior
        most = min(self.chunk, CACHED) if device.type == "cpu" else self.chunk
        if getattr(prior, "memory_gb", None):
            most = min(most, prior.chunk_size(device, grad=True))
        return most

    @property
    def estimates_latents(self) -> bool:
        """Whether there is a `latent_estimate`: y has an estimate of x without a prior."""
        task = self.task
        if not (hasattr(self.prior, "decode") and isinstance(task, Measurement)):
            return False
        return task.linear or task.measurement_shape == self.prior.data_shape

    def latent_estimate(self, obs: Observation, about: DataGaussian | None = None) -> Tensor | None:
        """Latents (B, *noise_shape) of a diffusion prior for what a linear solver makes of y.

        That is the best linear estimate of x under a Gaussian, or the ridge estimate; y itself of
        measurements that are not linear; None where there is no such thing.

        Args:
            obs: B observations.
            about: The Gaussian of x.
        """
        if not self.estimates_latents:
            return None
        task = self.task
        if not task.linear:
            view = obs.y
        elif about is None:
            view = ridge_estimate(task, obs)  # type: ignore[arg-type]
        else:
            view = linear_estimate(task, obs, about)  # type: ignore[arg-type]
        return self.encode_images(view.clamp(-1, 1))

    @torch.no_grad()
    def encode_images(self, x: Tensor) -> Tensor:
        """Latents (B, *noise_shape) of images (B, *data_shape); a diffusion of pixels has them for
        latents."""
        encode: Any = getattr(self.prior, "encode", None)
        if encode is None:
            return x
        return torch.cat([encode(x[piece]) for piece in self._pieces(len(x))])
