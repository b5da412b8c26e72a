"""The recipe of the text-conditional prior, and the pipeline that it leaves."""

from types import SimpleNamespace

import pytest
import torch

from outsourced.classifiers import FashionFeatures
from outsourced.priors import LatentDiffusionPrior
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo import fashion_sd
from outsourced.zoo.captions import prompt_table, tokenizer
from outsourced.zoo.fashion_sd import (
    autoencoder,
    denoiser,
    encode_all,
    save_pipeline,
    steering,
    text_encoder,
    train_autoencoder,
    train_denoiser,
)
from outsourced.zoo.quality import draw

FOLDER = ZOO_WEIGHTS / "fashion_sd"


@pytest.fixture
def embedded() -> None:
    if not (FOLDER / "model_index.json").is_file():
        pytest.skip("not trained: python -m outsourced.zoo.fashion_sd")


def test_autoencoder_learns_and_its_latents_have_unit_variance():
    """Mutant: a scaling factor for its inverse, latents that are drawn instead of the means."""
    rows = torch.arange(32).expand(32, 32)
    bright = torch.linspace(-1, 1, 40)[:, None, None, None]
    x = torch.where(rows < 16, bright, -bright)
    torch.manual_seed(0)
    before = autoencoder()
    vae = train_autoencoder(x, steps=25, batch=8, rate=2e-3, kl_weight=1e-3, seed=0)
    code = encode_all(vae, x)
    assert code.shape == (40, 4, 8, 8)
    assert code.std() == pytest.approx(1, rel=1e-3)
    with torch.no_grad():
        found, untrained = (m.decode(m.encode(x).latent_dist.mean).sample for m in (vae, before))
        again = vae.decode(code / vae.config.scaling_factor).sample
    assert (found - x).abs().mean() < 0.8 * (untrained - x).abs().mean()
    assert (again - found).abs().mean() < 0.02  # the latents were encoded in bfloat16


class Offset(torch.nn.Module):
    """In place of the U-Net: a gain on the latents and an offset that only the caption gives."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))
        self.offset = torch.nn.Linear(64, 4)

    def forward(self, x, time, words):
        offset = self.offset(words.float().mean(1))[..., None, None]
        return SimpleNamespace(sample=self.gain * x + offset)


def test_denoiser_listens_to_the_caption_of_its_own_image(monkeypatch):
    """Two garments whose latents differ by sign: the offset that predicts the noise does, too.

    Mutant: labels of other rows, captions that never reach the network, a noise of the wrong sign.
    """
    labels = torch.tensor([0, 9]).repeat(20)
    code = torch.where(labels == 0, 2.0, -2.0)[:, None, None, None].expand(-1, 4, 8, 8)
    monkeypatch.setattr(fashion_sd, "denoiser", Offset)
    torch.manual_seed(0)
    tokens = tokenizer()
    unet, text = train_denoiser(code, labels, tokens, steps=150, batch=16, rate=1e-2, seed=0)
    table = prompt_table(tokens)
    per_garment = (len(table) - 1) // 10
    with torch.no_grad():
        words = text(table[torch.tensor([0, 9]) * per_garment])[0]
        shirt, boot = unet(torch.zeros(2, 4, 8, 8), None, words).sample.flatten(1).mean(1)
    assert unet.gain > 0.05
    assert shirt < -0.1
    assert boot > 0.1


def test_saved_folder_is_a_prior(tmp_path):
    """Mutant: a folder whose parts do not fit together, or a scaling factor that is lost."""
    tokens, vae = tokenizer(), autoencoder()
    vae.register_to_config(scaling_factor=0.7)
    save_pipeline(tmp_path / "p", vae, denoiser(), text_encoder(tokens), tokens)
    prior = LatentDiffusionPrior(str(tmp_path / "p"), steps=3)
    assert prior.noise_shape == (4, 8, 8)
    assert prior.data_shape == (1, 32, 32)
    assert prior.vae.config.scaling_factor == 0.7
    assert torch.isfinite(draw(prior, 2, 0)).all()


def test_embedded_pipeline_is_that_of_stable_diffusion(embedded):
    """f(z) equals the call of `StableDiffusionPipeline`, which loads the folder.

    Mutant: a pipeline of classes of our own, guidance on the wrong side, another scheduler.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        FOLDER, local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    names = [type(getattr(pipeline, n)).__name__ for n in ("unet", "vae", "text_encoder")]
    assert names == ["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"]
    prompt = "a photo of a dress"
    prior = LatentDiffusionPrior("fashion_sd", prompt=prompt, guidance=3.0, steps=4)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    with torch.no_grad():
        image = pipeline([prompt] * 2, latents=z, **options).images * 2 - 1
        torch.testing.assert_close(prior(z), image, rtol=0, atol=1e-5)


def test_embedded_prompts_steer_and_the_empty_one_gives_everything(embedded):
    """Mutant: weights of the first steps, a text encoder that was not saved with the U-Net."""
    shares = steering(FOLDER, guidance=3.0, steps=10, n=12, seed=1)
    assert shares.mean() > 0.85
    free = draw(LatentDiffusionPrior("fashion_sd", steps=10), 128, seed=1)
    found = FashionFeatures.from_weights().log_probs(free).argmax(1)
    assert len(found.unique()) >= 9
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8e6
    assert max(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 6e6


def test_loading_is_silent_and_leaves_the_libraries_as_they_were(embedded, capfd):
    """Mutant: bars and advice on every command, or bars that stay off for the caller's own
    downloads."""
    import diffusers.utils.logging as log

    log.enable_progress_bar()
    level = log.get_verbosity()
    LatentDiffusionPrior("fashion_sd")
    assert capfd.readouterr().err == ""
    assert log.is_progress_bar_enabled()
    assert log.get_verbosity() == level
