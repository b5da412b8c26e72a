"""Pixel diffusion priors: f equals the pipeline, its gradient, its memory, its errors."""

import json

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from outsourced.priors import DiffusionPrior
from outsourced.priors.diffusion_schedule import Schedule

SCHEDULERS = ("ddim", "dpm_solver++", "euler", "unipc")


def prior(folder, **settings) -> DiffusionPrior:
    return DiffusionPrior(str(folder), **{"steps": 3, **settings})


def noise(model: DiffusionPrior, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "name"),
    [
        ("DDPMPipeline", "DDIMScheduler", "ddim"),
        ("DDIMPipeline", "DDIMScheduler", "ddim"),
        ("DDPMPipeline", "DPMSolverMultistepScheduler", "dpm_solver++"),
    ],
)
def test_equals_the_pipeline_bit_for_bit(ddpm_folder, pipeline, scheduler, name):
    """Of the same initial noise; DDPMPipeline takes no latents, but draws z from its generator.

    The other schedulers do not fit these pipelines: no rescaling, unknown arguments of `step`.

    Mutant: another time grid (its spacing, its offset), images left in [0, 1] or not clamped.
    """
    import diffusers

    pipe = getattr(diffusers, pipeline).from_pretrained(ddpm_folder)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.requires_grad_(False)  # torch takes other CPU kernels for weights that want gradients
    images = pipe(
        batch_size=2,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=3,
        output_type="pt",
    ).images
    model = prior(ddpm_folder, scheduler=name)
    x = model(noise(model))
    assert torch.equal(x * 0.5 + 0.5, images)
    assert images.unique().numel() > 100


def test_euler_is_the_probability_flow_ode(ddpm_folder):
    """x ← x + (σ' - σ) ε in x = z_0 + σ n, from σ_max; Karras et al., 2022, arXiv 2206.00364.

    Mutant: init_noise_sigma forgotten, or the network's input not rescaled by √(1 + σ²).
    """
    model = prior(ddpm_folder, scheduler="euler", clamp=False)
    levels = torch.linspace(1e-4, 0.004, 1000, dtype=torch.float64)
    alphas = (1 - levels).cumprod(0)
    times = [666, 333, 0]
    sigmas = [*(((1 - alphas[t]) / alphas[t]).sqrt().float() for t in times), torch.tensor(0.0)]
    z = noise(model)
    x = z * (1 + sigmas[0] ** 2).sqrt()
    for t, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * model.network(x / (1 + sigma**2).sqrt(), t).sample
    assert model.timesteps.tolist() == times
    torch.testing.assert_close(model(z), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_calls_share_no_state(ddpm_folder, name):
    """Mutant: one scheduler for all calls, whose memory of earlier steps leaks into the next."""
    model = prior(ddpm_folder, scheduler=name)
    first, other = noise(model), noise(model, seed=1)
    x = model(first)
    model(other)
    assert torch.equal(model(first), x)
    assert not torch.equal(model(other), x)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gradient(ddpm_folder, name):
    """Against central differences, with and without checkpointing, and the calls that each takes.

    Mutant: a sampler under no_grad, a detached network output, or the scheduler's arithmetic
    inside the checkpoint, which would advance multi-step schedulers twice.
    """
    model = prior(ddpm_folder, scheduler=name, clamp=False)
    plain = prior(ddpm_folder, scheduler=name, clamp=False, checkpointing=False)
    gradients, calls = [], []
    weight = noise(model, seed=5)
    for each in (model, plain):
        seen = []
        each.network.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(1))
        z = noise(each).requires_grad_()
        gradients.append(torch.autograd.grad((each(z) * weight).sum(), z)[0])
        calls.append(len(seen))
    assert calls == [6, 3]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)

    direction, step = noise(model, seed=6), 1e-2
    with torch.no_grad():
        ends = [(model(noise(model) + s * step * direction) * weight).sum() for s in (1, -1)]
    slope = (gradients[0] * direction).sum()
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=2e-2, atol=2e-2)


def test_gradient_in_float64(ddpm_folder):
    """To 7 digits, of every input, which float32 differences cannot show.

    Mutant: a sampler that rounds to float32 on its way.
    """
    model = prior(ddpm_folder, clamp=False, steps=2).double()
    z = noise(model, 1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(z).sum(), z)
    for index in ((0, 0, 0, 0), (0, 1, 3, 5), (0, 0, 7, 2)):
        shift = torch.zeros_like(z)
        shift[index] = 1e-5
        with torch.no_grad():
            slope = (model(z + shift).sum() - model(z - shift).sum()) / 2e-5
        torch.testing.assert_close(gradient[index], slope, rtol=1e-7, atol=1e-7)


