"""Text-conditional latent diffusion as a prior: Stable Diffusion 1.x, 2.x and 3.x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from outsourced.priors.diffusion import DiffusionPrior, check_network, pair
from outsourced.priors.diffusion_loading import load_tiny_autoencoder


class LatentDiffusionPrior(DiffusionPrior):
    """Stable Diffusion under a fixed prompt, with a deterministic sampler.

    z is what the pipeline calls `latents`, x its image; for the same latents both agree bit for
    bit. Latents h here are scaled: what the denoising network works on, near unit variance. The
    prompt is encoded at construction, and the text encoders are dropped.

    Args:
        path: Hub id (owner/name), local folder, folder among the embedded weights, or single-file
            checkpoint (.safetensors, .ckpt; see `load`).
        prompt: What images should show.
        negative_prompt: What guidance leads away from.
        guidance: Weight w of classifier-free guidance, negative + w (prompt - negative) (Ho &
            Salimans, 2022, arXiv 2207.12598). At 1, or where both prompts are the same, the
            network sees each sample once, else twice; at 0 it sees the negative prompt only.
            The pipelines take weights below 1 for 1.
        image_size: Pixels, one number or (height, width); the model's own by default.
        vae_slicing: Decode one image at a time: less memory.
        vae_tiling: Decode large images by overlapping tiles: less memory, other seams.
        tiny_autoencoder: Hub id or folder of an `AutoencoderTiny` that replaces the VAE.
        **sampling: Settings of `DiffusionPrior`. `load` may leave out a text encoder
            (`{text_encoder_3: null, tokenizer_3: null}`) and name the folder with the
            configuration of a single-file checkpoint (`{config: FOLDER}`).

    Raises:
        FileNotFoundError: No such pipeline on this machine, and no way to download it.
        ValueError: Another kind of pipeline, or a setting out of its range.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusion3Pipeline")
    embeddings: Tensor
    pooled: Tensor | None

    def __init__(
        self,
        path: str,
        prompt: str = "",
        negative_prompt: str = "",
        guidance: float = 7.5,
        image_size: int | Sequence[int] | None = None,
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        tiny_autoencoder: str | None = None,
        **sampling: Any,
    ) -> None:
        if guidance < 0:
            raise ValueError(f"prior.guidance must be >= 0, got {guidance}")
        if image_size is not None and min(pair(image_size)) < 1:
            raise ValueError(f"prior.image_size must be >= 1, got {image_size}")
        # Plain values, which `_shapes` and `_take` read while the base class builds itself.
        self.prompt, self.negative_prompt, self.guidance = prompt, negative_prompt, float(guidance)
        self._image_size, self._tiny = image_size, tiny_autoencoder
        self.vae_slicing, self.vae_tiling = vae_slicing, vae_tiling
        super().__init__(path, **sampling)

    def _shapes(self, pipeline: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        network = self._network(pipeline)
        check_network(network.config)
        if self._tiny is not None:
            pipeline.vae = load_tiny_autoencoder(self._tiny, network.dtype)
        vae = pipeline.vae.config
        self.factor = 2 ** (len(vae.block_out_channels) - 1)
        multiple = self.factor * network.config.get("patch_size", 1)
        height, width = self._pixels(network.config)
        if height % multiple or width % multiple:
            raise ValueError(
                f"prior.image_size must be divisible by {multiple}, got {(height, width)}"
            )
        noise = (network.config.in_channels, height // self.factor, width // self.factor)
        if noise[0] != vae.latent_channels:
            raise ValueError(
                f"the denoising network works on {noise[0]} channels, but the autoencoder on "
                f"{vae.latent_channels}"
            )
        return noise, (vae.out_channels, height, width)

    def _pixels(self, config: Any) -> tuple[int, int]:
        if self._image_size is not None:
            return pair(self._image_size)
        height, width = pair(config.sample_size)
        return height * self.factor, width * self.factor

    def _network(self, pipeline: Any) -> Any:
        return pipeline.transformer if self._is_transformer(pipeline) else pipeline.unet

    @staticmethod
    def _is_transformer(pipeline: Any) -> bool:
        return hasattr(pipeline, "transformer")

    def _take(self, pipeline: Any) -> None:
        self.network, self.vae = self._network(pipeline), pipeline.vae
        self._joint = self._is_transformer(pipeline)
        self._settings = [self.network.config, self.vae.config]
        if self.vae_slicing:
            self.vae.enable_slicing()
        if self.vae_tiling:
            self.vae.enable_tiling()
        embeddings, pooled = self._encode_prompts(pipeline)
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("pooled", pooled)

    @torch.no_grad()
    def _encode_prompts(self, pipeline: Any) -> tuple[Tensor, Tensor | None]:
        """Conditions (1 or 2, L, D) of the network and their pooled vectors (1 or 2, D')."""
        prompts = [self.negative_prompt, self.prompt]
        if self.guidance == 1 or self.prompt == self.negative_prompt:
            prompts = [self.prompt]
        elif self.guidance == 0:
            prompts = [self.negative_prompt]
        names = ["prompt", "prompt_2", "prompt_3"] if self._joint else ["prompt"]
        encoded = [
            pipeline.encode_prompt(
                **dict.fromkeys(names, text),
                device=torch.device("cpu"),
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            for text in prompts
        ]
        embeddings = torch.cat([one[0] for one in encoded])
        return embeddings, torch.cat([one[2] for one in encoded]) if self._joint else None

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, prompt={self.prompt!r}, "
            f"negative_prompt={self.negative_prompt!r}, guidance={self.guidance}, "
            f"vae_tiling={self.vae_tiling}"
        )

    def _predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        count = len(self.embeddings)
        time = timestep.expand(len(x)).repeat(count) if timestep.ndim or self._joint else timestep
        output = self._call(torch.cat([x] * count), time)
        if count == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + self.guidance * (positive - negative)

    def _call(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self._conditioned(self.network, x, timestep, slice(None))

    def apply_network(self, network: Any, x: Tensor, timestep: Tensor) -> Tensor:
        """See the base class; the prompt is the positive one."""
        return self._conditioned(network, x, timestep, slice(-1, None))

    def _conditioned(self, network: Any, x: Tensor, timestep: Tensor, prompts: slice) -> Tensor:
        """Output of a network at a batch that holds as many samples of each of the prompts."""
        embeddings = self.embeddings[prompts].to(x.dtype)
        each = len(x) // len(embeddings)
        condition = {"encoder_hidden_states": embeddings.repeat_interleave(each, dim=0)}
        if self.pooled is not None:
            pooled = self.pooled[prompts].to(x.dtype)
            condition["pooled_projections"] = pooled.repeat_interleave(each, dim=0)
        return network(x, timestep=timestep, return_dict=False, **condition)[0]

    def decode(self, h: Tensor) -> Tensor:
        """Images, (B, C, H, W), not clamped, of scaled latents (B, *noise_shape)."""
        scaled = h.to(self.vae.dtype) / self.vae.config.scaling_factor
        if shift := self.vae.config.get("shift_factor"):
            scaled = scaled + shift
        return self.vae.decode(scaled, return_dict=False)[0].to(h.dtype)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents (B, *noise_shape) of images in [-1, 1], (B, C, H, W).

        Args:
            x: Images.
            generator: Draw from the encoder's Gaussian with it; its mode by default.

        Raises:
            ValueError: A generator is given, but the encoder (a tiny one) has no Gaussian.
        """
        output = self.vae.encode(x.to(self.vae.dtype))
        if hasattr(output, "latent_dist"):
            gaussian = output.latent_dist
            h = gaussian.mode() if generator is None else gaussian.sample(generator)
        elif generator is None:
            h = output.latents
        else:
            raise ValueError("a tiny autoencoder is deterministic; encode without a generator")
        h = (h - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor
        return h.to(x.dtype)
