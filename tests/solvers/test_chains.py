"""Chains of all kernels against closed-form posteriors, and their own account of themselves."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from outsourced import moves
from outsourced.moves import HMC_TARGET, MALA_TARGET, PCN_TARGET, mala
from outsourced.posterior import Posterior
from outsourced.priors import CallablePrior, LinearGaussian
from outsourced.solvers import Hmc, Mala, Pcn
from outsourced.solvers.chains import _spread
from outsourced.tasks import LinearMeasurement, NonlinearMeasurement, Observation, Task

MATRIX, SIGMA, BETA = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.4, 1.7


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LinearGaussian(matrix=[[1.0, 0, 0], [0.5, 1.5, 0], [0, 0.2, 1.0]], bias=[0.3, 0, 0])
    return Posterior(prior, LinearMeasurement(MATRIX, sigma=SIGMA), beta=BETA)


def observations(posterior: Posterior) -> Observation:
    return posterior.simulate(2, torch.Generator().manual_seed(8))[2]


TARGETS = {Pcn: PCN_TARGET, Mala: MALA_TARGET, Hmc: HMC_TARGET}


@pytest.mark.parametrize(
    ("kind", "steps", "start", "precondition", "rhat"),
    [
        (Mala, 200, "prior", True, 1.05),
        (Mala, 200, "laplace", True, 1.05),
        (Mala, 1200, "prior", False, 1.15),
        (Pcn, 2000, "prior", False, 1.15),
        (Pcn, 100, "prior", True, 1.05),
        (Hmc, 120, "prior", False, 1.05),
        (Hmc, 80, "laplace", True, 1.05),
    ],
)
def test_linear_gaussian(posterior, generator, kind, steps, start, precondition, rhat) -> None:
    """Mean and covariance within 5 Monte-Carlo errors, and chains that agree.

    Mutant: rows of chains and observations in different orders; beta forgotten in the gradient or
    in the value; the prior left out; adaptation that never stops; samples x of other z; a matrix
    without its mean, or a Metropolis test without the matrix's density; no Metropolis test.
    """
    obs = observations(posterior)
    solver = kind(
        posterior,
        steps=steps,
        burn_in=200,
        chains=32,
        thin=4,
        start=start,
        precondition=precondition,
    )
    n = 32 * steps // 4
    samples = solver(obs, n, generator)
    mean, covariance, _ = posterior.prior.noise_posterior(MATRIX, obs.y, SIGMA / BETA**0.5)
    std = covariance.diagonal().sqrt()
    ess = samples.diagnostics["ess_bulk"]
    assert (samples.diagnostics["rhat"] < rhat).all()
    assert (ess > 150).all()
    assert ((samples.z.mean(0) - mean).abs() < 5 * std / ess.sqrt()).all()
    for b in range(2):
        gap = samples.z[:, b].T.cov() - covariance
        assert (gap.abs() < 5 * torch.outer(std, std) * (2 / ess[b].min()).sqrt()).all()
    torch.testing.assert_close(samples.x[:50, 1], posterior.prior(samples.z[:50, 1]))
    acceptance = samples.diagnostics["acceptance"]
    assert acceptance.shape == samples.diagnostics["step"].shape == (2, 32)
    # The matrix is that of the posterior: pcn and hmc accept all, at their largest step. Above the
    # target where acceptance falls off a cliff: steps are averaged on this side of it.
    low, high = (0.999, 1.001) if precondition and kind is not Mala else (-0.08, 0.2)
    target = 0.0 if precondition and kind is not Mala else TARGETS[kind]
    assert target + low < acceptance.mean() < target + high


def test_laplace_makes_it_scale_free(posterior, generator) -> None:
    """With the Laplace covariance steps are large whatever sigma is, and few moves mix.

    Mutant: precondition with the curvature, or with 1 / curvature without the prior's 1; start at
    the mode of another chain's observation.
    """
    task = LinearMeasurement(MATRIX, sigma=0.002)
    sharp = Posterior(posterior.prior, task)
    obs = observations(sharp)
    solver = Mala(sharp, 400, 100, chains=4, thin=4, start="laplace", precondition=True)
    samples = solver(obs, 400, generator)
    assert (samples.diagnostics["step"] > 0.8).all()
    assert (samples.diagnostics["rhat"] < 1.05).all()
    mean, covariance, _ = sharp.prior.noise_posterior(MATRIX, obs.y, 0.002)
    tolerance = 5 * covariance.diagonal().sqrt() / samples.diagnostics["ess_bulk"].sqrt()
    assert ((samples.z.mean(0) - mean).abs() < tolerance).all()
    assert (samples.diagnostics["ess_bulk"] > 100).all()
    for b in range(2):
        ratio = torch.linalg.solve(covariance.double(), samples.z[:, b].T.cov().double())
        assert ((torch.linalg.eigvals(ratio).real - 1).abs() < 0.5).all()


def test_given_start_and_two_modes(generator: torch.Generator) -> None:
    """Chains that start in the two modes of y = |z| stay there, and R-hat says so.

    Mutant: a start that is ignored or given to the chains in another order; R-hat over the chains
    of all observations, or within chains only.
    """
    task = NonlinearMeasurement(torch.abs, (1,), sigma=0.1)
    posterior = Posterior(LinearGaussian(dim=1), task)
    obs = Observation(torch.tensor([[2.0], [1.0]]), {}, torch.full((2,), 0.1))
    sign = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, -1.0]])  # chains x observations
    samples = Mala(posterior, 300, 50, chains=3, start=(obs.y.T * sign)[..., None])(
        obs, 100, generator
    )
    torch.testing.assert_close(samples.z[:3, :, 0].sign(), sign)
    assert samples.diagnostics["rhat"][0] > 1.5  # ranks bound it below 2
    assert samples.diagnostics["rhat"][1] < 1.1
    # Both modes have precision 1 + 1 / sigma^2: their means are y / (1 + sigma^2).
    mean = samples.z[:, :, 0].abs().mean(0)
    torch.testing.assert_close(mean, obs.y[:, 0] / 1.01, rtol=0, atol=0.06)


def test_one_observation_does_not_see_another(posterior) -> None:
    """Chains of an observation are the same beside any other, for the same noise.

    Mutant: a step, an acceptance or a preconditioner shared by the batch.
    """
    obs = observations(posterior)
    other = Observation(torch.stack([obs.y[0], obs.y[1] + 30]), {}, obs.sigma)
    solver = Mala(posterior, 100, 100, chains=2, start="laplace", precondition=True)
    first, second = (solver(o, 8, torch.Generator().manual_seed(4)) for o in (obs, other))
    torch.testing.assert_close(first.z[:, 0], second.z[:, 0], rtol=0, atol=0)
    assert not torch.equal(first.z[:, 1], second.z[:, 1])


def test_counts_and_repeats(posterior, monkeypatch) -> None:
    """One evaluation of f per move, at the start and per sample; seeds repeat; the step freezes.

    Mutant: the value evaluated apart from the gradient; thinning that keeps or drops one too many;
    adaptation that goes on after burn-in.
    """
    steps = []

    def spy(state, value_and_grad, step, *rest):
        steps.append(step)
        return mala(state, value_and_grad, step, *rest)

    monkeypatch.setattr(moves, "mala", spy)
    obs = observations(posterior)
    solver = Mala(posterior, steps=43, burn_in=20, chains=3, thin=10)
    samples = solver(obs, 12, torch.Generator().manual_seed(4))
    assert samples.prior_calls == 2 * 3 * (1 + 20 + 40) + 2 * 12
    assert samples.log_weight is None
    assert len(steps) == 60
    assert all((a != b).any() for a, b in pairwise(steps[:21]))
    assert all(torch.equal(step, steps[20]) for step in steps[20:])
    torch.testing.assert_close(samples.diagnostics["step"].T.flatten(), steps[20])
    again = solver(obs, 12, torch.Generator().manual_seed(4))
    assert torch.equal(samples.z, again.z)
    assert len(samples.z[:, 0].unique(dim=0)) > 6  # states of different times and chains


@pytest.mark.parametrize(("n", "kept", "chains"), [(12, 4, 3), (5, 7, 5), (7, 100, 4), (1, 4, 1)])
def test_spread(n: int, kept: int, chains: int) -> None:
    """n distinct states, chains used equally, the last time included.

    Mutant: every (kept * chains / n)-th of the flattened states, which can be all of one chain.
    """
    time, chain = _spread(n, kept, chains)
    assert len(set(zip(time.tolist(), chain.tolist(), strict=True))) == n
    counts = torch.bincount(chain, minlength=chains)
    assert counts.max() - counts.min() <= 1
    assert time.min() >= 0
    assert time.max() == kept - 1


class Flat(Task):
    """No likelihood of a known form, and none at all for z_0 > 0 where asked."""

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        return torch.where(x[:, 0] < obs.y[:, 0], x.sum(1), -torch.inf)


def test_errors(posterior) -> None:
    """Refused before any work. Mutant: chains that never leave a start of reward zero."""
    obs = observations(posterior)
    for argument, value, text in (
        ("burn_in", -1, r"solver\.burn_in must be >= 0, got -1"),
        ("chains", 0, r"solver\.chains must be >= 1, got 0"),
        ("thin", 0, r"solver\.thin must be >= 1, got 0"),
        ("steps", 19, r"solver\.steps must be >= 20, got 19"),
        ("step", 0.0, r"solver\.step must be > 0, got 0"),
        ("start", "mode", r"solver\.start must be a tensor or one of .* got 'mode'"),
    ):
        with pytest.raises(ValueError, match=text):
            Mala(posterior, **{argument: value})
    with pytest.raises(ValueError, match=r"= 40 states per observation, got n = 41"):
        Mala(posterior, steps=20, thin=2)(obs, 41)
    with pytest.raises(ValueError, match=r"= \(2, 2, 3\), got \(2, 3\)"):
        Mala(posterior, steps=20, chains=2, start=torch.zeros(2, 3))(obs, 1)
    with pytest.raises(ValueError, match="n >= 1"):
        Mala(posterior)(obs, 0)
    black_box = CallablePrior(lambda z: z, (3,), differentiable=False)
    for kind in (Mala, Hmc):
        with pytest.raises(ValueError, match="gradient of log r, but the prior CallablePrior"):
            kind(Posterior(black_box, posterior.task))
    with pytest.raises(ValueError, match="the prior CallablePrior is a black box"):
        Pcn(Posterior(black_box, posterior.task), precondition=True)
    with pytest.raises(ValueError, match=r"solver\.step must be > 0 and <= 1 for pcn, got 1.5"):
        Pcn(posterior, step=1.5)
    with pytest.raises(ValueError, match=r"solver\.leapfrog must be >= 1, got 0"):
        Hmc(posterior, leapfrog=0)
    flat = Posterior(LinearGaussian(dim=2), Flat())
    with pytest.raises(ValueError, match=r"start=laplace .* got noise \(2,\) and Flat"):
        Mala(flat, start="laplace")
    nowhere = Observation(torch.tensor([[9.0], [-9.0]]), {}, torch.ones(2))
    with pytest.raises(ValueError, match=r"got 4 that are not, for observations \[1\]"):
        Mala(flat)(nowhere, 1, torch.Generator().manual_seed(0))
