"""Stable Diffusion priors: f equals the pipeline, guidance, prompts, latents, loading."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from outsourced.priors import DiffusionPrior, LatentDiffusionPrior
from outsourced.priors.diffusion_loading import load_tiny_autoencoder

DIFFUSION = {
    "ddim": "DDIMScheduler",
    "dpm_solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
FLOW = {"flow_match_euler": "FlowMatchEulerDiscreteScheduler"} | {
    name: DIFFUSION[name] for name in ("dpm_solver++", "unipc")
}
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
PROMPTS = {"prompt": "a bag", "negative_prompt": "a shoe"}


def prior(folder, **settings) -> LatentDiffusionPrior:
    if Path(folder, "transformer").is_dir():
        settings = {"load": WITHOUT_T5, **settings}
    return LatentDiffusionPrior(str(folder), **{"steps": 3, **PROMPTS, **settings})


def noise(model: DiffusionPrior, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(seed))


def pipeline(folder, scheduler: str, dtype: torch.dtype = torch.float32, **changes):
    import diffusers

    absent = WITHOUT_T5 if (folder / "transformer").is_dir() else {"safety_checker": None}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent).to(dtype)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():  # torch takes other kernels where weights want gradients
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipe


def images(pipe, z, guidance: float, **settings):
    arguments = {**PROMPTS, "guidance_scale": guidance, "num_inference_steps": 3, **settings}
    arguments = {"num_images_per_prompt": len(z), "output_type": "pt", **arguments}
    return pipe(latents=z, **arguments).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", DIFFUSION)
def test_equals_stable_diffusion_bit_for_bit(sd_folder, name, guidance):
    """Of the same latents, under every scheduler, on one-channel images and an f = 4 autoencoder.

    Mutant: init_noise_sigma forgotten, the prompts in the wrong order, the latents' scale
    forgotten, a scheduler that remembers the last call.
    """
    model = prior(sd_folder, scheduler=name, guidance=guidance)
    assert (model.noise_shape, model.data_shape) == ((4, 8, 8), (1, 32, 32))
    pipe, z = pipeline(sd_folder, DIFFUSION[name]), noise(model)
    for _ in range(2):
        x = model(z)
        assert torch.equal(x * 0.5 + 0.5, images(pipe, z, guidance))
    assert (x.abs() == 1).any()  # the clamp is part of what is compared
    assert (x.abs() < 0.9).any()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW)
def test_equals_stable_diffusion_3_bit_for_bit(sd3_folder, name, guidance):
    """Mutant: the shift of the latents or of the times forgotten, pooled prompts left out."""
    model = prior(sd3_folder, scheduler=name, guidance=guidance)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    pipe = pipeline(sd3_folder, FLOW[name], **({} if name == "flow_match_euler" else flow))
    z = noise(model)
    for _ in range(2):
        assert torch.equal(model(z) * 0.5 + 0.5, images(pipe, z, guidance))
    assert not torch.equal(model(z), prior(sd3_folder, guidance=guidance, prompt="b")(z))


@pytest.mark.parametrize("kind", ["sd_folder", "sd3_folder"])
def test_equals_the_pipeline_in_bfloat16_at_another_size(kind, request):
    """Mutant: weights or steps in float32, or an image size that only the latents obey."""
    folder = request.getfixturevalue(kind)
    model = prior(folder, dtype="bfloat16", guidance=3.0, image_size=(16, 24))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    z = noise(model)
    name = "DDIMScheduler" if kind == "sd_folder" else "FlowMatchEulerDiscreteScheduler"
    pipe = pipeline(folder, name, torch.bfloat16)
    expected = images(pipe, z.bfloat16(), 3.0, height=16, width=24)
    x = model(z)
    assert x.shape == (2, 1, 16, 24)
    assert x.dtype == torch.float32
    assert torch.equal(x.bfloat16() * 0.5 + 0.5, expected)


def test_guidance_formula(sd_folder):
    """negative + w (prompt - negative), each from its own single call of the network.

    Mutant: the roles exchanged, w - 1 in place of w, weights below 1 taken for 1.
    """
    z = noise(prior(sd_folder))
    negative = prior(sd_folder, guidance=0.0).predict_noise(z, 500)
    positive = prior(sd_folder, guidance=1.0).predict_noise(z, 500)
    assert (negative - positive).abs().max() > 1e-3
    for weight in (0.5, 3.0):
        guided = prior(sd_folder, guidance=weight).predict_noise(z, torch.tensor([500, 500]))
        torch.testing.assert_close(
            guided, (1 - weight) * negative + weight * positive, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"guidance": 3.0}, 4),
        ({"guidance": 1.0}, 2),
        ({"guidance": 0.0}, 2),
        ({"guidance": 3.0, "negative_prompt": "a bag"}, 2),
    ],
)
def test_network_calls(sd_folder, monkeypatch, settings, rows):
    """Two samples, three steps: two rows a call, four where guidance needs both prompts.

    Mutant: guidance that doubles the work at weight 1 or for equal prompts; a prompt that is
    encoded in every call; text encoders that stay in memory.
    """
    from transformers import CLIPTextModel

    texts, batches = [], []
    encode = CLIPTextModel.forward

    def counted(self, *args, **kwargs):
        texts.append(1)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", counted)
    model = prior(sd_folder, **settings)
    assert len(texts) == rows // 2
    assert not any(isinstance(module, CLIPTextModel) for module in model.modules())
    model.network.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    model(noise(model))
    assert batches == [rows] * 3
    assert len(texts) == rows // 2


@pytest.mark.parametrize("kind", ["sd_folder", "sd3_folder"])
def test_gradient_through_guidance_and_decoder(kind, request):
    """Against central differences; checkpointed, in chunks, and neither.

    Mutant: a decoder under no_grad, one prompt's output detached, chunks out of order.
    """
    folder = request.getfixturevalue(kind)
    settings = {"guidance": 3.0, "clamp": False}
    models = [
        prior(folder, **settings, memory_gb=1e-9),
        prior(folder, **settings, checkpointing=False),
    ]
    z = noise(models[0]).requires_grad_()
    weight = torch.randn(2, *models[0].data_shape, generator=torch.Generator().manual_seed(3))
    chunked, plain = (torch.autograd.grad((m(z) * weight).mean(), z)[0] for m in models)
    torch.testing.assert_close(chunked, plain, rtol=1e-3, atol=1e-6)
    exact = models[1].double()
    z = noise(exact).double().requires_grad_()
    step = 1e-3 * noise(exact, seed=8).double()
    (gradient,) = torch.autograd.grad((exact(z) * weight).mean(), z)
    with torch.no_grad():
        difference = ((exact(z + step) - exact(z - step)) * weight).mean() / 2
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize(("kind", "shift"), [("sd_folder", 0.0), ("sd3_folder", 0.06)])
def test_latents_are_scaled(kind, shift, request):
    """h = (mean - shift) · scale, and back; draws have the encoder's mean and deviation.

    Mutant: a forgotten or inverted scale or shift, a draw in place of the mode.
    """
    model = prior(request.getfixturevalue(kind))
    scale = 0.7 if kind == "sd_folder" else 1.5
    x = torch.rand(2, *model.data_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    gaussian = model.vae.encode(x).latent_dist
    h = model.encode(x)
    torch.testing.assert_close(h, (gaussian.mean - shift) * scale)
    torch.testing.assert_close(model.decode(h), model.vae.decode(gaussian.mean).sample)
    drawn = model.encode(x, torch.Generator().manual_seed(0))
    normal = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, h + gaussian.std * normal * scale, rtol=1e-4, atol=1e-5)
    assert model.decode(10 * h).abs().max() > 1


def test_noise_levels_are_those_of_the_pipeline(sd_folder, sd3_folder):
    """Mutant: another schedule of β (linear, not scaled linear), or one made up for flows."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()).cumprod(0)
    model, flow = prior(sd_folder), prior(sd3_folder)
    torch.testing.assert_close(model.alphas_cumprod, alphas)
    assert model.timesteps.tolist() == [667, 334, 1]
    assert flow.alphas_cumprod is None
    with pytest.raises(ValueError, match="is a rectified flow; use predict_velocity"):
        flow.predict_noise(noise(flow), 5)


