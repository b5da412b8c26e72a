"""Inversion of deterministic samplers: the noise behind what they made."""

import json
import shutil
from functools import partial

import pytest
import torch

from outsourced.priors import DiffusionPrior, LatentDiffusionPrior
from outsourced.priors.fixed_point import fixed_point

WITHOUT_T5 = partial(LatentDiffusionPrior, load={"text_encoder_3": None, "tokenizer_3": None})


def noise(model, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("folder", "kind", "scheduler"),
    [
        ("ddpm_folder", DiffusionPrior, "ddim"),
        ("ddpm_folder", DiffusionPrior, "euler"),
        ("sd_folder", LatentDiffusionPrior, "ddim"),
        ("sd3_folder", WITHOUT_T5, "flow_match_euler"),
    ],
)
@torch.no_grad()
def test_finds_the_noise(folder, kind, scheduler, request, tmp_path):
    """Fixed-point iterations converge to it, and one of them is the worst.

    Mutants: factors of a step swapped or of another step, timesteps in the order of sampling, the
    scale of the first state or of the network's input forgotten, samples that share a combination.
    """
    place = shutil.copytree(request.getfixturevalue(folder), tmp_path / "model")
    settings = place / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "clip_sample": False}))
    model = kind(str(place), scheduler=scheduler, steps=5)
    z = noise(model)
    h = model.denoise(z)
    found, calls = model.invert(h, 1e-5, 60)
    once, few = model.invert(h, 1e-5, 1)
    assert (found - z).abs().max() < 2e-3
    assert (once - z).abs().max() > 3 * (found - z).abs().max()
    assert few == len(z) < calls
    torch.testing.assert_close(model.denoise(found), h, rtol=1e-3, atol=1e-3)
    alone, _ = model.invert(h[1:2], 1e-5, 60)
    torch.testing.assert_close(alone[0], found[1], rtol=1e-3, atol=1e-3)


def test_latents_are_what_is_decoded(sd_folder):
    """Mutant: latents before the last step, or scaled ones."""
    model = LatentDiffusionPrior(str(sd_folder), steps=3)
    z = noise(model)
    with torch.no_grad():
        assert torch.equal(model.decode(model.denoise(z)).clamp(-1, 1), model(z))


def test_refuses_what_cannot_be_inverted(ddpm_folder):
    """Multi-step schedulers, steps that clip, no iterations."""
    model = DiffusionPrior(str(ddpm_folder), scheduler="unipc", steps=3)
    with pytest.raises(ValueError, match=r"'unipc' remembers earlier steps.*ddim, euler"):
        model.invert(noise(model))
    model = DiffusionPrior(str(ddpm_folder), steps=3)
    with pytest.raises(ValueError, match=r"most >= 1, got 0\.01 and 0"):
        model.invert(noise(model), 0.01, 0)
    model.schedule.config = {**model.schedule.config, "clip_sample": True}
    with pytest.raises(ValueError, match="clip_sample=true cannot be inverted"):
        model.invert(noise(model))


def test_fixed_points_of_each_sample():
    """Linear maps of contractions 0.1 and 0.99: the one of Aitken's formula, long before plain
    iteration; a sample that has converged is not asked again.

    Mutants: no acceleration, statistics over the batch, rows of other samples.
    """
    factor, goal = torch.tensor([0.1, 0.99, 0.5]), torch.tensor([1.0, 2.0, 3.0])
    asked = []

    def update(y, rows):
        asked.append(rows.tolist())
        return goal[rows, None] + factor[rows, None] * (y - goal[rows, None])

    found = fixed_point(update, torch.zeros(3, 4), 1e-4, 20)
    torch.testing.assert_close(found, goal[:, None].expand(3, 4), rtol=1e-2, atol=1e-2)
    assert len(asked) < 8
    still = fixed_point(lambda y, rows: y, torch.ones(2, 3), 1e-3, 5)
    assert torch.equal(still, torch.ones(2, 3))


def test_ends_in_low_precision(ddpm_folder):
    """No finer than the type can tell. Mutant: a tolerance that bfloat16 never reaches."""
    model = DiffusionPrior(str(ddpm_folder), steps=3, dtype="bfloat16")
    z = noise(model)
    found, calls = model.invert(model.denoise(z), 1e-6, 40)
    assert calls < 10 * len(z)
    assert (found - z).abs().mean() < 0.2
