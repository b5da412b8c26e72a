"""Operators that a user brings, and what an encoder sees of them."""

import math

import pytest
import torch
from deepinv.physics import (
    MRI,
    Blur,
    CompressedSensing,
    Demosaicing,
    Denoising,
    LinearPhysics,
    Physics,
    PoissonNoise,
    Tomography,
)
from deepinv.physics.generator import MotionBlurGenerator

from outsourced.tasks import Denoise, Inpaint, Measurement, RandomBox, SuperResolution

SHAPE = (1, 8, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_kernel_per_sample_from_a_deepinv_generator():
    """Mutants: the generator's own random state used instead of ours; one kernel for the batch."""
    task = Measurement(Blur(padding="circular"), SHAPE, 0.1, MotionBlurGenerator(psf_size=(5, 5)))
    x = torch.rand(3, *SHAPE, generator=generator())
    obs = task.sample(x, generator(1))
    assert torch.equal(obs.params["filter"], task.sample(x, generator(1)).params["filter"])
    assert not torch.equal(obs.params["filter"][0], obs.params["filter"][1])
    single = torch.cat([task.log_reward(x[i : i + 1], obs[i]) for i in range(3)])
    torch.testing.assert_close(task.log_reward(x, obs), single)
    features = task.features(obs)
    assert tuple(features.shape[1:]) == task.feature_shape == (2, 8, 8)
    centred = torch.zeros(3, 8, 8)
    centred[:, 1:6, 1:6] = obs.params["filter"][:, 0]
    assert torch.equal(features[:, 1], centred)


def test_masks_of_other_physics_silence_their_entries_too():
    """Mutant: only our own Inpaint is recognised, so MRI and Demosaicing count hidden entries."""
    for physics, shape, count in [
        (Demosaicing((3, 8, 8)), (3, 8, 8), 64),
        (MRI(mask=torch.eye(8), img_size=(2, 8, 8)), (2, 8, 8), 16),
        (Denoising(), SHAPE, 64),
    ]:
        task = Measurement(physics, shape, 0.1)
        obs = task.sample(torch.rand(2, *shape, generator=generator()), generator())
        assert task.count(obs).tolist() == [count, count]
        assert (obs.y != 0).flatten(1).sum(1).max() <= count


@pytest.mark.parametrize(
    "physics", [CompressedSensing(m=20, img_size=SHAPE), Tomography(8, 8, normalize=True)]
)
def test_measurements_without_image_form_reach_the_encoder_by_the_adjoint(physics):
    """Mutant: y reshaped or interpolated onto the grid instead of A^T y."""
    task = Measurement(physics, SHAPE, 0.1)
    obs = task.sample(torch.rand(2, *SHAPE, generator=generator()), generator())
    assert task.feature_shape == SHAPE
    ratio = task.features(obs) / task.adjoint(obs.y, {})
    torch.testing.assert_close(ratio, torch.full_like(ratio, task.adjoint_gain))


def test_super_resolution_features_have_unit_gain():
    """Mutant: the bare adjoint, 16 times too small at factor 4."""
    task = SuperResolution((1, 32, 32), 4, 1e-6, padding="circular")
    x = torch.full((1, 1, 32, 32), 0.7)
    features = task.features(task.sample(x, generator()))
    torch.testing.assert_close(features, x, rtol=1e-3, atol=1e-3)


def test_features_are_the_measurement_the_mask_and_log_sigma():
    """Mutants: hidden and observed swapped; sigma for log sigma; sigma shown when it is fixed."""
    task = Inpaint((3, 8, 8), RandomBox(2, 5), (0.1, 0.4))
    obs = task.sample(torch.rand(2, 3, 8, 8, generator=generator()), generator())
    features = task.features(obs)
    assert torch.equal(features[:, :3], obs.y)
    assert torch.equal(features[:, 3:4], obs.params["mask"])
    assert torch.equal(features[:, 4], obs.sigma.log().view(2, 1, 1).expand(2, 8, 8))
    assert Denoise((5,), 0.1).feature_shape == (5,)
    assert Denoise((5,), (0.1, 0.2)).feature_shape == (6,)


class Affine(LinearPhysics):
    def A(self, x, **kwargs):
        return 2 * x + 1

    def A_adjoint(self, y, **kwargs):
        return 2 * y


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (torch.nn.Identity(), r"must be a deepinv\.physics\.Physics, got Identity"),
        (Denoising(PoissonNoise()), "must have Gaussian noise.*got PoissonNoise"),
        (Physics(A=lambda x: x, sensor_model=torch.tanh), "sensor_model"),
        (Physics(A=lambda x: x / 0), "non-finite"),
        (Physics(A=lambda x: x + torch.rand_like(x)), "deterministic"),
        (Physics(A=lambda x: x - x.mean()), "item by item"),
        (Physics(A=lambda x: x[:1]), r"must map \(2, \*data_shape\)"),
        (Physics(A=lambda x: torch.fft.fft(x)), "complex"),
        (Physics(A=lambda x: x @ torch.ones(3, 3)), r"failed on x of shape \(2, 1, 8, 8\)"),
        (Affine(), "not the adjoint of A"),
        (LinearPhysics(A=lambda x: x.flip(-1) * 2, A_adjoint=lambda y: y.flip(-1)), "adjoint"),
        (LinearPhysics(A=lambda x: 2 * x, A_adjoint=lambda y: 2 * y[:, :, :4]), "shape of x"),
    ],
)
def test_operators_that_break_their_promise_are_refused(physics, message):
    """Mutant: no probe; each of these would train for hours on a wrong likelihood."""
    with pytest.raises(ValueError, match=message):
        Measurement(physics, SHAPE, 0.1)


def test_noise_belongs_to_the_task():
    """Mutant: the physics' own Gaussian noise (0.1 in deepinv's Denoising) added on top."""
    task = Measurement(Denoising(), (1, 64, 64), 0.01)
    x = torch.zeros(1, 1, 64, 64)
    assert abs(task.sample(x, generator()).y.std().item() / 0.01 - 1) < 5 / math.sqrt(2 * 4096)


def test_noise_levels_in_the_operator_sampler_are_refused():
    """Mutant: a 'sigma' among the operator parameters is passed to A, which ignores it."""
    with pytest.raises(ValueError, match=r"task\.sigma instead"):
        Measurement(Denoising(), SHAPE, 0.1, lambda n, shape, g: {"sigma": torch.ones(n)})
