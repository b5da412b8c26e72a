"""Tiny diffusers pipelines of the exact classes of the large ones, on disk, with random weights."""

import json
from pathlib import Path

import pytest
import torch

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
STABLE_DIFFUSION = {**NOISE, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tokenizer(folder: Path):
    """A CLIP tokenizer without merges: 256 bytes, with and without an end of word."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(other))]
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(projection: int | None = None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=8, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=2, max_position_embeddings=77, bos_token_id=512, eos_token_id=513,
        projection_dim=projection or 8,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def autoencoder(**changes):
    """f = 4, one channel: nothing may assume f = 8 or colours."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, norm_num_groups=2, sample_size=32, **changes,
    )  # fmt: skip
    with torch.no_grad():  # images that fill [-1, 1] and leave it
        vae.decoder.conv_out.weight.mul_(4)
    return vae.eval()


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def ddpm_folder(tmp_path_factory) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("ddpm")
    # clip_sample would flatten the gradient that a test compares with differences
    DDPMPipeline(unet, DDPMScheduler(beta_end=0.004, clip_sample=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sd")
    StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.7), text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tokenizer"), unet=unet,
        scheduler=PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory) -> Path:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=4, num_attention_heads=2, caption_projection_dim=8,
        joint_attention_dim=16, pooled_projection_dim=12, pos_embed_max_size=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sd3")
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=text_encoder(6), tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder_2=text_encoder(6), tokenizer_2=tokenizer(folder / "tokenizer_2"),
        text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder
