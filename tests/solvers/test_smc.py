"""Annealed particles against closed forms: moments, evidence, and their own error bar."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.annealing import conditional_ess
from outsourced.posterior import Posterior
from outsourced.priors import CallablePrior, LinearGaussian
from outsourced.solvers import Smc
from outsourced.solvers.smc import next_share
from outsourced.tasks import LinearMeasurement, NonlinearMeasurement, Observation, Task

MATRIX, SIGMA, BETA = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.3, 1.7


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LinearGaussian(matrix=[[1.0, 0, 0], [0.5, 1.5, 0], [0, 0.2, 1.0]], bias=[0.3, 0, 0])
    return Posterior(prior, LinearMeasurement(MATRIX, sigma=SIGMA), beta=BETA, chunk=16_384)


def observations(posterior: Posterior, count: int = 2) -> Observation:
    return posterior.simulate(count, torch.Generator().manual_seed(8))[2]


def truth(posterior: Posterior, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log Z; r^beta is a wider Gaussian, of another norm."""
    wide = SIGMA / BETA**0.5
    mean, covariance, log_z = posterior.prior.noise_posterior(MATRIX, obs.y.double(), wide)
    norm = math.log(wide * math.sqrt(2 * math.pi)) - BETA * math.log(SIGMA * math.sqrt(2 * math.pi))
    return mean, covariance, log_z + 2 * norm


@pytest.mark.parametrize(
    ("kernel", "precondition"),
    [("pcn", True), ("mala", True), ("hmc", True), ("hmc", False), ("pcn", False)],
)
def test_linear_gaussian(posterior, generator, kernel: str, precondition: bool) -> None:
    """log Z within 0.05 and moments within 5 Monte-Carlo errors, with every kernel.

    Mutant: weights kept after resampling; moves at the whole of log r, or at the share of the stage
    before; no moves; the increment of log Z after resampling; beta counted twice; particles of one
    observation moved under another.
    """
    obs, m = observations(posterior), 8000
    moves = 20 if kernel == "pcn" and not precondition else 6
    solver = Smc(posterior, m, kernel, moves, ess=0.7, precondition=precondition, leapfrog=4)
    samples = solver(obs, m, generator)
    mean, covariance, log_z = truth(posterior, obs)
    found = samples.diagnostics
    assert ((found["log_z"] - log_z).abs() < 0.05).all()
    assert ((found["log_z"] - log_z).abs() < 5 * found["log_z_std"]).all()
    assert (found["log_z_std"] < 0.05).all()
    std = covariance.diagonal().sqrt()
    # Copies that moves have not told apart yet count once: half of the particles at worst.
    error = math.sqrt(2 / m)
    assert ((samples.z.mean(0) - mean).abs() < 5 * std * error).all()
    for b in range(2):
        gap = samples.z[:, b].double().T.cov() - covariance
        assert (gap.abs() < 5 * math.sqrt(2) * torch.outer(std, std) * error).all()
    torch.testing.assert_close(samples.x[:50, 1], posterior.prior(samples.z[:50, 1]))


def test_error_bar(posterior) -> None:
    """Over 60 runs, log Z scatters as its own estimate of its error says, moved well or badly.

    Mutant: the error of the last stage alone; of one that supposes perfect moves, which bad moves
    exceed several times; 1 / m forgotten.
    """
    obs = observations(posterior, 1)[torch.zeros(60, dtype=torch.long)]
    log_z = truth(posterior, obs[:1])[2]
    for moves, step, least in ((4, 0.5, 0.0), (1, 0.02, 0.25)):
        solver = Smc(posterior, 256, "pcn", moves, precondition=step > 0.1, step=step)
        found = solver(obs, 1, torch.Generator().manual_seed(1)).diagnostics
        scatter = (found["log_z"] - log_z).square().mean().sqrt()
        claimed = found["log_z_std"].square().mean().sqrt()
        assert scatter > least
        assert 0.6 < claimed / scatter < 1.8


def test_two_modes(generator: torch.Generator) -> None:
    """Both modes of y = |z| keep their half of the particles, where a chain stays in one.

    Mutant: a resampling that favours the particles listed first; moves by the covariance alone,
    without a Metropolis test.
    """
    task = NonlinearMeasurement(torch.abs, (1,), sigma=0.1)
    posterior = Posterior(LinearGaussian(dim=1), task)
    obs = Observation(torch.tensor([[2.0], [1.0]]), {}, torch.full((2,), 0.1))
    samples = Smc(posterior, 4000, "mala")(obs, 2000, generator)
    share = (samples.z[..., 0] > 0).double().mean(0)
    assert ((share - 0.5).abs() < 0.07).all()
    mean = samples.z[..., 0].abs().mean(0)
    torch.testing.assert_close(mean, obs.y[:, 0] / 1.01, rtol=0, atol=0.02)


