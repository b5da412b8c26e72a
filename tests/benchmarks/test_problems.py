"""The problems of the exactness table: their truths, and the floor of the linear-Gaussian one."""

import itertools

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from benchmarks.floor import diagonal_floor, optimal_covariances
from benchmarks.problems import PROBLEMS, GridTruth, linear_gaussian, mixture, moon
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian, TwoMoons
from outsourced.reference import Reference
from outsourced.tasks import LinearMeasurement


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- floor


@pytest.mark.parametrize("diagonal", [[1.7], [0.3, 2.0, 5.0]])
def test_floor_is_zero_where_diagonal_kernels_are_optimal(diagonal: list[float]) -> None:
    """Mutant: a KL of the kernels to the reference instead of the optimal kernels."""
    floor = diagonal_floor(torch.diag(torch.tensor(diagonal)), 0.3, Reference(20))
    assert floor == pytest.approx((0.0, 0.0), abs=1e-12)


def test_optimal_covariances_are_the_conditionals_of_the_joint_gaussian() -> None:
    """Mutant: spread_k for spread_k^2 in C_k; a factor sigma instead of sigma^2."""
    matrix, sigma, reference = torch.randn(2, 3, generator=seeded()).double(), 0.4, Reference(7)
    eye, found = torch.eye(3).double(), optimal_covariances(matrix, sigma, reference)
    for k in range(7):
        rho, later, a = reference.rho[k], reference.rho[k + 1], reference.a[k]
        # Joint covariance of (z_{k+1}, z_k, y) with z_K ~ N(0, I) and y = W z_K + n.
        y = matrix @ matrix.mT + sigma**2 * torch.eye(2)
        given = torch.cat(
            [torch.cat([eye, rho * matrix.mT], 1), torch.cat([rho * matrix, y], 1)], 0
        )
        cross = torch.cat([a * eye, later * matrix.mT], 1)
        covariance = eye - cross @ torch.linalg.solve(given, cross.mT)
        torch.testing.assert_close(found[k], covariance / reference.scale[k] ** 2)


def best_diagonal(covariance: torch.Tensor, reverse: bool) -> float:
    """The smallest KL to or from a diagonal Gaussian, by Newton-like descent on log-variances."""
    target = MultivariateNormal(torch.zeros(3).double(), covariance)
    log_variance = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_variance], max_iter=100, line_search_fn="strong_wolfe")

    def divergence() -> torch.Tensor:
        diagonal = MultivariateNormal(target.loc, log_variance.exp().diag())
        pair = (diagonal, target) if reverse else (target, diagonal)
        return kl_divergence(*pair)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = divergence()
        value.backward()
        return value

    optimizer.step(closure)
    return float(divergence().detach())


def test_floors_match_a_brute_force_search() -> None:
    """Mutant: the two floors swapped, or marginal variances used for the reverse one."""
    matrix, reference = torch.randn(2, 3, generator=seeded(1)), Reference(6)
    covariances = optimal_covariances(matrix, 0.3, reference)
    for index, reverse in enumerate((True, False)):
        brute = sum(best_diagonal(c, reverse) for c in covariances)
        assert diagonal_floor(matrix, 0.3, reference)[index] == pytest.approx(brute, rel=1e-6)
    reverse_floor, forward_floor = diagonal_floor(matrix, 0.3, reference)
    assert abs(reverse_floor - forward_floor) > 1e-3  # or the swap would pass


def test_floor_halves_with_twice_the_steps() -> None:
    """Mutant: a floor of one kernel, which falls as 1 / K^2, or one that does not see the grid."""
    problem = linear_gaussian()
    assert problem.matrix is not None
    values = [
        diagonal_floor(problem.matrix, 0.3, Reference(k, log_snr_min=-5.0, log_snr_max=7.0))
        for k in (100, 200, 400)
    ]
    for before, after in itertools.pairwise(values):
        for index in range(2):
            assert 0.45 < after[index] / before[index] < 0.6


