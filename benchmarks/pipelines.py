"""Diffusion pipelines with random weights: the classes and sizes of published ones, no download.

    python -m benchmarks.pipelines sd15 FOLDER       # or ldm256: latent diffusion of faces

writes a folder that `prior.path=FOLDER` loads, to try settings, memory and speed before the real
weights are there. `tiny` and `tiny_ldm` stand for the same classes at a size for tests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """Widths of a latent diffusion.

    Attributes:
        unet: channels of the levels of the denoising network.
        layers, groups: of its blocks.
        heads: of their attention; without a prompt, the width of one.
        text: width of the prompt's embedding; 0: there is none.
        vae: channels of the levels of the autoencoder.
        latent: side of the latents.
    """

    unet: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    text: int
    vae: tuple[int, ...]
    latent: int


SIZES = {
    "sd15": Size((320, 640, 1280, 1280), 2, 8, 32, 768, (128, 256, 512, 512), 64),
    "tiny": Size((8, 16), 1, 2, 4, 8, (4, 4, 8, 8), 4),
    "ldm256": Size((224, 448, 672, 896), 2, 32, 32, 0, (128, 256, 512), 64),
    "tiny_ldm": Size((8, 16), 1, 4, 4, 0, (4, 8, 8), 8),
}


@contextmanager
def built_in(dtype: torch.dtype) -> Iterator[None]:
    """Make new weights in a type: full-size networks in float32 would double the peak memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single bytes, since the vocabulary of the real one is a download."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 512 - len(printable))  # what stands for the bytes that cannot be printed
    symbols = [chr(code) for code in (*printable, *others)]
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(width: int) -> Any:
    """Of the full width, but two layers: it is dropped once the prompt is encoded."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
        bos_token_id=512,
        eos_token_id=513,
        projection_dim=width,
    )
    return CLIPTextModel(config)


def stable_diffusion(size: Size) -> dict[str, Any]:
    """The networks and the scheduler of a `StableDiffusionPipeline`."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    count, levels = len(size.unet), len(size.vae)
    unet = UNet2DConditionModel(
        sample_size=size.latent,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet,
        layers_per_block=size.layers,
        cross_attention_dim=size.text,
        attention_head_dim=size.heads,
        norm_num_groups=size.groups,
        down_block_types=(*("CrossAttnDownBlock2D",) * (count - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (count - 1)),
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=size.vae,
        layers_per_block=size.layers,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=size.latent * 2 ** (levels - 1),
        norm_num_groups=size.groups,
        scaling_factor=0.18215,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
    )
    return {"unet": unet, "vae": vae, "scheduler": scheduler}


def latent_diffusion(size: Size) -> dict[str, Any]:
    """The networks and the scheduler of an `LDMPipeline`, as CompVis' of CelebA-HQ has them."""
    from diffusers import DDIMScheduler, UNet2DModel, VQModel

    count, levels = len(size.unet), len(size.vae)
    unet = UNet2DModel(
        sample_size=size.latent,
        in_channels=3,
        out_channels=3,
        block_out_channels=size.unet,
        layers_per_block=size.layers,
        attention_head_dim=size.heads,
        norm_num_groups=size.groups,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * (count - 1)),
        up_block_types=(*("AttnUpBlock2D",) * (count - 1), "UpBlock2D"),
    )
    vqvae = VQModel(
        latent_channels=3,
        block_out_channels=size.vae,
        layers_per_block=size.layers,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=size.latent * 2 ** (levels - 1),
        norm_num_groups=size.groups,
        num_vq_embeddings=8192,
    )
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    )
    return {"unet": unet, "vqvae": vqvae, "scheduler": scheduler}


def _with_prompt(size: Size) -> Any:
    from diffusers import StableDiffusionPipeline

    with tempfile.TemporaryDirectory() as scratch:
        return StableDiffusionPipeline(
            **stable_diffusion(size),
            text_encoder=text_encoder(size.text),
            tokenizer=tokenizer(Path(scratch)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def write_pipeline(
    name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Write a pipeline with random weights; returns its folder.

    Args:
        name: a key of `SIZES`.
        folder: where to, made if missing.
        dtype: of the stored weights.
        seed: of the weights.

    Raises:
        ValueError: an unknown name.
    """
    from diffusers import LDMPipeline

    if name not in SIZES:
        raise ValueError(f"a random pipeline must be one of {', '.join(SIZES)}, got {name!r}")
    torch.manual_seed(seed)
    size = SIZES[name]
    with built_in(dtype):
        pipeline: Any = _with_prompt(size) if size.text else LDMPipeline(**latent_diffusion(size))
    pipeline.save_pretrained(folder)
    return folder


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = argparse.ArgumentParser("python -m benchmarks.pipelines", description=__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("name", help=", ".join(SIZES))
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    args = arguments.parse_args(argv)
    try:
        print(f"written to {write_pipeline(args.name, args.folder, getattr(torch, args.dtype))}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