def test_velocity_integrates_to_the_sample(sd3_folder):
    """Euler steps in s of z' = v, from s = 1 to 0 at SD3's shifted times.

    Mutant: the velocity's sign or time scale, or one time for the whole batch.
    """
    model = prior(sd3_folder, guidance=3.0, clamp=False)
    z = noise(model)
    times = [*model.timesteps.tolist(), 0.0]
    x = z
    for now, following in itertools.pairwise(times):
        velocity = model.predict_velocity(x, torch.tensor([now, now]))
        x = x + (following - now) / 1000 * velocity
    torch.testing.assert_close(model(z), model.decode(x), rtol=1e-3, atol=1e-4)
    assert times[0] == pytest.approx(1000)
    apart = model.predict_velocity(z, torch.tensor([900.0, 200.0]))
    torch.testing.assert_close(
        apart[1:], model.predict_velocity(z[1:], 200.0), rtol=1e-4, atol=1e-5
    )


def test_slicing_and_tiling_of_the_decoder(sd_folder):
    """Mutant: ignored options. Three images, one at a time; 64 pixels in tiles of 32."""
    calls: list[tuple[int, ...]] = []

    def count(settings):
        model = prior(sd_folder, guidance=1.0, steps=1, **settings)
        calls.clear()
        model.vae.decoder.register_forward_pre_hook(
            lambda module, args: calls.append(tuple(args[0].shape[::2]))
        )
        x = model(noise(model, 3))
        return model, x, list(calls)

    _, whole, once = count({})
    _, sliced, each = count({"vae_slicing": True})
    assert (once, each) == ([(3, 8)], [(1, 8)] * 3)
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-5)
    _, _, big = count({"image_size": 64})
    tiled, _, tiles = count({"image_size": 64, "vae_tiling": True})
    assert big == [(3, 16)]
    assert len(tiles) > 4
    assert max(tile[1] for tile in tiles) == 8
    assert tiled.fingerprint() != prior(sd_folder, guidance=1.0, steps=1).fingerprint()


