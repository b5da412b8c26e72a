"""Where Stable Diffusion priors come from: folders, single files, what is broken or missing."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from outsourced.priors import DiffusionPrior
from outsourced.priors.diffusion_loading import load_tiny_autoencoder
from tests.priors.latent import images, noise, pipeline, prior


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
