"""Posteriors under operators and noise levels that differ between observations: closed forms."""

import pytest
import torch
from torch import Tensor

from outsourced.losses import Losses
from outsourced.metrics import evidence
from outsourced.objectives import LogVariance
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import CallablePrior
from outsourced.priors.analytic import condition_gaussian
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.solvers import Importance, Pcn
from outsourced.tasks import (
    BrushStrokes,
    CompressedSensing,
    Deblur,
    Denoise,
    Inpaint,
    MixedMasks,
    Mixture,
    MotionKernel,
    Observation,
    Outpaint,
)

SHAPE, DIM = (1, 8, 8), 3


class Problem:
    """x = W z + b as an image of 8 x 8 pixels, seen through a mixture of linear operators."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(DIM + 1, 1, 3, 3, generator=generator)
        waves = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear").flatten(1)
        self.weight, self.bias = 0.4 * waves[:DIM].T, 0.3 * waves[DIM]
        prior = CallablePrior(
            lambda z: (z @ self.weight.T + self.bias).view(-1, *SHAPE), (DIM,), SHAPE, True
        )
        masks = MixedMasks([Outpaint(0.3, 0.6, centred=False), BrushStrokes()])
        parts = {
            "inpaint": Inpaint(SHAPE, masks, 1.0),
            "motion": Deblur(SHAPE, MotionKernel(7), 1.0),
            "sensing": CompressedSensing(SHAPE, 0.2, 1.0),
            "denoise": Denoise(SHAPE, 1.0),
        }
        self.task = Mixture(SHAPE, parts, sigma=(0.7, 3.0))
        self.posterior = Posterior(prior, self.task)

    def observe(self, n: int, seed: int) -> tuple[Tensor, Observation]:
        z, _, obs = self.posterior.simulate(n, torch.Generator().manual_seed(seed))
        return z, obs

    def exact(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Means (B, d), covariances (B, d, d) and log Z (B,), each from its own matrix alone."""
        answers = []
        for i in range(len(obs)):
            one = obs[i]
            matrix = self.task.apply(torch.eye(64).view(64, *SHAPE), one.repeat(64).params).T
            seen = self.task.observed(one.y, one.params)[0]
            y = (one.y[0] - matrix @ self.bias)[seen]
            into_z = (matrix @ self.weight)[seen]
            answers.append(
                condition_gaussian(
                    torch.zeros(DIM).double(),
                    torch.eye(DIM).double(),
                    into_z.double(),
                    y.double(),
                    one.sigma.double(),
                )
            )
        mean, covariance, log_z = (torch.stack(part) for part in zip(*answers, strict=True))
        return mean, covariance, log_z


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def obs(problem) -> Observation:
    obs = problem.observe(12, 4)[1]
    assert len(obs.params["kind"].unique()) == 4
    return obs


def test_importance_sampling_finds_each_closed_form(problem, obs) -> None:
    """log Z within 5 Monte-Carlo errors, means and deviations to a tenth of a posterior deviation.

    Mutants: the operator, the mask or the noise level of another observation; padding that counts
    as observed; a likelihood without its normaliser.
    """
    mean, covariance, log_z = problem.exact(obs)
    assert log_z.std() > 3
    std = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert std.min() < 0.5 * std.max()  # they see different things
    samples = Importance(problem.posterior, 30_000)(obs, 4000, torch.Generator().manual_seed(1))
    weight = samples.proposal_log_weight
    assert weight is not None
    error = ((1 / evidence.ess(weight) - 1) / len(weight)).sqrt()
    assert error.max() < 0.05
    assert ((evidence.log_z(weight) - log_z).abs() / error).max() < 5
    assert ((samples.z.mean(0) - mean).abs() / std).max() < 0.1
    assert (samples.z.std(0) / std - 1).abs().max() < 0.1


def test_preconditioned_chains_find_it_too(problem, obs) -> None:
    """Crank-Nicolson moves in the metric of each observation's own Gauss-Newton matrix.

    Mutants: as above; a metric of another observation would show in the acceptance.
    """
    mean, covariance, _ = problem.exact(obs)
    std = covariance.diagonal(dim1=1, dim2=2).sqrt()
    solver = Pcn(problem.posterior, steps=200, burn_in=50, chains=16, thin=2, precondition=True)
    samples = solver(obs, 1600, torch.Generator().manual_seed(2))
    assert ((samples.z.mean(0) - mean).abs() / std).max() < 0.25
    assert (samples.z.std(0) / std - 1).abs().max() < 0.2
    assert samples.diagnostics["acceptance"].min() > 0.3


def test_gauss_newton_is_exact_for_every_operator(problem, obs) -> None:
    """I + its matrix is the closed-form precision, one step from anywhere the closed-form mean.

    Mutant: parameters repeated per item and not per tangent, so that J is of another operator.
    """
    mean, covariance, _ = problem.exact(obs)
    z = torch.randn(len(obs), DIM, generator=torch.Generator().manual_seed(3))
    _, gradient, matrix = problem.posterior.gauss_newton(z, obs)
    precision = matrix + torch.eye(DIM)
    torch.testing.assert_close(
        precision.double(), torch.linalg.inv(covariance), rtol=1e-3, atol=1e-3
    )
    step = torch.linalg.solve(precision, gradient - z)
    torch.testing.assert_close((z + step).double(), mean, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_one_sampler_learns_all_operators(problem) -> None:
    """Trained once without gradients or stored draws, it knows what every operator leaves open.

    log Z - ELBO of fresh observations, the bias of the evidence, and posterior means regressed on
    the closed form, which shrink by their squared error over the variance of the true ones.
    Mutants: the encoder sees neither kind nor operator (a slope of 0.88), or no noise level (0.85);
    features of another observation.
    """
    torch.manual_seed(0)
    shape = problem.task.feature_shape
    options = {"steps": 8, "width": 96, "depth": 2, "embedding": 48, "covariance": "full"}
    sampler = NoiseSampler((DIM,), shape, problem.posterior, informed="none", **options)
    mixture = PathMixture(sampler, problem.posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 6)
    losses = Losses(sampler, problem.posterior, LogVariance(), mixture, 6)
    before = gap(problem, sampler)[0].mean()
    optimizer = torch.optim.Adam(sampler.parameters(), lr=3e-3)
    steps, warm = 2400, 2000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        cpu = torch.Generator().manual_seed(step)
        z, x, _ = problem.posterior.simulate(96, cpu)
        batch = {"z": z, "x": x}
        if step < warm:
            loss, _ = losses.likelihood(batch, 96, cpu, cpu)
        else:
            loss, _ = losses.balance(batch, 32, cpu, cpu)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sampler.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    after, bias, slope = gap(problem, sampler)
    assert before > 2
    assert after.mean() < 0.25
    assert bias.abs().max() < 0.3
    assert bias.mean().abs() < 0.03
    assert abs(slope - 1) < 0.06


@torch.no_grad()
def gap(problem: Problem, sampler: NoiseSampler, paths: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """log Z - ELBO (B,), error of the log Z estimate (B,), slope of sample means on exact ones."""
    _, obs = problem.observe(48, 99)
    mean, _, log_z = problem.exact(obs)
    path = sampler.forward_path(obs, paths, torch.Generator().manual_seed(5))
    reward = problem.posterior.log_reward(
        path.end.flatten(0, 1), obs[torch.arange(48).repeat(paths)]
    ).view(paths, 48)
    weight = (reward - path.log_ratio).double()
    drawn = path.end.mean(0).double()
    slope = (drawn * mean).sum() / mean.square().sum()
    return log_z - weight.mean(0), evidence.log_z(weight) - log_z, slope
