"""Markov kernels: what they leave invariant, how they adapt, what they reject."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.moves import (
    MALA_TARGET,
    PCN_TARGET,
    Preconditioner,
    State,
    adapt,
    mala,
    pcn,
)

# y = w . z + n with a curvature of 1 + |w|^2 / sigma^2 along w: a Gaussian posterior.
W, Y, SIGMA = torch.tensor([1.0, -0.5]), 1.5, 0.6
PRECISION = torch.eye(2) + torch.outer(W, W) / SIGMA**2
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = COVARIANCE @ W * Y / SIGMA**2


def log_reward(z: Tensor) -> Tensor:
    return -0.5 * ((Y - z @ W.to(z)) / SIGMA).square()


def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
    return log_reward(z), ((Y - z @ W.to(z)) / SIGMA**2)[:, None] * W.to(z)


def exact(n: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(n, 2, generator=generator)
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T


def check_moments(z: Tensor) -> None:
    """Mean and covariance within 5 standard errors of n independent exact draws."""
    n, std = len(z), COVARIANCE.diagonal().sqrt()
    assert ((z.mean(0) - MEAN).abs() < 5 * std / math.sqrt(n)).all()
    error = torch.outer(std, std) * math.sqrt(2 / n)
    assert ((z.T.cov() - COVARIANCE).abs() < 5 * error).all()


@pytest.mark.parametrize("step", [0.3, 0.9, 1.0])
def test_pcn_keeps_the_posterior(step: float, generator: torch.Generator) -> None:
    """Exact draws stay exact draws under 15 moves.

    Mutant: accept with the ratio of posterior densities, which counts the prior twice; propose
    z + b xi, which needs that ratio; scale by 1 - b instead of sqrt(1 - b^2).
    """
    z = exact(20_000, generator)
    state = State(z, log_reward(z))
    for _ in range(15):
        state, probability = pcn(state, log_reward, step, generator)
    assert 0.1 < probability.mean() < 0.9  # neither idle nor trivially right
    assert torch.equal(state.log_reward, log_reward(state.z))
    check_moments(state.z)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_mala_keeps_the_posterior(preconditioned: bool, generator: torch.Generator) -> None:
    """Exact draws stay exact draws under 15 moves, each chain with its own step and matrix.

    Mutant: no Metropolis correction, or one without the proposal densities, or without the prior.
    """
    z = exact(20_000, generator)
    matrix = None
    step = torch.linspace(0.4, 1.1, len(z))
    if preconditioned:
        basis = torch.linalg.qr(torch.randn(len(z), 2, 2, generator=generator)).Q
        matrix = Preconditioner(basis, torch.rand(len(z), 2, generator=generator) + 0.5)
    state = State(z, *value_and_grad(z))
    for _ in range(15):
        state, probability = mala(state, value_and_grad, step, matrix, generator)
    assert 0.3 < probability.mean() < 0.9
    torch.testing.assert_close(state.gradient, value_and_grad(state.z)[1])
    check_moments(state.z)


def test_mala_moves_towards_the_posterior(generator: torch.Generator) -> None:
    """From far away a small-step chain follows the gradient of the posterior, prior included.

    Mutant: the gradient of the reward alone, or with the opposite sign, which the correction would
    leave invariant but slow: the mean of one small move is z + s^2 / 2 (grad log r - z).
    """
    z = torch.tensor([3.0, 2.0]).expand(200_000, 2)
    step = 0.05
    moved, probability = mala(State(z, *value_and_grad(z)), value_and_grad, step, None, generator)
    drift = (moved.z - z).mean(0) / probability.mean()
    expected = 0.5 * step**2 * (value_and_grad(z[:1])[1][0] - z[0])
    torch.testing.assert_close(drift, expected, rtol=0, atol=5 * step / math.sqrt(len(z)))


def test_preconditioned_mala_is_mala_in_whitened_coordinates() -> None:
    """With M the posterior covariance, the chain is the image of a chain on N(0, I), exactly.

    Mutant: M^{1/2} in the force where M belongs, V^T for V, variances for standard deviations.
    """
    root = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.05, 0.0], [0.3, -0.2, 0.4]]).double()
    left, scale, _ = torch.linalg.svd(root / root.norm() * 0.9)
    precision = torch.linalg.inv((left * scale**2) @ left.T)  # of the posterior, > I: a valid one

    def sharp(z: Tensor) -> tuple[Tensor, Tensor]:
        hessian = precision - torch.eye(3).double()
        return -0.5 * (z @ hessian * z).sum(1), -z @ hessian

    def flat(u: Tensor) -> tuple[Tensor, Tensor]:  # the posterior is N(0, I) already
        return u.new_zeros(len(u)), torch.zeros_like(u)

    matrix = Preconditioner(left.expand(7, 3, 3), scale.expand(7, 3))
    u = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    white = State(u, *flat(u))
    z = matrix.color(u)
    state = State(z, *sharp(z))
    first, second = (torch.Generator().manual_seed(2) for _ in range(2))
    rejected = 0
    for _ in range(30):
        white, p_white = mala(white, flat, 1.3, None, first)
        state, p = mala(state, sharp, 1.3, matrix, second)
        torch.testing.assert_close(p, p_white, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.z, matrix.color(white.z), rtol=1e-9, atol=1e-9)
        rejected += int((p < 0.5).sum())
    assert rejected > 0


def test_adaptation_reaches_the_target_chain_by_chain(generator: torch.Generator) -> None:
    """Chains on a wide and on a sharp posterior both end at the target acceptance.

    Mutant: a step driven by the mean acceptance of the batch; a gain that dies or never does; the
    sign of the correction.
    """
    sigma = torch.tensor([2.0, 0.02]).repeat_interleave(40)

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        gap = (1.0 - z) / sigma[:, None]
        return -0.5 * gap.square().sum(1), gap / sigma[:, None]

    for kernel, target in (("pcn", PCN_TARGET), ("mala", MALA_TARGET)):
        z = torch.ones(80, 5) + sigma[:, None] * torch.randn(80, 5, generator=generator)
        state, step = State(z, *both(z)), torch.full((80,), 0.5)
        seen = torch.zeros(80)
        for i in range(1, 501):
            if kernel == "pcn":
                state, probability = pcn(state, lambda z: both(z)[0], step, generator)
            else:
                state, probability = mala(state, both, step, None, generator)
            if i <= 300:
                upper = 1.0 if kernel == "pcn" else math.inf
                step = adapt(step, probability, target, i, upper)
            else:
                seen += probability / 200
        wide, sharp = seen[:40].mean(), seen[40:].mean()
        assert abs(sharp - target) < 0.04
        # With sigma 2 even independent proposals are accepted more often than 23 %.
        assert abs(wide - target) < 0.04 if kernel == "mala" else (step[:40] > 0.9).all()
        assert step[40:].max() < 0.2 * step[:40].min()


def test_non_finite_proposals_are_rejected(generator: torch.Generator) -> None:
    """No chain enters a region where the reward is NaN or infinite, and its state stays finite.

    Mutant: reject only where log u > ratio, which accepts NaN; accept +inf as certain.
    """

    def broken(z: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.where(z[:, 0] > 0, torch.nan, 0.0)
        value = torch.where(z[:, 0] < -1, torch.inf, value)
        return value, torch.zeros_like(z)

    z = torch.full((500, 2), -0.5)
    for kernel in ("pcn", "mala"):
        state = State(z, *broken(z))
        for _ in range(10):
            if kernel == "pcn":
                state, probability = pcn(state, lambda z: broken(z)[0], 0.9, generator)
            else:
                state, probability = mala(state, broken, 0.9, None, generator)
        assert ((state.z[:, 0] <= 0) & (state.z[:, 0] >= -1)).all()
        assert not torch.equal(state.z, z)
        assert (probability == 0).any()
        assert torch.isfinite(state.log_reward).all()


def test_chains_do_not_interact() -> None:
    """A chain moves the same beside whatever other chain, with the same noise.

    Mutant: an acceptance, a norm or a step size over the batch.
    """

    def run(neighbour: float, kernel: str) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        z = torch.tensor([[0.5, 0.5], [neighbour, neighbour]])
        state, step = State(z, *value_and_grad(z)), torch.tensor([0.5, 0.5])
        for i in range(1, 20):
            if kernel == "pcn":
                state, probability = pcn(state, log_reward, step, generator)
            else:
                state, probability = mala(state, value_and_grad, step, None, generator)
            step = adapt(step, probability, 0.4, i, upper=1.0)
        return state.z[0]

    for kernel in ("pcn", "mala"):
        assert torch.equal(run(1.0, kernel), run(50.0, kernel))
        assert torch.equal(run(1.0, kernel), run(torch.nan, kernel))


def test_errors(generator: torch.Generator) -> None:
    """Wrong arguments are named. Mutant: a pcn step above 1, whose root is NaN: stuck for ever."""
    z = torch.zeros(3, 2)
    state = State(z, log_reward(z))
    with pytest.raises(ValueError, match=r"step must be > 0 and <= 1.0, got values from 1.5"):
        pcn(state, log_reward, 1.5, generator)
    with pytest.raises(ValueError, match="step must be > 0"):
        pcn(state, log_reward, torch.tensor([0.5, 0.0, 0.5]), generator)
    with pytest.raises(ValueError, match=r"mala needs state.gradient, got None"):
        mala(state, value_and_grad, 0.5)
    with pytest.raises(ValueError, match=r"adapt.target must lie in \(0, 1\), got 1.0"):
        adapt(torch.ones(3), torch.ones(3), 1.0, 1)
    with pytest.raises(ValueError, match=r"adapt.iteration must be >= 1, got 0"):
        adapt(torch.ones(3), torch.ones(3), 0.5, 0)
