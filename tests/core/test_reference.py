"""The uncontrolled chain: grids, stationarity, reversibility and bridges, without Monte Carlo."""

import math

import pytest
import torch

from outsourced.reference import Reference, correlations

GRIDS = [
    {"steps": 1},
    {"steps": 3},
    {"steps": 25},
    {"steps": 3, "schedule": "cosine"},
    {"steps": 25, "schedule": "cosine"},
    {"steps": 25, "log_snr_min": -6.0, "log_snr_max": 9.0, "late": 0.6},
]


def unit(size: int, index: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)[index][None]


def gram(rows: torch.Tensor) -> torch.Tensor:
    return rows @ rows.T


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-13) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("grid", GRIDS)
def test_correlations_start_at_zero_and_end_at_one(grid):
    """Mutant: a grid that ends at sigmoid(log_snr_max), or starts at sigmoid(log_snr_min): a biased
    start law for every posterior."""
    rho = Reference(**grid).rho
    assert rho.dtype == torch.float64
    assert rho[0] == 0
    assert rho[-1] == 1
    assert (rho.diff() > 0).all()


def test_log_snr_grid_is_uniform_between_its_ends():
    """Mutant: log rho for log rho^2 in the signal-to-noise ratio, or ends off by one step."""
    rho = correlations(6, "log_snr", -2.0, 4.0)
    log_snr = (rho**2 / (1 - rho**2))[1:-1].log()
    close(log_snr, torch.tensor([-2.0, -0.5, 1.0, 2.5, 4.0], dtype=torch.float64))


def test_late_below_one_crowds_the_end():
    """Mutant: the exponent 1 / late, or applied to the log-SNR itself."""
    rho = correlations(4, "log_snr", -2.0, 2.0, late=0.5)
    log_snr = (rho**2 / (1 - rho**2))[1:-1].log()
    expected = torch.tensor([-2.0, -2.0 + 4 * math.sqrt(0.5), 2.0], dtype=torch.float64)
    close(log_snr, expected)


def test_cosine_grid_by_hand():
    """Mutant: cos^2, or a grid that is offset by half a step."""
    expected = torch.tensor([0, 0.5, math.sqrt(3) / 2, 1], dtype=torch.float64)
    close(correlations(3, "cosine", -3.0, 6.0), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_correlation_with_the_end_is_the_product_of_the_kernels(grid):
    """Mutant: a_k = rho_{k+1} / rho_k, or kernels of another grid than rho."""
    reference = Reference(**grid)
    product = reference.a.flip(0).cumprod(0).flip(0)
    close(product, reference.rho[:-1])
    close(reference.a**2 + reference.scale**2, torch.ones_like(reference.a))


@pytest.mark.parametrize("grid", GRIDS)
def test_forward_chain_is_stationary_and_has_the_stated_correlations(
    grid, play_noise, chain_covariance
):
    """With unit vectors as noise the path's rows are its coefficients and their Gram matrix its
    covariance. Mutant: Euler-Maruyama kernels, whose variance is not 1 at any number of steps."""
    reference = Reference(**grid)
    size = reference.steps + 1
    play_noise([unit(size, i) for i in range(1, size)])
    path = reference.forward_path(unit(size, 0))[:, 0]
    close(gram(path), chain_covariance(reference))


@pytest.mark.parametrize("grid", GRIDS)
def test_backward_chain_has_the_law_of_the_forward_chain(grid, play_noise, chain_covariance):
    """Reversibility. Mutant: kernels visited in forward order, or a path returned from z_K down."""
    reference = Reference(**grid)
    size = reference.steps + 1
    play_noise([unit(size, i) for i in range(1, size)])
    path = reference.backward_path(unit(size, 0))[:, 0]
    assert torch.equal(path[-1], unit(size, 0)[0])
    close(gram(path), chain_covariance(reference))


@pytest.mark.parametrize("grid", GRIDS)
def test_pair_has_the_joint_law_of_two_neighbours_and_the_end(grid, play_noise, chain_covariance):
    """Mutant: z_k noised from z_K independently of z_{k+1}, or the pair of another step."""
    reference = Reference(**grid)
    k = torch.arange(reference.steps)
    noise = torch.stack([unit(3, 1), unit(3, 2)])[:, None].expand(2, len(k), 1, 3)
    play_noise([noise])
    before, after = reference.pair(unit(3, 0), k)
    covariance = chain_covariance(reference)
    for step in range(reference.steps):
        rows = torch.stack([before[step, 0], after[step, 0], unit(3, 0)[0]])
        index = torch.tensor([step, step + 1, reference.steps])
        close(gram(rows), covariance[index][:, index])


@pytest.mark.parametrize("grid", GRIDS)
def test_bridge_equals_conditioning_of_the_joint_gaussian(grid, chain_covariance):
    """Mutant: a mean without the factor rho, or the reference's variance for the bridge's."""
    reference = Reference(**grid)
    covariance, last = chain_covariance(reference), reference.steps
    values = torch.tensor([[0.7, -1.3], [1.9, 0.4]], dtype=torch.float64)  # two (z_k, end) pairs
    for step in range(last):
        z, end = values[:, 0].reshape(1, 2, 1), values[:, 1].reshape(1, 2, 1)
        mean, variance = reference.bridge_moments(z, end, torch.tensor([step]))
        given = torch.tensor([step, last])
        cross = covariance[step + 1][given]
        gain = torch.linalg.solve(covariance[given][:, given], cross)
        close(mean[0, :, 0], values @ gain, 1e-12)
        close(variance.reshape(()), 1 - gain @ cross, 1e-12)
    # The last kernel knows its end: the bridge is the point itself.
    assert reference.information[-1] == 1
    assert variance.item() == 0


def test_innovation_inverts_advance_at_every_step():
    """Mutant: dividing by the variance, or coefficients broadcast along another axis than steps."""
    reference, generator = Reference(5), torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 5, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    k = torch.tensor([3, 0, 4, 1, 2])
    after = reference.advance(z, eps, k)
    close(reference.innovation(z, after, k), eps, 1e-12)
    by_hand = reference.a[1] * z[3] + (1 - reference.a[1] ** 2).sqrt() * eps[3]
    close(after[3], by_hand)


def test_paths_are_drawn_from_the_generator_alone():
    """Mutant: torch.randn without the generator."""
    reference, z, k = Reference(3), torch.zeros(2, 3), torch.tensor([0, 2])
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        g = torch.Generator().manual_seed(1)
        draws.append(
            torch.cat([
                reference.forward_path(z, g).flatten(),
                reference.backward_path(z, g).flatten(),
                *(v.flatten() for v in reference.pair(z, k, g)),
            ])
        )  # fmt: skip
    assert torch.equal(*draws)
    assert draws[0].std() > 0.5
    assert torch.equal(before, torch.get_rng_state())


def test_coefficients_stay_out_of_checkpoints():
    """Mutant: persistent buffers, with which weights of one grid would silently bring it along."""
    assert Reference(3).state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "sampler.steps must be >= 1, got 0"),
        ({"schedule": "linear"}, "sampler.schedule must be one of log_snr, cosine, got 'linear'"),
        ({"log_snr_min": 2.0, "log_snr_max": 2.0}, "log_snr_min must be < .* got 2.0 and 2.0"),
        ({"late": 0.0}, "sampler.late must be > 0, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    """Mutant: a check that lets the boundary value through."""
    with pytest.raises(ValueError, match=message):
        Reference(**arguments)


def test_coefficients_come_in_the_precision_that_is_asked_for():
    """Also after another was. Mutant: one table for all types, kept from the first call."""
    reference, k = Reference(6), torch.tensor([4, 1])
    for dtype in (torch.float32, torch.float64, torch.float32):
        value = reference.at("spread", k, torch.zeros(2, 3, 5, dtype=dtype))
        assert value.dtype == dtype
        assert torch.equal(value.flatten(), reference.spread[k].to(dtype))
