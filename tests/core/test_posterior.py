"""Where prior and task meet: rewards, their derivatives, and the bookkeeping of prior calls."""

import math

import pytest
import torch
from torch.nn import functional as F

from outsourced.guidance import LaplaceTarget
from outsourced.laplace import fit_laplace
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.priors.base import Prior
from outsourced.tasks import LinearMeasurement, NonlinearMeasurement
from outsourced.tasks.base import Observation, Task


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


class Curved(Prior):
    """x = tanh(W z): three noises, five data."""

    def __init__(self, differentiable: bool = True, dtype: torch.dtype = torch.float64):
        super().__init__((3,), (5,), differentiable)
        self.register_buffer("weight", draw(5, 3).to(dtype))
        self.largest = 0
        self.freeze()

    def forward(self, z):
        self.largest = max(self.largest, len(z))
        return torch.tanh(F.linear(z, self.weight))


class Score(Task):
    """log r = -|y - x|^3 / 3: no residual."""

    def log_reward(self, x, obs):
        return -(obs.y - x).abs().pow(3).sum(-1) / 3

    def features(self, obs):
        return 2 * obs.y


class Quadratic(Score):
    """Gaussian likelihood of x^2, so that the residual is nonlinear in x."""

    def whitened_residual(self, x, obs):
        return (obs.y - x.square()) / obs.sigma[:, None]

    def whitened_jacobian(self, columns, x, obs):
        return -2 * x * columns / obs.sigma[:, None]

    def log_reward(self, x, obs):
        return -0.5 * self.whitened_residual(x, obs).square().sum(-1)


def observe(n: int) -> Observation:
    return Observation(draw(n, 5, seed=1), {}, 0.5 + torch.arange(n).double() / 10)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing_but_the_batch_size(chunk):
    """Mutant: the first observations reused in every chunk, or the last chunk dropped."""
    whole = Posterior(Curved(), Quadratic(), beta=0.7)
    prior = Curved()
    pieces = Posterior(prior, Quadratic(), beta=0.7, chunk=chunk)
    z, obs = draw(7, 3, seed=2), observe(7)
    expected = 0.7 * Quadratic().log_reward(torch.tanh(z @ prior.weight.T), obs)
    close(pieces.log_reward(z, obs), expected)
    close(pieces.decode(z), torch.tanh(z @ prior.weight.T))
    assert prior.largest == min(chunk, 7)
    for name in ("grad_log_reward", "gauss_newton"):
        for a, b in zip(getattr(whole, name)(z, obs), getattr(pieces, name)(z, obs), strict=True):
            close(a, b)


def test_beta_tempers_the_reward_and_not_the_prior():
    """Mutant: beta left out of one of the three derivatives, or applied to |z|^2 too."""
    cold, plain = Posterior(Curved(), Quadratic(), beta=3.0), Posterior(Curved(), Quadratic())
    z, obs = draw(4, 3, seed=2), observe(4)
    for name in ("grad_log_reward", "gauss_newton"):
        for a, b in zip(getattr(cold, name)(z, obs), getattr(plain, name)(z, obs), strict=True):
            close(a, 3 * b)
    close(cold.log_reward(z, obs), 3 * plain.log_reward(z, obs))
    close(cold.log_density(z, obs) - cold.log_reward(z, obs), -0.5 * z.square().sum(-1))


@pytest.mark.parametrize("task", [Score(), Quadratic()], ids=["score", "quadratic"])
def test_gradient_matches_finite_differences(task):
    """Mutant: the gradient in x instead of z, or summed over the batch."""
    posterior, z, obs = Posterior(Curved(), task, beta=1.7), draw(4, 3, seed=2), observe(4)
    with torch.no_grad():  # callers need not enable gradients
        value, gradient = posterior.grad_log_reward(z, obs)
    close(value, posterior.log_reward(z, obs))
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    numeric = [
        (posterior.log_reward(z + e, obs) - posterior.log_reward(z - e, obs)) / 2e-6 for e in step
    ]
    torch.testing.assert_close(gradient, torch.stack(numeric, -1), rtol=1e-6, atol=1e-7)
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert not z.requires_grad


@pytest.mark.parametrize(
    "task",
    [
        Quadratic(),
        LinearMeasurement(measurements=5, dim=5, seed=3, sigma=0.3).double(),
        NonlinearMeasurement(torch.square, (5,), sigma=0.3),
    ],
    ids=["quadratic", "linear", "nonlinear"],
)
def test_gauss_newton_matches_the_jacobian_of_the_residual(task):
    """Against reverse-mode autograd. Mutant: J of the prior alone, a Hessian instead of J^T J, or
    the sign of the gradient."""
    prior = Curved()
    posterior, z, obs = Posterior(prior, task, beta=0.7), draw(4, 3, seed=2), observe(4)
    with torch.no_grad():
        value, gradient, matrix = posterior.gauss_newton(z, obs)
    exact_value, exact_gradient = posterior.grad_log_reward(z, obs)
    close(value, exact_value)
    close(gradient, exact_gradient)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda noise, i=i: task.whitened_residual(prior(noise[None]), obs[i])[0], z[i]
        )
        close(matrix[i], 0.7 * jacobian.T @ jacobian)


def test_prior_calls_count_every_pass():
    """Mutant: chunks counted instead of samples, or one method that forgets."""
    posterior = Posterior(Curved(), Quadratic(), chunk=2)
    z, obs = draw(5, 3), observe(5)
    seen = []
    for call in (posterior.log_reward, posterior.grad_log_reward, posterior.gauss_newton):
        call(z, obs)
        seen.append(posterior.prior_calls)
    posterior.decode(z[:3])
    posterior.log_density(z[:1], obs[0])
    assert [*seen, posterior.prior_calls] == [5, 10, 15, 19]


