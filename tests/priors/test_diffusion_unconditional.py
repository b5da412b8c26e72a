"""Unconditional latent diffusion: f equals the pipeline, with both kinds of autoencoder."""

import json
import shutil

import pytest
import torch

from outsourced.priors import DiffusionPrior, UnconditionalLatentPrior


@pytest.fixture(scope="module", params=["quantised", "gaussian"])
def ldm_folder(request, tmp_path_factory):
    """An `LDMPipeline` with the parts of ldm-celebahq-256, or with an `AutoencoderKL`, tiny."""
    from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=4, in_channels=3, out_channels=3, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    shared = {
        "in_channels": 3, "out_channels": 3, "latent_channels": 3, "layers_per_block": 1,
        "block_out_channels": (4, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 2,
    }  # fmt: skip
    if request.param == "quantised":
        vae = VQModel(**shared, num_vq_embeddings=16)
        with torch.no_grad():  # codes that latents fall on differently
            vae.quantize.embedding.weight.normal_()
    else:
        vae = AutoencoderKL(**shared, scaling_factor=0.6)
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    folder = tmp_path_factory.mktemp(request.param)
    LDMPipeline(vqvae=vae.eval(), unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def images(folder, z, scaling: float | None) -> torch.Tensor:
    """What the pipeline makes of its initial noise, on [0, 1]."""
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.deprecated.latent_diffusion_uncond import (
        pipeline_latent_diffusion_uncond as module,
    )

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vqvae):  # torch takes other kernels where weights want gradients
        part.requires_grad_(False)
    if scaling is not None:
        pipe.vqvae.register_to_config(scaling_factor=scaling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *args, **_: z.clone())
        found = pipe(batch_size=len(z), num_inference_steps=3, output_type="np").images
    return torch.from_numpy(found).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scaling", [None, 1.0])
def test_equals_the_pipeline_bit_for_bit(ldm_folder, scaling):
    """Mutant: latents that are not rescaled, or always by 0.18215; codes left out; a wrong
    scheduler; images clamped before they are shifted."""
    model = UnconditionalLatentPrior(str(ldm_folder), scaling_factor=scaling, steps=3)
    assert (model.noise_shape, model.data_shape) == ((3, 4, 4), (3, 8, 8))
    z = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = images(ldm_folder, z, scaling)
    with torch.no_grad():
        assert torch.equal((model(z) / 2 + 0.5).clamp(0, 1), expected)
    other = UnconditionalLatentPrior(str(ldm_folder), scaling_factor=3.0, steps=3)
    with torch.no_grad():
        assert not torch.equal((other(z) / 2 + 0.5).clamp(0, 1), expected)
    assert other.fingerprint() != model.fingerprint()


def test_latents_and_gradients(ldm_folder):
    """What the per-instance samplers ask for: an encoder in scaled latents, gradients to z.

    Mutant: an encoder that forgets the scale, a codebook that stops the gradient.
    """
    model = UnconditionalLatentPrior(str(ldm_folder), scaling_factor=0.5, steps=2, clamp=False)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    h = model.encode(x)
    plain = model.vae.encode(x)
    raw = plain.latents if hasattr(plain, "latents") else plain.latent_dist.mode()
    torch.testing.assert_close(h, 0.5 * raw)
    again = model.encode(x, torch.Generator().manual_seed(0))
    assert torch.equal(again, h) == hasattr(plain, "latents")
    torch.testing.assert_close(model.decode(h), model.vae.decode(raw).sample)
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(model(z).square().sum(), z)
    assert gradient.flatten(1).norm(dim=1).min() > 1e-4
    assert model.predict_noise(z, 500).shape == z.shape


def test_mistakes(ldm_folder, sd_folder, ddpm_folder, tmp_path):
    """Mutant: a pipeline of pixels or prompts that is taken for latents."""
    with pytest.raises(ValueError, match="UnconditionalLatentPrior for LDMPipeline"):
        DiffusionPrior(str(ldm_folder))
    for folder, name in ((sd_folder, "StableDiffusionPipeline"), (ddpm_folder, "DDPMPipeline")):
        with pytest.raises(ValueError, match=f"holds a {name}, expected LDMPipeline"):
            UnconditionalLatentPrior(str(folder))
    with pytest.raises(ValueError, match=r"prior.scaling_factor must be > 0 or null, got 0"):
        UnconditionalLatentPrior(str(ldm_folder), scaling_factor=0)
    broken = shutil.copytree(ldm_folder, tmp_path / "broken")
    path = broken / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_class_embeds": 4}))
    with pytest.raises(ValueError, match="class-conditional"):
        UnconditionalLatentPrior(str(broken), load={"low_cpu_mem_usage": False})