def test_tiny_autoencoder_replaces_the_vae(sd_folder, tmp_path):
    """As in the pipeline that was given it.

    Mutant: latents scaled for the large VAE, or an option that is ignored.
    """
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny(
        in_channels=1, out_channels=1, latent_channels=4, encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "tiny")
    model = prior(sd_folder, tiny_autoencoder=str(tmp_path / "tiny"), guidance=3.0)
    pipe = pipeline(sd_folder, "DDIMScheduler")
    pipe.vae = tiny.eval()
    z = noise(model)
    x = model(z)
    assert torch.equal(x * 0.5 + 0.5, images(pipe, z, 3.0))
    torch.testing.assert_close(model.encode(x), tiny.encode(x).latents)
    with pytest.raises(ValueError, match="tiny autoencoder is deterministic"):
        model.encode(x, torch.Generator())
    with pytest.raises(ValueError, match="holds a AutoencoderKL, expected an AutoencoderTiny"):
        prior(sd_folder, tiny_autoencoder=str(sd_folder / "vae"))


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = (
    (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"conv_in", lambda m: "input_blocks.0.0"),
    (r"conv_norm_out", lambda m: "out.0"),
    (r"conv_out", lambda m: "out.2"),
    (r"down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0"),
    (r"down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1"),
    (r"down_blocks\.0\.downsamplers\.0\.conv", lambda m: "input_blocks.2.0.op"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"up_blocks\.1\.attentions\.(\d)", lambda m: f"output_blocks.{2 + int(m[1])}.1"),
    (r"up_blocks\.0\.upsamplers\.0\.conv", lambda m: "output_blocks.1.1.conv"),
)
VAE = (
    (r"(..)coder\.conv_norm_out", lambda m: f"{m[1]}coder.norm_out"),
    (r"encoder\.down_blocks\.(\d)\.resnets", lambda m: f"encoder.down.{m[1]}.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{m[1]}.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{2 - int(m[1])}.block"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{2 - int(m[1])}.upsample"),
    (r"(..)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}"),
    (r"(..)coder\.mid_block\.attentions\.0", lambda m: f"{m[1]}coder.mid.attn_1"),
)
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_name(part: str, name: str) -> str:
    """The name that a weight of the tiny pipeline has in checkpoints of the original code."""
    if part == "text_encoder":  # transformers 5.6 dropped the first part of these names
        return f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"
    for pattern, substitute in UNET if part == "unet" else VAE:
        renamed, count = re.subn(f"^{pattern}", substitute, name)
        if count:
            break
    if part == "unet":
        for ours, theirs in RESNET.items() if ".resnets." in name else ():
            renamed = renamed.replace(f".{ours}.", f".{theirs}.")
        return f"model.diffusion_model.{renamed}"
    for ours, theirs in ATTENTION.items() if ".attentions." in name else ():
        renamed = renamed.replace(f".{ours}.", f".{theirs}.")
    return "first_stage_model." + renamed.replace("conv_shortcut", "nin_shortcut")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_file_checkpoint(sd_folder, tmp_path, suffix):
    """In the names of the original code: the same prior as the folder whose weights it holds.

    Mutant: weights that are not loaded, or the file's folder taken for the pipeline.
    """
    weights = {}
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (sd_folder / part).glob("*.safetensors")
        for name, tensor in load_file(file).items():
            projection = part == "vae" and ".attentions." in name and ".to_" in name
            matrix = projection and name.endswith("weight")
            weights[original_name(part, name)] = tensor[..., None, None] if matrix else tensor
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    model = prior(path, load={"config": str(sd_folder)})
    folder = prior(sd_folder)
    torch.testing.assert_close(model(noise(model)), folder(noise(folder)), rtol=1e-4, atol=1e-5)
    assert model.fingerprint() == folder.fingerprint()


def test_fingerprint_covers_the_prompts_and_guidance(sd_folder):
    """Mutant: a fingerprint of the weights: two prompts would share one bank of pairs."""
    base = prior(sd_folder, guidance=3.0)
    changes = ({"prompt": "a hat"}, {"negative_prompt": ""}, {"guidance": 2.0}, {"steps": 4})
    prints = {prior(sd_folder, **{"guidance": 3.0, **change}).fingerprint() for change in changes}
    assert len(prints | {base.fingerprint()}) == 5
    assert prior(sd_folder, guidance=3.0).fingerprint() == base.fingerprint()


def test_nothing_on_this_machine(tmp_path):
    """One error that names the hub id, the setting and HF_HOME.

    Mutant: the exception of the hub's client, or a retry that hangs.
    """
    with pytest.raises(FileNotFoundError, match=r"prior\.path no-one/nothing.*prior\.path=.*HF_HO"):
        prior("no-one/nothing")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/at-all does not exist; expected a hub"):
        prior("/nowhere/at-all")
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json; expected a folder"):
        prior(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"prior\.tiny_autoencoder no-one/tiny"):
        load_tiny_autoencoder("no-one/tiny", torch.float32)


def test_other_pipelines_and_broken_ones(sd_folder, ddpm_folder, tmp_path):
    """Mutant: an AttributeError of a component that is not there, or safetensors' own error."""
    with pytest.raises(
        ValueError, match=r"holds a DDPMPipeline, expected StableDiffusion3Pipe.* or"
    ):
        prior(ddpm_folder)
    with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline, expected DDIMPipeline"):
        DiffusionPrior(str(sd_folder))
    broken = shutil.copytree(sd_folder, tmp_path / "broken")
    (file,) = (broken / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken cannot be loaded \("):
        prior(broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        prior(broken)
    (tmp_path / "weights.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.zip is not a checkpoint"):
        prior(tmp_path / "weights.zip")
    (tmp_path / "weights.safetensors").write_bytes(b"\x07" * 99)
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be loaded"):
        prior(tmp_path / "weights.safetensors")


def test_networks_that_want_more_are_refused(sd_folder, tmp_path):
    """Mutant: a shape error of a convolution in the first call."""
    folder = shutil.copytree(sd_folder, tmp_path / "inpainting")
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="9 channels in and 4 out"):
        prior(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": -1.0}, "prior.guidance must be >= 0, got -1.0"),
        ({"image_size": 0}, "prior.image_size must be >= 1, got 0"),
        ({"image_size": 30}, "prior.image_size must be divisible by 4"),
        ({"scheduler": "flow_match_euler"}, "does not fit a model of noise; use one of ddim"),
    ],
)
def test_bad_settings_are_named(sd_folder, settings, message):
    """Mutant: settings that diffusers rounds or ignores."""
    with pytest.raises(ValueError, match=message):
        prior(sd_folder, **settings)


def test_a_flow_takes_flow_schedulers_only(sd3_folder):
    """Mutant: DDIM's rule on a velocity, which runs and gives noise."""
    with pytest.raises(ValueError, match="'ddim' does not fit a rectified flow; use one of flow"):
        prior(sd3_folder, scheduler="ddim")
    with pytest.raises(ValueError, match=r"prior\.image_size must be divisible by 8"):
        prior(sd3_folder, image_size=20)