def test_black_boxes_give_rewards_and_refuse_derivatives():
    """Mutant: zeros for the gradient of a prior that has none."""
    posterior, z, obs = Posterior(Curved(differentiable=False), Quadratic()), draw(2, 3), observe(2)
    close(posterior.log_reward(z, obs), Posterior(Curved(), Quadratic()).log_reward(z, obs))
    for call, what in ((posterior.grad_log_reward, "gradient"), (posterior.gauss_newton, "matrix")):
        with pytest.raises(ValueError, match=rf"{what}.* since the prior Curved is a black box"):
            call(z, obs)
    assert posterior.prior_calls == 2  # refused before any work


def test_black_box_tasks_refuse_derivatives_too(monkeypatch):
    """Mutant: only the prior is asked, and rounding gives a gradient of zero everywhere."""
    posterior, z, obs = Posterior(Curved(), Quadratic()), draw(2, 3), observe(2)
    assert posterior.differentiable
    monkeypatch.setattr(Quadratic, "differentiable", False)
    assert not posterior.differentiable
    with pytest.raises(ValueError, match="since the task Quadratic is a black box"):
        posterior.grad_log_reward(z, obs)


def test_gauss_newton_needs_a_residual_and_vector_noise():
    """Mutant: an attribute error deep inside."""
    with pytest.raises(ValueError, match=r"needs vector noise .* got noise \(3,\) and Score"):
        Posterior(Curved(), Score()).gauss_newton(draw(2, 3), observe(2))
    with pytest.raises(ValueError, match=r"got noise \(1, 2, 2\) and Quadratic"):
        Posterior(Curved(), Quadratic()).gauss_newton(draw(2, 1, 2, 2), observe(2))


def test_low_precision_stays_inside_the_prior():
    """Mutant: bfloat16 leaking into the reward, or a precision that is ignored."""
    prior = Curved(dtype=torch.float32)
    z = draw(64, 3, seed=2).float()
    obs = Observation(draw(64, 5, seed=1).float(), {}, torch.full((64,), 0.5))
    low, full = Posterior(prior, Quadratic(), precision="bfloat16"), Posterior(prior, Quadratic())
    x, exact = low.decode(z), full.decode(z)
    assert x.dtype == torch.float32
    assert 1e-4 < (x - exact).abs().max() < 2e-2
    # The reward is the exact reward of the rounded x.
    assert torch.equal(low.log_reward(z, obs), Quadratic().log_reward(x, obs))
    value, gradient = low.grad_log_reward(z, obs)
    exact_gradient = full.grad_log_reward(z, obs)[1]
    assert value.dtype == gradient.dtype == torch.float32
    assert 0 < (gradient - exact_gradient).norm() < 0.05 * exact_gradient.norm()


def test_features_are_those_of_the_task():
    """Mutant: y itself, without what the task makes of its operator."""
    obs = observe(2)
    assert torch.equal(Posterior(Curved(), Score()).features(obs), 2 * obs.y)


@pytest.fixture
def linear() -> tuple[Posterior, LinearGaussian, LinearMeasurement]:
    prior = LinearGaussian(dim=3, data_dim=4, seed=1)
    task = LinearMeasurement(measurements=2, dim=4, seed=2, sigma=0.3)
    return Posterior(prior, task, chunk=700), prior, task


def test_simulated_triples_follow_the_joint_law(linear):
    """Mutant: noise of variance sigma, y of another x, or one draw shared by the batch."""
    posterior, prior, task = linear
    generator, n = torch.Generator().manual_seed(0), 4000
    z, x, obs = posterior.simulate(n, generator)
    assert torch.equal(x, prior(z))
    assert posterior.prior_calls == n
    residual = task.whitened_residual(x, obs)
    for value in (z, residual):
        entries = value.numel()
        assert abs(value.mean()) < 4 / math.sqrt(entries)
        assert abs(value.var() - 1) < 4 * math.sqrt(2 / entries)
        assert value.unique(dim=0).shape[0] == n
    cross = z.T @ residual / n
    assert cross.abs().max() < 4 / math.sqrt(n)
    again = posterior.simulate(n, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], z)
    assert torch.equal(again[2].y, obs.y)


def test_linear_gaussian_problem_end_to_end(linear):
    """Prior, task and Laplace fit against the closed form. Mutant: the log-likelihood without its
    norm, or a Jacobian of A or of f alone."""
    posterior, prior, task = linear
    _, _, obs = posterior.simulate(5, torch.Generator().manual_seed(0))
    laplace = fit_laplace(
        LaplaceTarget(posterior, obs),
        torch.zeros(5, 3),
        1,
    )
    mean, covariance, log_z = prior.noise_posterior(task.matrix, obs.y, 0.3)
    precision = laplace.basis @ torch.diag_embed(1 + laplace.curvature) @ laplace.basis.mT
    torch.testing.assert_close(laplace.anchor, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(laplace.log_z, log_z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.linalg.inv(precision), covariance.expand(5, 3, 3), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "posterior.beta must be > 0, got 0.0"),
        ({"chunk": 0}, "posterior.chunk must be >= 1, got 0"),
        ({"precision": "float8"}, "posterior.precision must be one of .* got 'float8'"),
    ],
)
def test_bad_options_are_refused(options, message):
    """Mutant: a check that lets the boundary value through."""
    with pytest.raises(ValueError, match=message):
        Posterior(Curved(), Quadratic(), **options)
