"""Unconditional latent diffusion as a prior: diffusers' `LDMPipeline`, of faces for example."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from outsourced.priors.diffusion import DiffusionPrior, check_unconditional, pair


class UnconditionalLatentPrior(DiffusionPrior):
    """An `LDMPipeline` (Rombach et al., 2022, arXiv 2112.10752) under a deterministic sampler.

    z is the pipeline's initial noise, x its image; for the same noise both agree bit for bit.
    Latents h here are scaled: what the denoising network works on. Where the autoencoder quantises,
    gradients pass its codebook as if it were not there (van den Oord et al., 2017, section 3.2).

    Args:
        path: Hub id (owner/name), or folder that `save_pretrained` wrote.
        scaling_factor: Of the latents. By default the autoencoder's own, for which diffusers takes
            0.18215 where its configuration says nothing, as those of CompVis do, which need 1.
        **sampling: Settings of `DiffusionPrior`.

    Raises:
        FileNotFoundError: No such pipeline on this machine, and no way to download it.
        ValueError: Another kind of pipeline, or a setting out of its range.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("LDMPipeline",)

    def __init__(self, path: str, scaling_factor: float | None = None, **sampling: Any) -> None:
        if scaling_factor is not None and scaling_factor <= 0:
            raise ValueError(f"prior.scaling_factor must be > 0 or null, got {scaling_factor}")
        self._scaling = scaling_factor  # read while the base class builds itself
        super().__init__(path, **sampling)

    def _shapes(self, pipeline: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config, vae = pipeline.unet.config, pipeline.vqvae.config
        check_unconditional(config)
        if config.in_channels != vae.latent_channels:
            raise ValueError(
                f"the denoising network works on {config.in_channels} channels, but the "
                f"autoencoder on {vae.latent_channels}"
            )
        factor = 2 ** (len(vae.block_out_channels) - 1)
        height, width = pair(config.sample_size)
        noise = (config.in_channels, height, width)
        return noise, (vae.out_channels, factor * height, factor * width)

    def _take(self, pipeline: Any) -> None:
        self.network, self.vae = pipeline.unet, pipeline.vqvae
        self._settings = [self.network.config, self.vae.config]

    @property
    def scaling_factor(self) -> float:
        """Of the latents: the autoencoder works on h / scaling_factor."""
        own = self.vae.config.scaling_factor
        return float(own if self._scaling is None else self._scaling)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling_factor={self.scaling_factor}"

    def decode(self, h: Tensor) -> Tensor:
        """Images, (B, C, H, W), not clamped, of scaled latents (B, *noise_shape)."""
        scaled = h.to(self.vae.dtype) / self.scaling_factor
        return self.vae.decode(scaled, return_dict=False)[0].to(h.dtype)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents (B, *noise_shape) of images in [-1, 1], (B, C, H, W).

        Args:
            x: Images.
            generator: Draw from the encoder's distribution with it, by default its mode; that of
                an autoencoder that quantises is a point.
        """
        output = self.vae.encode(x.to(self.vae.dtype))
        if hasattr(output, "latents"):
            h = output.latents
        else:
            gaussian = output.latent_dist
            h = gaussian.mode() if generator is None else gaussian.sample(generator)
        return (h * self.scaling_factor).to(x.dtype)