def test_clamp_is_an_option(ddpm_folder):
    """Mutant: an ignored option, or a gradient that passes through clamped pixels."""
    clamped, free = (
        prior(ddpm_folder, scheduler="euler"),
        prior(ddpm_folder, scheduler="euler", clamp=False),
    )
    z = (2 * noise(clamped)).requires_grad_()
    assert free(z).abs().max() > 1
    assert torch.equal(clamped(z), free(z).clamp(-1, 1))
    outside = free(z).detach().abs() > 1
    (gradient,) = torch.autograd.grad(clamped(z)[outside].sum(), z)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_predicts_noise_whatever_the_network_predicts(ddpm_folder):
    """The estimate of z_0 that follows from ε equals the one of diffusers' DDIM step.

    Mutant: v or z_0 passed off as ε, ᾱ of the wrong step, one step for the whole batch.
    """
    from diffusers import DDIMScheduler

    model = prior(ddpm_folder)
    z = noise(model)
    times = torch.tensor([900, 300])
    alphas = (1 - torch.linspace(1e-4, 0.004, 1000)).cumprod(0)[times].view(-1, 1, 1, 1)
    for kind in ("epsilon", "v_prediction", "sample"):
        model.schedule.prediction_type = kind
        reference = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_end=0.004)
        reference.set_timesteps(10)
        clean = [
            reference.step(model.network(z[i : i + 1], t).sample, t, z[i : i + 1])
            for i, t in enumerate(times)
        ]
        estimate = model.predict_noise(z, times)
        torch.testing.assert_close(
            (z - (1 - alphas).sqrt() * estimate) / alphas.sqrt(),
            torch.cat([one.pred_original_sample for one in clean]),
            rtol=1e-3,
            atol=1e-3,
        )
    with pytest.raises(ValueError, match="no rectified flow; use predict_noise"):
        model.predict_velocity(z, 500.0)


def test_fingerprint_covers_what_changes_f(ddpm_folder, tmp_path):
    """Mutant: a fingerprint of the weights alone, or one of the folder's name."""
    import shutil

    base = prior(ddpm_folder).fingerprint()
    moved = shutil.copytree(ddpm_folder, tmp_path / "elsewhere")
    assert prior(moved).fingerprint() == base
    changes = ({"steps": 4}, {"scheduler": "euler"}, {"dtype": "bfloat16"}, {"clamp": False})
    others = [prior(ddpm_folder, **change).fingerprint() for change in changes]
    config = json.loads((moved / "unet" / "config.json").read_text())
    (moved / "unet" / "config.json").write_text(json.dumps({**config, "freq_shift": 1}))
    others.append(prior(moved).fingerprint())
    assert len({base, *others}) == 6


def test_frozen(ddpm_folder):
    """Mutant: weights that train, or dropout that wakes."""
    model = prior(ddpm_folder)
    model.train()
    assert not model.network.training
    assert not any(p.requires_grad for p in model.parameters())
    before = parameters_to_vector(model.parameters()).clone()
    model(noise(model).requires_grad_()).sum().backward()
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    assert model(noise(model)[:0]).shape == (0, *model.data_shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "heun"}, "prior.scheduler must be one of ddim, .*unipc.* got 'heun'"),
        ({"scheduler": "ddpm"}, "'ddpm' draws noise at every step.*deterministic; use one of ddim"),
        ({"scheduler": "euler_ancestral"}, "'euler_ancestral' draws noise"),
        ({"scheduler": "flow_match_euler"}, "'flow_match_euler' does not fit a model of noise"),
        ({"steps": 0}, "prior.steps must be >= 1, got 0"),
        ({"steps": 1001}, "prior.steps must be <= 1000"),
        ({"dtype": "float8"}, "prior.dtype must be one of float32, .*got 'float8'"),
        ({"memory_gb": 0}, "prior.memory_gb must be > 0 or null, got 0"),
    ],
)
def test_bad_settings_are_named(ddpm_folder, settings, message):
    """Mutant: a message of diffusers from the depth of the first call."""
    with pytest.raises(ValueError, match=message):
        prior(ddpm_folder, **settings)


def test_noise_of_another_shape(ddpm_folder):
    """Mutant: a fully convolutional network that takes any size and returns another image."""
    model = prior(ddpm_folder)
    with pytest.raises(ValueError, match=r"z must be \(B, \*\(2, 8, 8\)\), got \(1, 2, 16, 16\)"):
        model(torch.zeros(1, 2, 16, 16))


def test_a_scheduler_configured_to_draw_noise_is_refused():
    """Mutant: a check of the scheduler's name alone."""
    from diffusers import (
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
    )

    with pytest.raises(ValueError, match="stochastic_sampling on"):
        Schedule(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(ValueError, match="use_dynamic_shifting on"):
        Schedule(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    noisy = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    assert Schedule(noisy, "dpm_solver++", 3).begin().config.algorithm_type == "dpmsolver++"
    assert Schedule(DDPMScheduler(), None, 3).name == "ddim"