def test_stages_are_those_of_an_observation(posterior) -> None:
    """A share is the largest with the wanted ESS of its observation, alone or beside others.

    Mutant: one temperature for the batch; a mean of the ESS over observations; bisection that stops
    at the wrong side.
    """
    value = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    value = value * torch.tensor([0.5, 10.0, 200.0])
    start = torch.tensor([0.2, 0.2, 0.2]).double()
    share = next_share(start, value, 0.6)
    assert float(share[0]) == 1.0
    flat = torch.zeros_like(value)
    reached = conditional_ess(flat, (share - start) * value)
    torch.testing.assert_close(reached[1:], torch.full((2,), 0.6).double(), rtol=0, atol=1e-6)
    assert reached[0] > 0.6
    for b in range(3):
        alone = next_share(start[b : b + 1], value[:, b : b + 1], 0.6)
        torch.testing.assert_close(alone, share[b : b + 1])
    obs = observations(posterior)
    sharp = Observation(obs.y + torch.tensor([[0.0], [20.0]]), {}, obs.sigma)
    solver = Smc(posterior, 64, "pcn")
    stages = solver(sharp, 1, torch.Generator().manual_seed(0)).diagnostics["stages"]
    assert stages[1] > stages[0] + 2


class Half(Task):
    """A hard constraint: reward 0 above y, log r = -inf."""

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        return torch.where(x[:, 0] < obs.y[:, 0], 0.0, -torch.inf)


def test_hard_constraints_and_black_boxes(generator: torch.Generator) -> None:
    """Rewards of zero are left out at the first stage, and Z is the mass of the rest.

    Mutant: -inf times a share of 0, which is NaN; a share that never rises where ESS cannot be had.
    """
    prior = CallablePrior(lambda z: z, (2,), differentiable=False)
    posterior = Posterior(prior, Half())
    obs = Observation(torch.tensor([[-1.0], [8.0]]), {}, torch.ones(2))
    samples = Smc(posterior, 6000)(obs, 3000, generator)
    assert (samples.z[:, 0, 0] < -1).all()
    mass = torch.special.ndtr(torch.tensor([-1.0, 8.0]).double())
    torch.testing.assert_close(samples.diagnostics["log_z"], mass.log(), rtol=0, atol=0.15)
    exact = -math.exp(-0.5) / math.sqrt(2 * math.pi) / float(mass[0])
    assert abs(float(samples.z[:, 0, 0].mean()) - exact) < 0.05


def test_errors(posterior) -> None:
    """Refused before any work. Mutant: a gradient of a black box in the middle of the stages."""
    for options, text in (
        ({"particles": 1}, r"solver\.particles must be >= 2, got 1"),
        ({"moves": 0}, r"solver\.moves must be >= 1, got 0"),
        ({"ess": 1.0}, r"solver\.ess must lie in \(0, 1\), got 1"),
        ({"stages": 0}, r"solver\.stages must be >= 1, got 0"),
        ({"kernel": "gibbs"}, r"solver\.kernel must be one of pcn, mala, hmc, got 'gibbs'"),
        ({"step": 2.0, "kernel": "pcn"}, r"solver\.step must be > 0 and <= 1 for pcn, got 2"),
        ({"particles": 11, "precondition": True}, r"4 particles for each dimension, got noise"),
    ):
        with pytest.raises(ValueError, match=text):
            Smc(posterior, **options)
    black_box = CallablePrior(lambda z: z, (3,), differentiable=False)
    with pytest.raises(ValueError, match="hmc needs the gradient of log r, but the prior"):
        Smc(Posterior(black_box, posterior.task), kernel="hmc")
    obs, calls = observations(posterior), posterior.prior_calls
    with pytest.raises(ValueError, match="64 particles per observation, got n = 65"):
        Smc(posterior, 64)(obs, 65)
    assert posterior.prior_calls == calls
    with pytest.raises(ValueError, match=r"within solver\.stages = 1, for 2 observations"):
        Smc(posterior, 64, stages=1)(observations(posterior), 1)
