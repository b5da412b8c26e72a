"""Stable Diffusion priors: f equals the pipeline, guidance, prompts, latents."""

import itertools

import pytest
import torch

from tests.priors.latent import DIFFUSION, FLOW, images, noise, pipeline, prior


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


def test_fingerprint_covers_the_prompts_and_guidance(sd_folder):
    """Mutant: a fingerprint of the weights: two prompts would share one bank of pairs."""
    base = prior(sd_folder, guidance=3.0)
    changes = ({"prompt": "a hat"}, {"negative_prompt": ""}, {"guidance": 2.0}, {"steps": 4})
    prints = {prior(sd_folder, **{"guidance": 3.0, **change}).fingerprint() for change in changes}
    assert len(prints | {base.fingerprint()}) == 5
    assert prior(sd_folder, guidance=3.0).fingerprint() == base.fingerprint()


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
