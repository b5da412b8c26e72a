"""Pretrained diffusion models of diffusers as priors: f(z) is their deterministic sampler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from outsourced.priors.base import Prior
from outsourced.priors.diffusion_loading import DTYPES, load_pipeline
from outsourced.priors.diffusion_memory import bytes_per_sample
from outsourced.priors.diffusion_schedule import MOST, TOLERANCE, Schedule, check_scheduler


class DiffusionPrior(Prior):
    """A pixel diffusion (`DDPMPipeline`, `DDIMPipeline`) under a deterministic sampler.

    z is the pipeline's initial noise, x its image; for the same noise both agree bit for bit, once
    the pipeline's weights are frozen too (torch takes other CPU kernels where they are not).

    Args:
        path: Hub id (owner/name), local folder, or folder among the embedded weights.
        scheduler: `ddim`, `dpm_solver++`, `euler`, `unipc` or `flow_match_euler`; by default
            DDIM, or Euler steps for rectified flows.
        steps: Network calls of one sample.
        dtype: Type of the weights and of the loop: float32, bfloat16 or float16.
        channels_last: Keep the weights in channels-last order, which many convolutions prefer.
        compile: Compile the network with `torch.compile` on its first call.
        checkpointing: Where a gradient is wanted, keep one state a step and run each network call
            again in the backward pass, rather than keep the activations of all steps.
        memory_gb: Pass batches through f in chunks whose activations fit into this many GiB, one
            sample at least; all at once by default. With gradients it holds under checkpointing
            only, because the activations of all chunks wait for the backward pass without it.
        clamp: Clamp x to [-1, 1], as the pipelines do; the gradient of a clamped pixel is 0.
            Without it, x may leave [-1, 1] a little and every pixel has a gradient.
        load: Further arguments of `from_pretrained`, e.g. `{variant: fp16}`.

    Attributes:
        path: As given; step sizes that were tuned for an embedded model are found by it.
        alphas_cumprod: Cumulative signal variance of the training steps, (T,); None for flows.
        timesteps: Times that the sampler visits, descending, (steps,).

    Raises:
        FileNotFoundError: No such pipeline on this machine, and no way to download it.
        ValueError: Another kind of pipeline, or a setting out of its range.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("DDPMPipeline", "DDIMPipeline")
    alphas_cumprod: Tensor | None

    def __init__(
        self,
        path: str,
        scheduler: str | None = None,
        steps: int = 50,
        dtype: str = "float32",
        channels_last: bool = False,
        compile: bool = False,
        checkpointing: bool = True,
        memory_gb: float | None = None,
        clamp: bool = True,
        load: Mapping[str, Any] | None = None,
    ) -> None:
        check_scheduler(scheduler, steps)
        if dtype not in DTYPES:
            raise ValueError(f"prior.dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if memory_gb is not None and memory_gb <= 0:
            raise ValueError(f"prior.memory_gb must be > 0 or null, got {memory_gb}")
        pipeline = load_pipeline(str(path), self.pipelines, DTYPES[dtype], load)
        schedule = Schedule(pipeline.scheduler, scheduler, steps)
        super().__init__(*self._shapes(pipeline))
        self.schedule, self.path = schedule, str(path)
        self.checkpointing, self.memory_gb, self.clamp = checkpointing, memory_gb, clamp
        self.dtype_name, self._pipeline_name = dtype, type(pipeline).__name__
        self.register_buffer("alphas_cumprod", self._noise_levels())
        self._take(pipeline)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.freeze()
        if compile:
            self.network.compile()
        self._chunks: dict[Any, int] = {}

    def _noise_levels(self) -> Tensor | None:
        return None if self.schedule.flow else self.schedule.begin().alphas_cumprod.clone()

    def _shapes(self, pipeline: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config = pipeline.unet.config
        check_unconditional(config)
        shape = (config.in_channels, *pair(config.sample_size))
        return shape, shape

    def _take(self, pipeline: Any) -> None:
        """Keep those parts of the pipeline that f needs."""
        self.network = pipeline.unet
        self._settings = [pipeline.unet.config]

    @property
    def timesteps(self) -> Tensor:
        return self.schedule.timesteps

    @property
    def calls(self) -> int:
        """Evaluations of the network for one x, a guided pair counted once."""
        return self.schedule.steps

    @property
    def shift(self) -> float:
        """Shift of the times of a rectified flow, s -> shift s / (1 + (shift - 1) s)."""
        return self.schedule.shift

    @property
    def dtype(self) -> torch.dtype:
        """Type of the network's weights."""
        return next(self.network.parameters()).dtype

    def extra_repr(self) -> str:
        """Every setting that changes f; configurations by a digest of what they say."""
        configs = [_explicit(config) for config in (self.schedule.config, *self._settings)]
        digest = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
        return (
            f"{self._pipeline_name}, scheduler={self.schedule.name}, steps={self.schedule.steps}, "
            f"dtype={self.dtype_name}, clamp={self.clamp}, configs={digest.hexdigest()[:16]}"
        )

    def forward(self, z: Tensor) -> Tensor:
        """Run the sampler: noise (B, *noise_shape) -> images (B, C, H, W), in the dtype of z.

        Raises:
            ValueError: z of another shape.
        """
        if tuple(z.shape[1:]) != self.noise_shape:
            raise ValueError(f"z must be (B, *{self.noise_shape}), got {tuple(z.shape)}")
        if not len(z):
            return z.new_empty((0, *self.data_shape))
        grad = torch.is_grad_enabled() and z.requires_grad
        pieces = z.split(self.chunk_size(z.device, grad) if self.memory_gb else len(z))
        return torch.cat([self._sample(piece, grad) for piece in pieces])

    def _sample(self, z: Tensor, grad: bool) -> Tensor:
        def again(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(*args: Tensor) -> Tensor:
                return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

            return call if grad and self.checkpointing else function

        x = self.schedule.integrate(again(self._predict), z.to(self.dtype))
        return self._finish(again(self.decode)(x)).to(z.dtype)

    def _finish(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1) if self.clamp else x

    def denoise(self, z: Tensor) -> Tensor:
        """What the sampler carries noise (B, *noise_shape) to before it is decoded: pixels or
        scaled latents, of the same shape, in the dtype of z."""
        return self._in_chunks(lambda part: self.schedule.integrate(self._predict, part), z)

    def invert(
        self, h: Tensor, tolerance: float = TOLERANCE, most: int = MOST
    ) -> tuple[Tensor, float]:
        """Noise that `denoise` carries to pixels or scaled latents h (B, *noise_shape), nearly.

        Args:
            h: As `denoise` returns it.
            tolerance, most: See `Schedule.invert`; the former is at least four roundings of the
                network's type.

        Returns:
            The noise, of the shape of h, and the network calls that all of it took, in units of
            those of one f(z).

        Raises:
            ValueError: The scheduler is of several steps, or arguments are out of range.
        """
        seen = 0

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return self._predict(x, timestep)

        tolerance = max(tolerance, 4 * torch.finfo(self.dtype).eps)
        z = self.schedule.invert(predict, h.to(self.dtype), tolerance, most)
        return z.to(h.dtype), seen / self.calls

    def apply_network(self, network: Any, x: Tensor, timestep: Tensor) -> Tensor:
        """Output of another network of the same kind at (B, ...) and a timestep () or (B,), under
        the same prompt, without guidance."""
        return network(x, timestep, return_dict=False)[0]

    def _predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Output of the network at (B, ...) and a timestep () or (B,), with guidance if any."""
        return self.network(x, timestep, return_dict=False)[0]

    def decode(self, h: Tensor) -> Tensor:
        """Images, (B, C, H, W), not clamped, of what is denoised: here the pixels themselves."""
        return h

    def image(self, h: Tensor) -> Tensor:
        """x = f(z) of h = denoise(z), (B, C, H, W), in the dtype of h."""
        return self._in_chunks(lambda part: self._finish(self.decode(part)), h)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """A function of a batch, in the network's dtype, in chunks that fit into `memory_gb`."""
        grad = torch.is_grad_enabled() and value.requires_grad
        size = self.chunk_size(value.device, grad) if self.memory_gb else max(len(value), 1)
        parts = [function(part.to(self.dtype)) for part in value.split(size)]
        return torch.cat(parts).to(value.dtype)

    def chunk_size(self, device: torch.device, grad: bool) -> int:
        """Samples whose activations fit into `memory_gb`, 1 at least."""
        key = (device, self.dtype, grad)
        if key not in self._chunks:
            like = torch.empty((1, *self.noise_shape), dtype=self.dtype, device=device)
            time = self.timesteps[0].to(device)
            step = bytes_per_sample(lambda x: self._predict(x, time), like, grad)
            last = bytes_per_sample(self.decode, like, grad)
            kept = grad and not self.checkpointing
            cost = self.schedule.steps * step + last if kept else max(step, last)
            self._chunks[key] = max(1, int((self.memory_gb or 0) * 2**30 // cost))
        return self._chunks[key]

    def predict_noise(self, z_t: Tensor, timestep: int | Tensor) -> Tensor:
        """The model's estimate of ε in z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε, with guidance if any.

        Args:
            z_t: Noisy pixels or scaled latents, (B, *noise_shape).
            timestep: Training step t, an integer or integers (B,).

        Raises:
            ValueError: The model is a rectified flow.
        """
        if self.alphas_cumprod is None:
            raise ValueError("this prior is a rectified flow; use predict_velocity")
        time = torch.as_tensor(timestep, device=z_t.device).long()
        output = self._predict(z_t.to(self.dtype), time).to(z_t.dtype)
        alpha = self.alphas_cumprod.to(z_t)[time].reshape(-1, *[1] * (z_t.ndim - 1))
        if self.schedule.prediction_type == "v_prediction":  # Salimans & Ho 2022, 2202.00512
            return alpha.sqrt() * output + (1 - alpha).sqrt() * z_t
        if self.schedule.prediction_type == "sample":
            return (z_t - alpha.sqrt() * output) / (1 - alpha).sqrt()
        return output

    def predict_velocity(self, z_t: Tensor, timestep: float | Tensor) -> Tensor:
        """The model's estimate of ε - z_0 in z_t = (1 - s) z_0 + s ε, with guidance if any.

        Args:
            z_t: Noisy pixels or scaled latents, (B, *noise_shape).
            timestep: s times the number of training steps (1000), a number or numbers (B,).

        Raises:
            ValueError: The model is no rectified flow.
        """
        if not self.schedule.flow:
            raise ValueError("this prior is no rectified flow; use predict_noise")
        time = torch.as_tensor(timestep, device=z_t.device, dtype=torch.float32)
        return self._predict(z_t.to(self.dtype), time).to(z_t.dtype)


def check_network(config: Any) -> None:
    """Refuse networks whose input or output is more than the noisy sample."""
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"prior.path holds a network of {config.in_channels} channels in and "
            f"{config.out_channels} out (an inpainting model or one with learned variances); "
            "expected equal numbers"
        )
    if config.get("time_cond_proj_dim"):
        raise ValueError("prior.path holds a guidance-distilled model, which is not supported")


def check_unconditional(config: Any) -> None:
    """Refuse networks that want more than a noisy sample and its time."""
    check_network(config)
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise ValueError("prior.path holds a class-conditional model, which needs a label")


def pair(size: int | Sequence[int] | None) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    if size is None:
        raise ValueError("the network's config.json has no sample_size; write the size there")
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _explicit(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration file says: no file names, nor defaults that a new diffusers adds."""
    default = config.get("_use_default_values", ())
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in default}
