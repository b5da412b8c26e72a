"""A mixture of operators: every sample has the likelihood of its own."""

import pytest
import torch

from outsourced.tasks import (
    JPEG,
    CompressedSensing,
    Deblur,
    Denoise,
    GaussianKernel,
    Inpaint,
    LinearMeasurement,
    Mixture,
    MotionKernel,
    Observation,
    PhaseRetrieval,
    RandomBox,
    RandomStripes,
    SuperResolution,
    Task,
)
from outsourced.tasks.ridge import ridge_estimate

SHAPE = (2, 12, 16)
PARTS = {
    "inpaint": lambda: Inpaint(SHAPE, RandomBox(3, 6), 0.1),
    "superres": lambda: SuperResolution(SHAPE, 2, 0.2),
    "gaussian": lambda: Deblur(SHAPE, GaussianKernel((0.5, 1.5), 7), (0.3, 0.4)),
    "motion": lambda: Deblur(SHAPE, MotionKernel(7), 0.5),
    "destripe": lambda: Inpaint(SHAPE, RandomStripes(), 0.6),
    "sensing": lambda: CompressedSensing(SHAPE, 0.3, 0.7),
    "denoise": lambda: Denoise(SHAPE, 0.8),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=generator(seed)) * 2 - 1


def own(task: Mixture, obs: Observation, i: int):
    """The task behind observation i, and the observation as that task's own."""
    part = task.switch.parts[int(obs.params["kind"][i])]
    size = torch.Size(part.measurement_shape).numel()
    y = obs.y[i, :size].view(1, *part.measurement_shape)
    assert (obs.y[i, size:] == 0).all()
    params = {name: obs.params[name][i : i + 1] for name in part.param_shapes}
    return part, Observation(y, params, obs.sigma[i : i + 1])


@pytest.fixture(scope="module")
def task() -> Mixture:
    return Mixture(SHAPE, {name: make() for name, make in PARTS.items()})


@pytest.fixture(scope="module")
def obs(task) -> Observation:
    obs = task.sample(images(28), generator(2))
    assert len(obs.params["kind"].unique()) == 7
    return obs


def test_every_sample_has_the_likelihood_of_its_own_operator(task, obs):
    """Rewards, residuals, counts, bounds, A and A^T of a mixed batch, against each task alone.

    Mutants: the batch put back in the order of the kinds, the operator of another sample, padding
    counted as observed, a measurement cut short, the noise level of another sample.
    """
    x, v = images(28, 3), torch.randn(obs.y.shape, generator=generator(4))
    tangents = torch.randn(3, 28, *SHAPE, generator=generator(5))
    applied, back = task.apply(x, obs.params), task.adjoint(v, obs.params)
    jacobian, residual = task.whitened_jacobian(tangents, x, obs), task.whitened_residual(x, obs)
    for i in range(28):
        part, single = own(task, obs, i)
        size = single.y.numel()
        at = x[i : i + 1]
        torch.testing.assert_close(task.log_reward(x, obs)[i], part.log_reward(at, single)[0])
        torch.testing.assert_close(task.log_reward(at, obs[i])[0], part.log_reward(at, single)[0])
        assert task.count(obs)[i] == part.count(single)[0]
        torch.testing.assert_close(task.log_bound(obs)[i], part.log_bound(single)[0])
        torch.testing.assert_close(applied[i, :size], part.apply(at, single.params).flatten())
        assert (applied[i, size:] == 0).all()
        expected = part.adjoint(v[i, :size].view_as(single.y), single.params)[0]
        torch.testing.assert_close(back[i], expected)
        whitened = part.whitened_residual(at, single)[0]
        torch.testing.assert_close(residual[i, :size], whitened)
        assert (residual[i, size:] == 0).all()
        columns = part.whitened_jacobian(tangents[:, i : i + 1], at, single)[:, 0]
        torch.testing.assert_close(jacobian[:, i, :size], columns)
    left, right = (applied * v).sum(1), (x * back).flatten(1).sum(1)
    scale = applied.norm(dim=1) * v.norm(dim=1)
    assert ((left - right).abs() / scale).max() < 1e-5


