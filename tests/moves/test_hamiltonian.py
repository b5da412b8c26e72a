"""Hamiltonian moves: the exact rotation, the energy it conserves, the law it keeps."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.moves import Preconditioner, State, hmc, pcn

# y = w . z + n with a curvature of 1 + |w|^2 / sigma^2 along w: a Gaussian posterior.
W, Y, SIGMA = torch.tensor([1.0, -0.5]), 1.5, 0.6
PRECISION = torch.eye(2) + torch.outer(W, W) / SIGMA**2
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = COVARIANCE @ W * Y / SIGMA**2


def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
    w = W.to(z)
    return -0.5 * ((Y - z @ w) / SIGMA).square(), ((Y - z @ w) / SIGMA**2)[:, None] * w


def flat(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_zeros(len(z)), torch.zeros_like(z)


def exact(n: int, generator: torch.Generator) -> Tensor:
    return MEAN + torch.randn(n, 2, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T


def check_moments(z: Tensor) -> None:
    """Mean and covariance within 5 standard errors of n independent exact draws."""
    n, std = len(z), COVARIANCE.diagonal().sqrt()
    assert ((z.mean(0) - MEAN).abs() < 5 * std / math.sqrt(n)).all()
    error = torch.outer(std, std) * math.sqrt(2 / n)
    assert ((z.T.cov() - COVARIANCE).abs() < 5 * error).all()


def random_matrix(n: int, generator: torch.Generator, mean: bool) -> Preconditioner:
    basis = torch.linalg.qr(torch.randn(n, 2, 2, generator=generator)).Q
    scale = torch.rand(n, 2, generator=generator) + 0.5
    return Preconditioner(basis, scale, torch.randn(n, 2, generator=generator) if mean else None)


@pytest.mark.parametrize("matrix", [None, "scaled", "shifted"])
def test_keeps_the_posterior(matrix: str | None, generator: torch.Generator) -> None:
    """Exact draws stay exact draws under 8 moves, each chain with its own step and matrix.

    Mutant: no Metropolis test; a whole kick where half of one belongs; a test without the density
    of N(m, M); the gradient of the reward in the coordinates of z; a mean left out of `place`.
    """
    z = exact(20_000, generator)
    step = torch.linspace(0.5, 1.4, len(z))
    chosen = None if matrix is None else random_matrix(len(z), generator, matrix == "shifted")
    state = State(z, *value_and_grad(z))
    for i in range(8):
        state, probability = hmc(state, value_and_grad, step, 1 + i % 3, chosen, generator)
    assert 0.3 < probability.mean() < 0.95
    torch.testing.assert_close(state.gradient, value_and_grad(state.z)[1])
    check_moments(state.z)


def test_preconditioned_pcn_keeps_the_posterior(generator: torch.Generator) -> None:
    """The same for pcn with any mean and matrix of each chain.

    Mutant: accept by the reward alone, or without the density of N(m, M).
    """
    z = exact(20_000, generator)
    state = State(z, value_and_grad(z)[0])
    matrix = random_matrix(len(z), generator, mean=True)
    for _ in range(10):
        state, probability = pcn(state, lambda z: value_and_grad(z)[0], 0.8, generator, matrix)
    assert 0.1 < probability.mean() < 0.9
    check_moments(state.z)


def test_the_posterior_as_reference_is_always_accepted(generator: torch.Generator) -> None:
    """With m and M of the posterior itself a quarter turn is an independent draw, accepted.

    Mutant: `pull` without the prior's - z; variances for standard deviations; V for V^T.
    """
    precise = COVARIANCE.double()
    variance, basis = torch.linalg.eigh(precise)
    n = 4000
    matrix = Preconditioner(
        basis.expand(n, 2, 2), variance.sqrt().expand(n, 2), MEAN.double().expand(n, 2)
    )
    z = torch.zeros(n, 2).double() + 3  # far from the posterior: one move forgets it
    state = State(z, *value_and_grad(z))
    moved, probability = hmc(state, value_and_grad, math.pi / 2, 1, matrix, generator)
    torch.testing.assert_close(probability, torch.ones_like(probability), rtol=0, atol=1e-5)
    check_moments(moved.z.float())


@pytest.mark.parametrize("dimension", [3, 100_000])
def test_flat_rewards_are_accepted_in_any_dimension(
    dimension: int, generator: torch.Generator
) -> None:
    """The prior's part is a rotation: nothing is rejected, and |z|² keeps its law.

    Mutant: the leapfrog that kicks with the prior's force, which rejects all of 100 000
    dimensions at this step; an energy in float32 that is a difference of two sums.
    """
    z = torch.randn(4, dimension, generator=generator)
    state, probability = hmc(State(z, *flat(z)), flat, 1.0, 5, None, generator)
    assert (probability == 1).all()
    square = state.z.square().mean()
    assert abs(square - 1) < 5 * math.sqrt(2 / (4 * dimension))


def test_energy_error_falls_with_the_square_of_the_step(generator: torch.Generator) -> None:
    """Trajectories of one length: half the step leaves a quarter of the rejections.

    Mutant: half kicks of a whole step, or gradients of the point before: first order.
    """
    z = exact(40_000, generator).double()
    rejected = []
    for count in (4, 8, 16):
        again = torch.Generator().manual_seed(7)
        _, p = hmc(State(z, *value_and_grad(z)), value_and_grad, 1.2 / count, count, None, again)
        rejected.append(float((1 - p).mean()))
    assert 3.5 < rejected[0] / rejected[1] < 4.6
    assert 3.7 < rejected[1] / rejected[2] < 4.3


def test_non_finite_trajectories_are_rejected(generator: torch.Generator) -> None:
    """No chain enters a region where the reward or its gradient is NaN, or takes one in.

    Mutant: accept where NaN > log u is false.
    """

    def broken(z: Tensor) -> tuple[Tensor, Tensor]:
        inside = z[:, 0] < 0
        gradient = torch.where(inside[:, None], 0.0, torch.nan).expand_as(z)
        return torch.where(inside, 0.0, torch.nan), gradient

    z = torch.full((500, 2), -0.5)
    state = State(z, *broken(z))
    for _ in range(5):
        state, probability = hmc(state, broken, 0.5, 2, None, generator)
    assert (state.z[:, 0] < 0).all()
    assert torch.isfinite(state.gradient).all()
    assert (probability == 0).any()
    assert not torch.equal(state.z, z)


def test_errors(generator: torch.Generator) -> None:
    """Wrong arguments are named. Mutant: a step of half a turn, which goes to -z for ever."""
    z = torch.zeros(3, 2)
    state = State(z, *flat(z))
    with pytest.raises(ValueError, match=r"step must be > 0 and <= 1\.57.*, got values from 3"):
        hmc(state, flat, 3.0, 1)
    with pytest.raises(ValueError, match=r"hmc\.leapfrog must be >= 1, got 0"):
        hmc(state, flat, 0.5, 0)
    with pytest.raises(ValueError, match=r"hmc needs state\.gradient, got None"):
        hmc(State(z, z[:, 0]), flat, 0.5, 1)
