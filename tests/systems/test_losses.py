"""Losses of one step: their optimum, their gradients, and what they refuse."""

import pytest
import torch

from outsourced.denoising import denoising_log_ratio
from outsourced.losses import Losses
from outsourced.objectives import (
    AdjointSampling,
    DetailedBalance,
    LogVariance,
    PathLikelihood,
    ReverseKL,
    SubTrajectoryBalance,
    TrajectoryBalance,
)

MIXED = {"on_policy": 2, "reference": 1, "simulated": 1}


def batches(p, steps, count):
    generator = torch.Generator().manual_seed(7)
    for step in range(steps):
        z, x, _ = p.posterior.simulate(count, generator)
        yield step, {"z": z, "x": x}


def elbo_gap(p, paths=512):
    """log Z - ELBO per observation: 0 for the exact sampler."""
    generator = torch.Generator().manual_seed(11)
    _, _, obs = p.posterior.simulate(16, generator)
    path = p.sampler.forward_path(obs, paths, generator)
    index = torch.arange(16).repeat(paths)
    with torch.no_grad():
        reward = p.posterior.log_reward(path.end.flatten(0, 1), obs[index]).reshape(paths, 16)
    return float((p.exact(obs)[2] - (reward - path.log_ratio).mean(0)).mean())


@pytest.mark.parametrize(
    ("objective", "flow", "steps", "bound"),
    [
        (TrajectoryBalance(), False, 250, 0.3),
        (LogVariance(), False, 250, 0.3),
        (SubTrajectoryBalance(0.9), True, 300, 0.3),
        (DetailedBalance(), True, 350, 0.45),
        (PathLikelihood(), False, 250, 0.3),
        (ReverseKL(), False, 250, 0.3),
        (AdjointSampling(), False, 250, 1.3),  # does not learn the variance
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_objective_reaches_the_posterior(problem, objective, flow, steps, bound) -> None:
    """Trained on a one-dimensional linear-Gaussian problem, the gap log Z - ELBO nearly closes.

    It is 5.2 nats at the start; the floor of the four kernels is below 0.1.
    Mutants: a sign, a stop-gradient on the scored side, a log Z that is not learned, the density of
    backward paths in the wrong direction.
    """
    p = problem(dim=1, measurements=1, sigma=0.3, steps=4, flow=flow, width=48)
    mixture = p.mixture(4, weights=MIXED)
    losses = Losses(p.sampler, p.posterior, objective, mixture, 4)
    before = elbo_gap(p)
    optimizer = torch.optim.Adam(p.sampler.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, batch in batches(p, steps, 48):
        cpu = torch.Generator().manual_seed(step)
        if isinstance(objective, PathLikelihood):
            loss, figures = losses.likelihood(batch, 48, cpu, cpu)
        else:
            loss, figures = losses.balance(batch, 48, cpu, cpu)
        assert figures["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.sampler.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    after = elbo_gap(p)
    assert before > 3 * bound
    assert -0.05 < after < bound


def test_losses_per_source(problem) -> None:
    """The mean of the losses by source, weighted by their paths, is the loss.

    Mutant: a source whose loss is that of another, or an average of averages.
    """
    p = problem()
    losses = Losses(p.sampler, p.posterior, TrajectoryBalance(), p.mixture(4, weights=MIXED), 4)
    (_, batch), generator = next(batches(p, 1, 8)), torch.Generator().manual_seed(0)
    loss, figures = losses.balance(batch, 8, generator, generator)
    parts = 2 * figures["loss/on_policy"] + figures["loss/reference"] + figures["loss/simulated"]
    assert parts / 4 == pytest.approx(float(loss), rel=1e-5)
    assert figures["loss/on_policy"] != pytest.approx(figures["loss/reference"], rel=1e-2)
    # Untrained: log-weight is the reward, whose mean over posterior ends is the highest.
    assert figures["log_weight/simulated"] > figures["log_weight/reference"]
    assert figures["log_weight/simulated"] == pytest.approx(figures["log_reward/simulated"])


def gradient(p, loss):
    parts = torch.autograd.grad(loss, list(p.sampler.control.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in parts if g is not None])


def test_denoising_gradient_is_that_of_full_paths(problem) -> None:
    """A few random kernels of each path give the gradient of whole paths in expectation.

    Mutants: the factor K / count left out, steps that are not drawn equally often, marginals of z_k
    given z_K that are off by one step.
    """
    p = problem(steps=6, width=8)
    with torch.no_grad():
        for value in p.sampler.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(2)
    z, _, obs = p.posterior.simulate(4, generator)
    context, path = p.sampler.encode(obs), p.sampler.backward_path(z.expand(4000, 4, 2), generator)
    exact = gradient(p, -p.sampler.log_ratio(path, context).mean())
    few = torch.zeros_like(exact)
    for _ in range(600):
        context = p.sampler.encode(obs)
        ratio = denoising_log_ratio(p.sampler, z.expand(60, 4, 2), context, 2, generator)
        few += gradient(p, -ratio.mean()) / 600
    assert float((few - exact).norm() / exact.norm()) < 0.1


def test_needs_that_are_not_met(problem) -> None:
    """An objective without what it needs is refused at once, with the way out.

    Mutant: an assertion in the middle of the first step.
    """
    p, guided = problem(), problem(informed="gradient")
    one = p.mixture(1)
    for q, objective, mixture, message in (
        (p, SubTrajectoryBalance(), p.mixture(), r"SubTrajectoryBalance learns a flow; add"),
        (guided, ReverseKL(), guided.mixture(), r"ReverseKL needs sampler.informed=none"),
        (p, LogVariance(), one, r"set paths.n >= 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Losses(q.sampler, q.posterior, objective, mixture, 4)
    mixture = p.mixture()
    p.posterior.prior.differentiable = False
    for objective in (ReverseKL(), AdjointSampling()):
        with pytest.raises(ValueError, match="the prior LinearGaussian is a black box"):
            Losses(p.sampler, p.posterior, objective, mixture, 4)


def test_blame(problem) -> None:
    """Mutant: a message about the loss, where the reward of 3 draws is to blame."""
    p = problem()
    losses = Losses(p.sampler, p.posterior, LogVariance(), p.mixture(4), 4)
    (_, batch), generator = next(batches(p, 1, 8)), torch.Generator().manual_seed(0)
    assert "before any path" in losses.blame()
    losses.likelihood(batch, 8, generator, generator)
    assert "log_reward is finite" in losses.blame()
    original = p.posterior.task.log_reward
    p.posterior.task.log_reward = lambda x, obs: torch.where(
        torch.arange(len(x)) < 3, torch.nan, original(x, obs)
    )
    losses.balance(batch, 4, generator, generator)
    assert losses.blame() == "log_reward is not finite at 3 of 16 draws"
    losses.likelihood(batch, 8, generator, generator)
    assert losses.blame() == "log_reward is not finite at 3 of 8 draws"
