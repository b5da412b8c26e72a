"""Corrections of a biased sampler, against closed-form posteriors."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.sampler import NoiseSampler
from outsourced.solvers import Amortized, corrections
from outsourced.solvers.corrections import Target, smc
from outsourced.tasks import LinearMeasurement, NonlinearMeasurement, Observation

MATRIX, SIGMA, BETA = torch.tensor([[1.0, 0.5]]), 0.7, 0.8


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LinearGaussian(matrix=[[1.0, 0.0], [0.5, 2.0]], bias=[0.3, -0.2])
    return Posterior(prior, LinearMeasurement(MATRIX, sigma=SIGMA), beta=BETA)


def biased(posterior: Posterior, perturb: float = 0.08, **options) -> NoiseSampler:
    """A sampler of random weights: not the posterior, and not far from the prior."""
    torch.manual_seed(0)
    options = {"steps": 4, "width": 16, "depth": 1, "embedding": 8} | options
    sampler = NoiseSampler((2,), (1,), posterior, **options)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.add_(perturb * torch.randn(parameter.shape))
    return sampler


def observations(*y: float) -> Observation:
    return Observation(torch.tensor(y)[:, None], {}, torch.full((len(y),), SIGMA))


def truth(posterior: Posterior, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
    wide = SIGMA / BETA**0.5
    mean, covariance, log_z = posterior.prior.noise_posterior(MATRIX, obs.y.double(), wide)
    norm = math.log(wide * math.sqrt(2 * math.pi)) - BETA * math.log(SIGMA * math.sqrt(2 * math.pi))
    return mean, covariance, log_z + norm


def check_moments(z: Tensor, mean: Tensor, covariance: Tensor, n: float) -> None:
    """Within 5 errors of n independent draws."""
    std = covariance.diagonal().sqrt()
    for b in range(z.shape[1]):
        assert ((z[:, b].mean(0) - mean[b]).abs() < 5 * std / math.sqrt(n)).all()
        gap = z[:, b].double().T.cov() - covariance
        assert (gap.abs() < 5 * torch.outer(std, std) * math.sqrt(2 / n)).all()


@pytest.mark.parametrize(
    ("correct", "moves"), [("imh", 60), ("pcn", 60), ("mala", 60), ("hmc", 16)]
)
def test_moves_make_a_biased_sampler_exact(posterior, generator, correct, moves) -> None:
    """4000 chains of a sampler that is far off end with the closed-form posterior.

    Mutant: imh without the ratio of weights, or with rewards for weights; moves without a
    Metropolis test; the first states returned; the chains of one observation under another.
    """
    obs, n = observations(0.4, 2.0), 4000
    sampler = biased(posterior)
    raw = Amortized(sampler, posterior)(obs, n, generator).z.mean(0)
    mean, covariance, _ = truth(posterior, obs)
    assert ((raw - mean).abs() > 0.2).any()
    solver = Amortized(sampler, posterior, correct, moves=moves)
    samples = solver(obs, n, generator)
    assert samples.log_weight is None
    check_moments(samples.z, mean, covariance, n)
    torch.testing.assert_close(samples.x[:9, 1], posterior.prior(samples.z[:9, 1]))
    assert samples.diagnostics["acceptance"].shape == (2, n)
    assert (samples.diagnostics["rhat"] < 1.5).all()  # of short chains; stuck ones are above 2


def test_imh_account(posterior) -> None:
    """Weights of all proposals give the evidence; acceptance is theirs; calls are counted.

    Mutant: weights of accepted states only, which are biased; acceptance of the proposals' rewards;
    data decoded again for the kept states.
    """
    obs, n, moves = observations(0.4, 1.0), 300, 20
    sampler = biased(posterior, 0.03)
    samples = Amortized(sampler, posterior, "imh", moves=moves)(
        obs, n, torch.Generator().manual_seed(0)
    )
    weight = samples.proposal_log_weight.double()
    assert weight.shape == (n * (moves + 1), 2)
    assert samples.prior_calls == weight.numel()
    log_z = weight.logsumexp(0) - math.log(len(weight))
    error = weight.softmax(0).square().sum(0).sqrt()
    assert ((log_z - truth(posterior, obs)[2]).abs() < 5 * error).all()
    # At stationarity: two independent paths, one weighted, are exchanged with min(1, w' / w).
    fresh = weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))]
    exchanged = (weight.softmax(0) * (fresh - weight).clamp_max(0).exp()).sum(0)
    found = samples.diagnostics["acceptance"].mean(1).double()
    torch.testing.assert_close(found, exchanged, rtol=0.1, atol=0)


def test_particles_along_paths(posterior, generator) -> None:
    """With a random flow as twist, log Z is unbiased and resampled particles are the posterior.

    Mutant: weights kept after a resampling; the flow of the states before it; no division by the
    flow of the last step but one; states resampled, but not their flow.
    """
    obs, m = observations(0.4, 1.0), 20_000
    sampler = biased(posterior, 0.05, flow=True)
    with torch.no_grad():
        for parameter in sampler.flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        target = Target(sampler, posterior, obs, sampler.encode(obs), generator)
        calls = posterior.prior_calls
        draws = smc(target, m, m, least=1.01)  # resampled at every step
    assert posterior.prior_calls - calls == 2 * m  # at the ends only
    mean, covariance, log_z = truth(posterior, obs)
    found = draws.diagnostics
    assert (found["resampled"] == 3).all()
    assert (found["log_z_std"] < 0.1).all()
    assert ((found["log_z"] - log_z).abs() < 4 * found["log_z_std"]).all()
    weight = draws.log_weight.double()
    torch.testing.assert_close(weight.logsumexp(0) - math.log(m), found["log_z"], atol=1e-4, rtol=0)
    check_moments(draws.z, mean, covariance, 1 / float(found["log_z_std"].max() ** 2))
    torch.testing.assert_close(draws.x[:9, 1], posterior.prior(draws.z[:9, 1]))


def test_without_resampling_it_is_importance(posterior, monkeypatch) -> None:
    """The flow telescopes: never resampled, the weights are those of whole paths.

    Mutant: a flow at the start that is counted twice, or left out at the end.
    """
    obs = observations(0.4, 2.0)
    sampler = biased(posterior, 0.15, flow=True)

    def first(log_weight: Tensor, n: int, _: torch.Generator) -> Tensor:
        return torch.zeros(n, log_weight.shape[1], dtype=torch.long)  # and no random number

    monkeypatch.setattr(corrections, "resample", first)
    with torch.no_grad():
        context = sampler.encode(obs)
        parts = sampler, posterior, obs, context
        draws = smc(Target(*parts, torch.Generator().manual_seed(2)), 8, 50, least=0.0)
        plain = Target(*parts, torch.Generator().manual_seed(2)).propose(50)
    assert (draws.diagnostics["resampled"] == 0).all()
    torch.testing.assert_close(draws.log_weight, plain.log_weight, rtol=0, atol=2e-5)


def test_gauss_newton_twist(posterior) -> None:
    """On a linear problem the twist is log h_k up to a constant: the expected reward of z_K.

    Mutant: spread for its square; the anchor unscaled by rho; the slope's part left out.
    """
    sampler, obs = biased(posterior, 0.0, informed="gauss_newton"), observations(0.4, 2.0)
    with torch.no_grad():
        laplace = sampler.encode(obs).laplace
    z = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    end = torch.randn(400_000, 1, 2, generator=torch.Generator().manual_seed(1))
    for k in (0, 2, 3):
        rho, spread = float(sampler.reference.rho[k]), float(sampler.reference.spread[k])
        points = torch.stack([z, z * 0])
        level = torch.stack([laplace.log_smoothed(p, rho, spread) for p in points])
        rewards = []
        for point in points:
            where = rho * point + spread * end
            gap = (obs.y[:, 0] - posterior.prior(where.flatten(0, 1)).unflatten(0, (-1, 2))
                   @ MATRIX[0]) / SIGMA  # fmt: skip
            rewards.append((-0.5 * BETA * gap.square()).exp().mean(0).log())
        difference = rewards[0] - rewards[1]
        torch.testing.assert_close(level[0] - level[1], difference, rtol=0, atol=0.02)


def test_gauss_newton_particles(posterior, generator) -> None:
    """Its closed-form twist gives the evidence with few particles where proposals are the prior's.

    Mutant: the Laplace approximations of the observations in another order than the particles.
    """
    sampler, obs = biased(posterior, 0.0, informed="gauss_newton"), observations(0.4, 4.0)
    solver = Amortized(sampler, posterior, "smc", candidates=4000, chunk=8000)
    found = solver(obs, 1000, generator).diagnostics
    assert found["resampled"][1] > 0
    assert ((found["log_z"] - truth(posterior, obs)[2]).abs() < 5 * found["log_z_std"]).all()
    assert (found["log_z_std"] < 0.1).all()


def test_given_steps_do_not_adapt(posterior) -> None:
    """A step that is given is kept; else each chain learns its own in the first half.

    Mutant: adaptation to the end; a step shared by the chains; the option ignored.
    """
    sampler, obs = biased(posterior), observations(0.4, 2.0)
    for correct in ("pcn", "mala", "hmc"):
        fixed = Amortized(sampler, posterior, correct, moves=10, step=0.4)(obs, 6)
        assert (fixed.diagnostics["step"] == 0.4).all()
        free = Amortized(sampler, posterior, correct, moves=10)(obs, 6).diagnostics["step"]
        assert len(free.unique()) > 6  # of 12 chains, some at the largest step
    few = Amortized(sampler, posterior, "mala", moves=3)(obs, 6)
    assert "rhat" not in few.diagnostics


def test_starts_are_resampled_where_there_are_more(posterior) -> None:
    """candidates > n lets chains start at posterior draws: few tiny moves leave them there.

    Mutant: the first n candidates; candidates that only cost.
    """
    sampler, obs = biased(posterior), observations(0.4, 2.0)
    mean, covariance, _ = truth(posterior, obs)
    options = {"moves": 2, "step": 0.01}
    solver = Amortized(sampler, posterior, "pcn", 20_000, chunk=40_000, **options)
    samples = solver(obs, 1000, torch.Generator().manual_seed(0))
    check_moments(samples.z, mean, covariance, 500)
    assert samples.prior_calls == 2 * (20_000 + 1000 * (1 + 2) + 1000)


def test_moves_of_a_sharp_posterior_use_its_laplace_covariance(generator) -> None:
    """Where sampler and posterior are one, moves at their first step are accepted.

    Mutant: the matrix of another observation, or none: steps of 0.3 in a posterior of std 0.01.
    """
    prior = LinearGaussian(dim=2)
    posterior = Posterior(prior, LinearMeasurement(torch.eye(2), sigma=0.01))
    sampler = NoiseSampler((2,), (2,), posterior, steps=4, width=16, depth=1, embedding=8,
                           informed="gauss_newton")  # fmt: skip
    obs = Observation(torch.tensor([[0.5, 1.0], [-1.0, 2.0]]), {}, torch.full((2,), 0.01))
    samples = Amortized(sampler, posterior, "hmc", moves=20, candidates=None, step=1.0)(
        obs, 200, generator
    )
    assert (samples.diagnostics["acceptance"] > 0.99).all()
    torch.testing.assert_close(samples.z.mean(0), obs.y / 1.0001, rtol=0, atol=0.004)


def test_one_observation_does_not_see_another(posterior) -> None:
    """Beside another neighbour, an observation has the same samples.

    Mutant: steps, resampling or acceptance over the batch.
    """
    sampler = biased(posterior, 0.15, flow=True)
    for correct, options in (
        *(("imh", {"moves": 9}), ("mala", {"moves": 9}), ("hmc", {"moves": 5})),
        *(("pcn", {"moves": 9}), ("smc", {"candidates": 32})),
    ):
        solver = Amortized(sampler, posterior, correct, **options)
        first, second = (
            solver(observations(0.4, y), 8, torch.Generator().manual_seed(4)) for y in (2.0, 30.0)
        )
        torch.testing.assert_close(first.z[:, 0], second.z[:, 0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(first.z[:, 1], second.z[:, 1])


def test_useless_starts_are_refused(posterior) -> None:
    """Rewards that are not finite are named. Mutant: chains that stay at a NaN for ever."""
    task = NonlinearMeasurement(lambda x: (1.01 + x).log(), (2,), SIGMA)
    broken = Posterior(posterior.prior, task)
    sampler = NoiseSampler((2,), (2,), broken, steps=2, width=16, depth=1, embedding=8)
    obs = Observation(torch.ones(1, 2), {}, torch.full((1,), SIGMA))
    with pytest.raises(ValueError, match=r"solver\.correct=mala needs a finite log_reward"):
        Amortized(sampler, broken, "mala")(obs, 8, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"correct=imh needs weights .* observations \[0\]"):
        Amortized(sampler, broken, "imh")(obs, 8, torch.Generator().manual_seed(0))
