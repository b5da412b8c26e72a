"""Kernels against torch.distributions, and the accuracy that their direct log-ratio buys."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from outsourced.kernels import Kernel, LowRankKernel, event_sum, rotate, strictly_lower

S, N, D = 2, 3, 4
CASES = ["diagonal", "basis", "lower", "both", "low rank", "low rank, lower"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(case: str) -> Kernel:
    basis = torch.linalg.qr(draw(N, D, D, seed=1)).Q if case in ("basis", "both") else None
    lower = draw(S, N, D, D, seed=2).tril(-1) if "lower" in case or case == "both" else None
    if case.startswith("low rank"):
        basis = torch.linalg.qr(draw(N, D, 2, seed=1)).Q
        scales = 0.7 * draw(S, N, 2, seed=7), 0.7 * draw(S, N, 1, seed=8)
        return LowRankKernel(
            draw(S, N, D, seed=3), 0.7 * draw(S, N, D, seed=4), basis, lower, *scales
        )
    return Kernel(draw(S, N, D, seed=3), 0.7 * draw(S, N, D, seed=4), basis, lower)


def square_root(kernel: Kernel) -> torch.Tensor:
    """Sigma^{1/2} (S, N, d, d) by dense linear algebra, straight from the definition."""
    eye = torch.eye(D, dtype=torch.float64)
    v = eye if kernel.basis is None else kernel.basis
    lower = torch.zeros_like(eye) if kernel.lower is None else kernel.lower
    if isinstance(kernel, LowRankKernel):
        outside = kernel.log_outside.exp()[..., None] * (eye - v @ v.mT)
        root = v @ torch.diag_embed(kernel.log_inside.exp()) @ v.mT + outside
        return torch.diag_embed(kernel.log_scale.exp()) @ root @ torch.linalg.inv(eye + lower)
    return v @ torch.diag_embed(kernel.log_scale.exp()) @ v.mT @ torch.linalg.inv(eye + lower)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_log_ratio_is_the_difference_of_log_densities(case):
    """Mutant: V^T for V, a missing log-determinant, or (I + L) multiplied where it is inverted."""
    kernel, eps = build(case), draw(S, N, D, seed=5)
    root = square_root(kernel)
    controlled = MultivariateNormal(kernel.shift, root @ root.mT)
    reference = MultivariateNormal(torch.zeros_like(eps), torch.eye(D, dtype=torch.float64))
    close(kernel.log_ratio(eps), controlled.log_prob(eps) - reference.log_prob(eps))


@pytest.mark.parametrize("case", CASES)
def test_samples_have_the_mean_and_covariance_of_the_definition(case):
    """Unit vectors as noise give the columns of Sigma^{1/2}: the moments are exact.
    Mutant: scaling by the variance, or in the wrong basis."""
    kernel = build(case)
    centre = kernel.sample(torch.zeros(S, N, D, dtype=torch.float64))
    close(centre, kernel.shift)
    eye = torch.eye(D, dtype=torch.float64)
    columns = [kernel.sample(e.expand(S, N, D)) - centre for e in eye]
    close(torch.stack(columns, -1), square_root(kernel))


@pytest.mark.parametrize("case", CASES)
def test_standardise_inverts_sample_and_the_given_eta_is_used(case):
    """Mutant: another factor of Sigma than sample uses (right density, wrong eta)."""
    kernel, eta = build(case), draw(S, N, D, seed=6)
    eps = kernel.sample(eta)
    close(kernel.standardise(eps), eta)
    close(kernel.log_ratio(eps, eta), kernel.log_ratio(eps))
    assert not torch.allclose(kernel.log_ratio(eps, eta + 1), kernel.log_ratio(eps))


def test_log_ratio_keeps_its_digits_at_image_size():
    """Mutant: the difference of two log-densities, each of order 1e5 nats in float32."""
    d = 65536
    shift, log_scale = 0.02 * draw(1, 8, d), 0.02 * draw(1, 8, d, seed=1)
    eps = (shift + log_scale.exp() * draw(1, 8, d, seed=2)).float()
    shift, log_scale = shift.float(), log_scale.float()
    exact = Kernel(shift.double(), log_scale.double()).log_ratio(eps.double())
    ours = (Kernel(shift, log_scale).log_ratio(eps) - exact).abs().max()
    densities = [Normal(shift, log_scale.exp()), Normal(torch.zeros_like(eps), 1.0)]
    controlled, reference = (event_sum(law.log_prob(eps)) for law in densities)
    naive = (controlled - reference - exact).abs().max()
    assert ours < 2e-4
    assert ours < 0.1 * naive


def test_log_ratio_sums_over_the_event_only():
    """Spatial noise against torch.distributions. Mutant: a mean over pixels or a sum over steps."""
    shift, log_scale, eps = (draw(S, N, 2, 3, 5, seed=i) for i in range(3))
    expected = Normal(shift, log_scale.exp()).log_prob(eps) - Normal(0.0, 1.0).log_prob(eps)
    close(Kernel(shift, log_scale).log_ratio(eps), expected.sum((2, 3, 4)), 1e-9)


def test_rotate_uses_the_basis_of_each_observation():
    """Mutant: the indices of S and N exchanged, or V and V^T."""
    basis, value = draw(N, D, D), draw(S, N, D, seed=1)
    for s in range(S):
        for n in range(N):
            close(rotate(basis, value)[s, n], basis[n] @ value[s, n])
            close(rotate(basis, value, transpose=True)[s, n], basis[n].T @ value[s, n])


def test_strictly_lower_by_hand():
    """Mutant: entries on the diagonal, which would break the log-determinant."""
    matrix = strictly_lower(torch.tensor([[1.0, 2.0, 3.0]]), 3)
    assert matrix.tolist() == [[[0, 0, 0], [1, 0, 0], [2, 3, 0]]]