def test_draws_follow_the_weights_and_the_noise_of_each_operator():
    """Mutants: kinds in turn or equally often, one noise range for all, masks of other kinds."""
    parts = {name: PARTS[name]() for name in ("inpaint", "gaussian", "denoise")}
    task = Mixture(SHAPE, parts, {"inpaint": 1, "gaussian": 2, "denoise": 1})
    obs = task.sample(torch.zeros(2000, *SHAPE), generator())
    kind = obs.params["kind"]
    share = torch.bincount(kind) / 2000
    assert (share - torch.tensor([0.25, 0.5, 0.25])).abs().max() < 0.05
    assert obs.sigma[kind == 0].unique().tolist() == pytest.approx([0.1])
    assert obs.sigma[kind == 2].unique().tolist() == pytest.approx([0.8])
    drawn = obs.sigma[kind == 1]
    assert (drawn.min(), drawn.max()) == pytest.approx((0.3, 0.4), abs=2e-3)
    assert (obs.params["mask"][kind != 0] == 0).all()
    assert (obs.params["filter"][kind != 1] == 0).all()
    assert (obs.params["mask"][kind == 0].flatten(1).mean(1) > 0.5).all()
    noise = obs.y[kind == 2].std(1)
    assert (noise / 0.8 - 1).abs().max() < 0.2
    shared = Mixture(SHAPE, parts, sigma=(0.05, 0.5))
    sigma = shared.sample(torch.zeros(2000, *SHAPE), generator()).sigma
    assert abs((sigma / 0.05).log10().mean() - 0.5) < 0.04
    torch.manual_seed(3)
    again = task.sample(torch.zeros(2000, *SHAPE), generator())
    assert all(
        torch.equal(a, b)
        for a, b in zip(obs.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_encoders_see_the_operator_and_what_its_solver_sees(task, obs):
    """Ridge estimate, one-hot kind, kernel, mask, log sigma of each sample, on one grid.

    Mutants: the estimate of another sample's operator, parameters of a kind that has none, one
    kernel channel for each kind that draws kernels.
    """
    features = task.features(obs)
    assert features.shape == (28, 2 + 7 + 1 + 25 + 1, 12, 16) == (28, *task.feature_shape)
    single = torch.cat([task.features(obs[i]) for i in range(28)])
    torch.testing.assert_close(features, single, rtol=1e-4, atol=1e-5)
    for i in range(28):
        part, seen = own(task, obs, i)
        torch.testing.assert_close(
            features[i, :2], ridge_estimate(part, seen)[0], rtol=1e-3, atol=1e-4
        )
    kind = obs.params["kind"]
    assert torch.equal(features[:, 2:9, 5, 5].argmax(1), kind)
    assert (features[:, 2:9].sum(1) == 1).all()
    names = list(obs.params)
    assert names == ["kind", "mask", "filter", "rows"]
    assert torch.equal(features[:, 9:10], obs.params["mask"])
    blurred = (kind == 2) | (kind == 3)
    assert (features[blurred, 10].flatten(1).sum(1) - 1).abs().max() < 1e-5
    assert (features[~blurred, 10:35] == 0).all()
    assert torch.equal(features[:, -1, 0, 0], obs.sigma.log())


def test_pairwise_rewards_are_those_of_single_pairs(task, obs):
    """Mutant: columns in the order of the kinds."""
    x = images(5, 8)
    fast, slow = task.pairwise_log_reward(x, obs), Task.pairwise_log_reward(task, x, obs)
    assert fast.shape == (5, 28)
    torch.testing.assert_close(fast - fast[:1], slow - slow[:1], rtol=1e-3, atol=0.1)


def test_mixtures_with_black_boxes():
    """Not linear, not differentiable, and every feature finite: a quality of 0 has no logarithm.

    Mutants: the log of parameters that a sample does not have; an adjoint of JPEG; features whose
    number depends on the kinds in the batch.
    """
    shape = (1, 16, 16)
    parts = {
        "jpeg": JPEG(shape, (5, 50), 0.1),
        "phase": PhaseRetrieval(shape, 0.1),
        "denoise": Denoise(shape, 0.1),
    }
    task = Mixture(shape, parts)
    assert not task.differentiable
    assert not task.linear
    obs = task.sample(torch.rand(12, *shape, generator=generator()), generator(1))
    features = task.features(obs)
    assert features.isfinite().all()
    kind = obs.params["kind"]
    for k, channels in ((0, 1), (1, 4), (2, 1)):
        one = task.features(obs[kind == k])
        torch.testing.assert_close(one, features[kind == k])
        assert (one[:, channels:4] == 0).all()
        assert (one[:, :channels].flatten(1).norm(dim=1) > 0).all()
    phase = Mixture(shape, {"phase": parts["phase"], "denoise": parts["denoise"]})
    assert phase.differentiable
    with pytest.raises(ValueError, match="not a LinearPhysics"):
        phase.adjoint(obs.y, {"kind": kind})


def test_mixtures_of_vectors():
    """Measurements of other lengths, and their ridge estimates as features.

    Mutant: an image's grid taken for granted.
    """
    parts = {
        "few": LinearMeasurement(measurements=2, dim=5, seed=0, sigma=0.3),
        "many": LinearMeasurement(measurements=7, dim=5, seed=1, sigma=0.3),
    }
    task = Mixture((5,), parts)
    x = torch.randn(6, 5, generator=generator())
    obs = task.sample(x, generator(1))
    assert obs.y.shape == (6, 7)
    assert task.features(obs).shape == (6, 7)
    for i in range(6):
        part, single = own(task, obs, i)
        torch.testing.assert_close(
            task.log_reward(x, obs)[i], part.log_reward(x[i : i + 1], single)[0]
        )


def test_errors_name_the_part():
    """Mutant: kernels of two sizes broadcast, or fail at the first batch that has both."""
    small = Deblur(SHAPE, MotionKernel(5), 0.1)
    with pytest.raises(
        ValueError, match=r"tasks\.b draws 'filter' of shape \(1, 7, 7\).*\(1, 5, 5\)"
    ):
        Mixture(SHAPE, {"a": small, "b": PARTS["motion"]()})
    with pytest.raises(ValueError, match="at least one measurement"):
        Mixture(SHAPE, {})
    with pytest.raises(ValueError, match=r"tasks\.a must be for data of shape \(1, 3, 3\)"):
        Mixture((1, 3, 3), {"a": small})
    with pytest.raises(ValueError, match=r"tasks\.a must be a measurement with Gaussian noise"):
        Mixture(SHAPE, {"a": Denoise(SHAPE, 0.1, "poisson")})
    with pytest.raises(
        ValueError, match=r"weights must be a number > 0 for each of a, got \{'b': 1\}"
    ):
        Mixture(SHAPE, {"a": small}, {"b": 1})


def test_adopts_observations_of_single_tasks(task) -> None:
    """The same likelihood of any image, for fixed kernels and for smaller ones, too.

    Mutants: another operator, a kernel that is moved, cut or forgotten, padding that counts, the
    noise level of the mixture.
    """
    x = images(3)
    singles = {
        "inpaint": PARTS["inpaint"](),
        "superres": PARTS["superres"](),
        "gaussian": Deblur(SHAPE, GaussianKernel(0.9, 5), 0.3),
        "motion": Deblur(SHAPE, MotionKernel(5), 0.5),
        "sensing": PARTS["sensing"](),
        "denoise": Denoise(SHAPE, 0.05),
    }
    for name, single in singles.items():
        obs = single.sample(x, generator())
        adopted = task.adopt(name, single, obs)
        task.check(adopted)
        other = images(3, 7)
        found, wanted = task.log_reward(other, adopted), single.log_reward(other, obs)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)
        assert torch.equal(adopted.sigma, obs.sigma)
        clean = task.apply(x, adopted.params)
        torch.testing.assert_close(
            clean[:, : obs.y[0].numel()], single.apply(x, obs.params).flatten(1)
        )


def test_refuses_observations_that_no_operator_makes(task) -> None:
    """Each with what is wrong."""
    denoise = Denoise(SHAPE, 0.1)
    obs = denoise.sample(images(1), generator())
    with pytest.raises(ValueError, match="has no operator 'blur'"):
        task.adopt("blur", denoise, obs)
    with pytest.raises(ValueError, match=r"operator 'inpaint' has parameters \['mask'\]"):
        task.adopt("inpaint", denoise, obs)
    wide = Deblur(SHAPE, GaussianKernel(1.0, 9), 0.3)
    with pytest.raises(ValueError, match=r"parameter 'filter' must be of shape \(1, 7, 7\), got"):
        task.adopt("gaussian", wide, wide.sample(images(1), generator()))
