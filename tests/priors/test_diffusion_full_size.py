"""Stable Diffusion 1.5 and 3 medium in full size, with random weights: they fit and run."""

import resource
import time

import pytest
import torch

from benchmarks.pipelines import SIZES, stable_diffusion
from outsourced.priors import LatentDiffusionPrior, diffusion

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def bfloat16():
    """Build the networks in the type that they run in: float32 would double the peak memory."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def clip(width: int, heads: int, projection: int | None):
    """A CLIP text encoder of the full width; two layers, because it is dropped after use."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads,
        num_hidden_layers=2, bos_token_id=512, eos_token_id=513, projection_dim=projection or 768,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def autoencoder(channels: int, **changes):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512, norm_num_groups=32, **changes,
    )  # fmt: skip


def stable_diffusion_15(tokenizer):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        **stable_diffusion(SIZES["sd15"]), text_encoder=clip(768, 12, None), tokenizer=tokenizer,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_3(tokenizer):
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24,
        attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip
    vae = autoencoder(
        16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=clip(768, 12, 768), tokenizer=tokenizer,
        text_encoder_2=clip(1280, 20, 1280), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


FULL = {
    "sd15": (stable_diffusion_15, 859_520_964, (4, 16, 16), 8),
    "sd3": (stable_diffusion_3, 2_028_328_000, (16, 16, 16), 12),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name, clip_tokenizer, monkeypatch, capsys):
    """Two guided steps at 128 pixels equal the pipeline; a gradient reaches z; GiB and seconds.

    Mutant: weights or activations in float32 (twice the memory), a network of another size, a
    gradient that keeps all steps.
    """
    build, parameters, noise_shape, limit = FULL[name]
    pipe = build(clip_tokenizer)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(diffusion, "load_pipeline", lambda *args: pipe)
    settings = {"guidance": 3.0, "steps": 2, "image_size": 128, "dtype": "bfloat16"}
    model = LatentDiffusionPrior(name, prompt="a bag", **settings)
    assert sum(p.numel() for p in model.network.parameters()) == pytest.approx(parameters, rel=2e-2)
    assert model.noise_shape == noise_shape
    assert model.data_shape == (3, 128, 128)
    z = torch.randn(1, *noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float)

    start = time.perf_counter()
    with torch.no_grad():
        x = model(z)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(model(z).sum(), z)
    backward = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{name}: f(z) {seconds:.1f} s, with gradient {backward:.1f} s, {peak:.1f} GiB")
    assert peak < limit
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0

    # The networks are the prior's own, hence frozen.
    pipe.scheduler = type(model.schedule.begin()).from_config(pipe.scheduler.config)
    images = pipe(
        prompt="a bag", latents=z.detach().bfloat16(), guidance_scale=3.0, height=128, width=128,
        num_inference_steps=2, output_type="pt",
    ).images  # fmt: skip
    assert torch.equal(x.bfloat16() * 0.5 + 0.5, images)