# ---------------------------------------------------------------- truths


def small(sigma: float) -> tuple[Posterior, LinearGaussian, LinearMeasurement]:
    prior, task = LinearGaussian(dim=2), LinearMeasurement([[1.0, 0.5]], sigma=sigma)
    return Posterior(prior, task), prior, task


def test_grid_agrees_with_the_closed_form() -> None:
    """Mutant: cells of unequal prior mass, axes exchanged in a draw, or a forgotten 1 / cells."""
    posterior, prior, task = small(0.5)
    truth = GridTruth(posterior, (400, 300))
    _, _, obs = posterior.simulate(3, seeded())
    mean, covariance, log_z = prior.noise_posterior(task.matrix, obs.y.double(), 0.5)
    torch.testing.assert_close(truth.log_z(obs), log_z, atol=1e-3, rtol=0)
    z = truth.sample(obs, 40_000, seeded(1)).double()
    torch.testing.assert_close(z.mean(0), mean, atol=0.02, rtol=0)
    for i in range(3):
        torch.testing.assert_close(torch.cov(z[:, i].T), covariance, atol=0.02, rtol=0)


def test_grid_draws_fill_their_cells() -> None:
    """Mutant: draws at midpoints or corners of cells: under a flat reward they are the prior."""
    posterior, _, _ = small(100.0)
    _, _, obs = posterior.simulate(1, seeded())
    z = GridTruth(posterior, (2, 1)).sample(obs, 40_000, seeded(1))[:, 0]
    torch.testing.assert_close(torch.cov(z.T), torch.eye(2), atol=0.03, rtol=0)
    assert float(z.abs().max()) > 3.5


def test_grid_refuses_a_cell_across_the_jump() -> None:
    """Mutant: an odd axis, whose middle cell straddles the gap between the moons."""
    with pytest.raises(ValueError, match="even size, got 3"):
        GridTruth(PROBLEMS["moons"]().posterior, (3, 2))


def test_linear_gaussian_draws_have_the_posterior_moments() -> None:
    """Mutant: the transposed Cholesky factor, or observations and draws transposed."""
    problem = linear_gaussian()
    _, _, obs = problem.posterior.simulate(2, seeded())
    z = problem.truth.sample(obs, 20_000, seeded(1)).double()
    assert problem.matrix is not None
    matrix = problem.matrix.double()
    precision = torch.eye(16) + matrix.mT @ matrix / problem.sigma**2
    covariance = torch.linalg.inv(precision)
    mean = obs.y.double() @ matrix @ covariance / problem.sigma**2
    torch.testing.assert_close(z.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(z[:, 1].T), covariance, atol=0.05, rtol=0)


def test_mixture_truth_weighs_the_modes() -> None:
    """Mutant: prior weights in the place of the posterior's; z of one y given to another."""
    problem = mixture()
    _, _, obs = problem.posterior.simulate(3, seeded())
    z = problem.truth.sample(obs, 4000, seeded(1))
    assert problem.modes is not None
    assert problem.mode_weights is not None
    x = problem.posterior.decode(z.flatten(0, 1))
    label = problem.modes(x).unflatten(0, z.shape[:2])
    weights = problem.mode_weights(obs)
    assert float(weights.amax() / weights.amin()) > 2  # unequal, or the first mutant would pass
    found = torch.stack([(label == m).double().mean(0) for m in range(8)], -1)
    torch.testing.assert_close(found, weights, atol=0.03, rtol=0)


def test_moon_labels_follow_the_noise() -> None:
    """Mutant: the lower moon not mirrored; left and right exchanged."""
    z = torch.randn(4000, 2, generator=seeded())
    x = TwoMoons(std=0.1)(z)
    label = moon(x)
    lower = z[:, 0] > 0
    assert float(((label == 2) == lower).float().mean()) > 0.995
    left = ~lower & (z[:, 0] > torch.special.ndtri(torch.tensor(0.25)))  # the far half of the arc
    assert float((label[left] == 0).float().mean()) > 0.98
