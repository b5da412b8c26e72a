import copy
import math

import pytest
import torch
from torch.distributions import Normal

from outsourced.tasks import (
    CompressedSensing,
    Deblur,
    Denoise,
    GaussianKernel,
    Inpaint,
    LinearMeasurement,
    Measurement,
    MotionKernel,
    NonlinearMeasurement,
    RandomBox,
    RandomPixels,
    SuperResolution,
)

SHAPE = (3, 16, 16)
FACTORIES = {
    "inpaint": lambda: Inpaint(SHAPE, RandomBox(2, 9), 0.3),
    "pixels": lambda: Inpaint(SHAPE, RandomPixels(0.1, 0.9), (0.1, 1.0)),
    "denoise": lambda: Denoise(SHAPE, (0.1, 1.0)),
    "superres": lambda: SuperResolution(SHAPE, 4, 0.2),
    "motion": lambda: Deblur(SHAPE, MotionKernel(7), 0.2, "zeros"),
    "sensing": lambda: CompressedSensing(SHAPE, 0.3, (0.1, 1.0)),
    "deblur": lambda: Deblur(SHAPE, GaussianKernel((0.4, 1.5)), (0.1, 1.0)),
    "linear": lambda: LinearMeasurement(measurements=7, dim=5, seed=0, sigma=0.4),
    "nonlinear": lambda: NonlinearMeasurement(
        "outsourced.tasks.functions.absolute_first", (4,), 0.4
    ),
}
LINEAR = [k for k in FACTORIES if k != "nonlinear"]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Measurement]:
    return {name: make() for name, make in FACTORIES.items()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(task: Measurement, n: int = 4, dtype=torch.float32):
    x = torch.rand((n, *task.data_shape), generator=generator(7), dtype=dtype) * 2 - 1
    return x, task.sample(x, generator(8))


@pytest.mark.parametrize("name", FACTORIES)
def test_log_reward_is_the_normalised_gaussian_log_density(tasks, name):
    """Mutants: m counts hidden pixels; sigma^2 for sigma; the normaliser dropped; mean for sum."""
    task = tasks[name]
    x, obs = draw(task)
    x = x + 0.1 * torch.randn(x.shape, generator=generator(1))
    log_prob = Normal(
        task.apply(x, obs.params).double(), obs.sigma.double().view(-1, *[1] * (obs.y.dim() - 1))
    ).log_prob(obs.y.double())
    mask = obs.params.get("mask", torch.ones(1)).double()
    expected = (log_prob * mask).flatten(1).sum(1)
    torch.testing.assert_close(task.log_reward(x, obs).double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", FACTORIES)
def test_batched_equals_single(tasks, name):
    """Mutant: the operator of sample 0, or of the last call, used for every sample."""
    task = tasks[name]
    x, obs = draw(task)
    single = torch.cat([task.log_reward(x[i : i + 1], obs[i]) for i in range(4)])
    torch.testing.assert_close(task.log_reward(x, obs), single, rtol=1e-5, atol=1e-4)
    features = torch.cat([task.features(obs[i]) for i in range(4)])
    torch.testing.assert_close(task.features(obs), features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(tasks, name):
    """Mutants: an adjoint without its mask or kernel flip; a comparison without abs."""
    task = tasks[name]
    x, obs = draw(task)
    v = torch.randn(obs.y.shape, generator=generator(3))
    left = (task.apply(x, obs.params) * v).flatten(1).sum(1)
    right = (x * task.adjoint(v, obs.params)).flatten(1).sum(1)
    scale = left.abs().max()
    assert scale > 0.1
    assert (left - right).abs().max() < 1e-5 * scale


def test_masked_pixels_are_silent(tasks):
    """Mutants: noise left in the hidden part of y; residual not masked; hidden part counted."""
    task = tasks["inpaint"]
    x, obs = draw(task)
    hidden = obs.params["mask"].expand_as(x) == 0
    assert hidden.any()
    assert (obs.y[hidden] == 0).all()
    assert torch.equal(task.count(obs), (~hidden).flatten(1).sum(1).float())
    changed = torch.where(hidden, 5.0, x)
    assert torch.equal(task.log_reward(x, obs), task.log_reward(changed, obs))
    assert (task.whitened_residual(x, obs)[hidden.flatten(1)] == 0).all()
    visible = torch.where(hidden, x, 5.0)
    assert (task.log_reward(visible, obs) < task.log_reward(x, obs) - 10).all()
    # a user's y may hold anything under the mask
    dirty = type(obs)(torch.where(hidden, 9.0, obs.y), obs.params, obs.sigma)
    assert torch.equal(task.log_reward(x, obs), task.log_reward(x, dirty))


@pytest.mark.parametrize("name", FACTORIES)
def test_residual_of_the_truth_is_chi_square(tasks, name):
    """Mutants: noise variance sigma or sigma / 2; one noise draw shared by the batch; residual not
    divided by sigma. Bound: 5 standard deviations of a chi-square mean."""
    task = tasks[name]
    x, obs = draw(task, 200)
    square = task.whitened_residual(x, obs).square().sum(1)
    m = task.count(obs).sum().item()
    assert abs(square.sum().item() / m - 1) < 5 * math.sqrt(2 / m)
    z = (square - task.count(obs)) / (2 * task.count(obs)).sqrt()
    assert abs(z.std().item() - 1) < 0.3


def test_sigma_is_log_uniform_and_used_per_sample():
    """Mutants: uniform sigma; one sigma a batch; obs.sigma not the one that made the noise."""
    task = Denoise((1, 8, 8), (0.01, 1.0))
    x = torch.zeros(3000, 1, 8, 8)
    obs = task.sample(x, generator())
    position = (obs.sigma.log() - math.log(0.01)) / math.log(100)
    assert abs(position.mean() - 0.5) < 0.03
    assert abs(position.std() - 1 / math.sqrt(12)) < 0.02
    ratio = obs.y.flatten(1).std(1) / obs.sigma
    assert abs(ratio.mean() - 1) < 0.01
    assert ratio.std() < 0.12
    given = task.sample(x[:2], generator(), sigma=torch.tensor([0.5, 2.0])).sigma
    assert given.tolist() == [0.5, 2.0]


def test_given_parameters_are_used_and_randomness_is_the_generators(tasks):
    """Mutants: params ignored in favour of fresh ones; global random state."""
    task = tasks["inpaint"]
    x, obs = draw(task)
    again = task.sample(x, generator(9), params=obs.params)
    assert torch.equal(again.params["mask"], obs.params["mask"])
    assert not torch.equal(again.y, obs.y)
    torch.manual_seed(3)
    assert torch.equal(draw(task)[1].y, obs.y)


def test_calls_leave_no_trace(tasks):
    """Mutant: deepinv's buffers keep the last mask, so that a call without params works and the
    state_dict grows with the batch size."""
    task = tasks["inpaint"]
    x, obs = draw(task)
    task.log_reward(x, obs)
    assert task.physics.mask is None
    assert list(task.state_dict()) == []
    with pytest.raises(ValueError, match=r"params must be .*mask.*got \{\}"):
        task.apply(x, {})


def test_module_apply_still_works(tasks):
    """Mutant: Measurement.apply shadows nn.Module.apply and breaks initialisers of any parent."""
    seen = []
    torch.nn.Sequential(tasks["denoise"]).apply(lambda module: seen.append(type(module).__name__))
    assert {"Denoise", "Denoising", "Sequential"} <= set(seen)


@pytest.mark.parametrize("name", ["inpaint", "denoise", "superres", "deblur", "sensing", "linear"])
def test_forward_and_reverse_derivatives_match_finite_differences(tasks, name):
    """Mutants: A under no_grad; a detached mask product; an operator without forward-mode AD."""
    task = FACTORIES[name]().double()
    x, obs = draw(task, 2, torch.float64)
    tangent = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)

    def reward(v):
        return task.log_reward(v, obs)

    step = 1e-4
    finite = (reward(x + step * tangent) - reward(x - step * tangent)) / (2 * step)
    _, forward = torch.func.jvp(reward, (x,), (tangent,))
    (gradient,) = torch.autograd.grad(reward(x.requires_grad_()).sum(), x)
    assert finite.abs().min() > 0.1
    torch.testing.assert_close(forward, finite, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((gradient * tangent).flatten(1).sum(1), finite, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_whitened_jacobian_is_the_derivative_of_the_residual(tasks, name):
    """Mutants: + A / sigma for - A / sigma; params repeated per item and not per tangent; the
    sigma or mask of another sample."""
    task = tasks[name]
    x, obs = draw(task, 3)
    columns = torch.randn((2, *x.shape), generator=generator(5))
    jacobian = task.whitened_jacobian(columns, x, obs)
    for column, change in zip(columns, jacobian, strict=True):
        exact = torch.func.jvp(lambda u: task.whitened_residual(u, obs), (x,), (column,))[1]
        torch.testing.assert_close(change, exact, rtol=1e-4, atol=1e-4)


def test_nonlinear_measurements_have_a_reward_but_no_adjoint(tasks):
    """Mutant: linear = True for every physics, or y = x_1 instead of |x_1|."""
    task = tasks["nonlinear"]
    assert not task.linear
    x, obs = draw(task)
    mirrored = x * torch.tensor([-1.0, 1, 1, 1])
    assert torch.equal(task.log_reward(x, obs), task.log_reward(mirrored, obs))
    assert not torch.equal(task.log_reward(x, obs), task.log_reward(x + 0.5, obs))
    with pytest.raises(ValueError, match="not a LinearPhysics"):
        task.adjoint(obs.y, {})


def test_random_matrices_come_from_their_seed():
    """Mutant: the seed ignored, so that a reloaded run has another operator."""
    make = lambda seed: LinearMeasurement(measurements=50, dim=40, seed=seed, sigma=1.0)  # noqa: E731
    matrix = make(3).matrix
    assert torch.equal(matrix, make(3).matrix)
    assert not torch.equal(matrix, make(4).matrix)
    assert abs(matrix.square().sum(1).mean() - 1) < 0.15
    listed = LinearMeasurement([[1, 2], [3, 4]], sigma=1.0)
    moved = copy.deepcopy(listed).double()  # a closure over the first matrix would stay float32
    assert moved.adjoint(torch.eye(2).double(), {}).tolist() == [[1, 2], [3, 4]]
    assert listed.apply(torch.tensor([[1.0, 0.0]]), {}).tolist() == [[1.0, 3.0]]


def test_errors_name_the_thing(tasks):
    """Mutant: no validation, so that shapes broadcast and NaN spreads silently."""
    task = tasks["inpaint"]
    x, obs = draw(task)
    with pytest.raises(ValueError, match=r"task\.sigma must be > 0, got -0\.1"):
        Denoise(SHAPE, -0.1)
    with pytest.raises(ValueError, match="lo <= hi"):
        Denoise(SHAPE, (0.2, 0.1))
    with pytest.raises(ValueError, match=r"task\.x must be \(B, \*\(3, 16, 16\)\)"):
        task.log_reward(x[:, :1], obs)
    with pytest.raises(ValueError, match=r"obs\.repeat"):
        task.log_reward(x[:1], obs)
    with pytest.raises(ValueError, match=r"observation\.y must be finite"):
        task.log_reward(x, type(obs)(obs.y / 0, obs.params, obs.sigma))
    with pytest.raises(ValueError, match=r"must return \(2, 1, 16, 16\)"):
        Inpaint(SHAPE, lambda n, shape, g: torch.ones(n, 1, 8, 8), 0.1)
    with pytest.raises(ValueError, match=r"0 \(hidden\) and 1"):
        Inpaint(SHAPE, lambda n, shape, g: torch.full((n, 1, 16, 16), 0.5), 0.1)
    with pytest.raises(ValueError, match="divides 16x16, got 3"):
        SuperResolution(SHAPE, 3, 0.1)
    with pytest.raises(ValueError, match="measurements=None"):
        LinearMeasurement(dim=3, seed=0, sigma=0.1)
    with pytest.raises(ValueError, match="names nothing importable"):
        NonlinearMeasurement("outsourced.tasks.functions.nothing", (2,), 0.1)
