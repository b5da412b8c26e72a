"""What log r says at a guess of z_K: exact in linear-Gaussian problems, bounded elsewhere."""

import torch
from torch import nn

from outsourced.guidance import (
    Context,
    GaussNewtonGuidance,
    GradientGuidance,
    LaplaceTarget,
    gradient_at,
)
from outsourced.laplace import Laplace, fit_laplace
from outsourced.reference import Reference

REFERENCE = Reference(4)
STEPS = torch.tensor([0, 2, 3])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


class Fixed(nn.Module):
    """A network that answers with one tensor, times a trainable factor 1."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value, self.factor = value, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, z, k, e):
        return self.factor * self.value


def exact_delta(linear, obs, z: torch.Tensor) -> torch.Tensor:
    """(E[z_K | z_k, y] - rho z_k) / spread by conditioning, for z (S, N, d) at STEPS."""
    rows = []
    for state, k in zip(z, STEPS, strict=True):
        rho, spread = REFERENCE.rho[k], REFERENCE.spread[k]
        mean, _ = linear.posterior(obs, rho * state, float(spread**2))
        rows.append((mean - rho * state) / spread)
    return torch.stack(rows)


def laplace_of(linear, obs) -> Laplace:
    return fit_laplace(
        LaplaceTarget(linear, obs),
        torch.zeros(len(obs), 4).double(),
        1,
    )


def test_force_vanishes_at_the_exact_posterior_mean(linear):
    """Mutant: the prior's pull -delta left out, spread^2 for spread, or a guess without rho."""
    obs, z = linear.observe(2), draw(3, 2, 4)
    guidance = GradientGuidance(Fixed(exact_delta(linear, obs, z)), REFERENCE)
    _, unit, size = guidance(z, STEPS, Context(obs.y, obs), linear)
    close(unit, torch.zeros_like(z))
    close(size, torch.zeros(3, 2).double())


def test_force_at_a_wrong_guess_by_hand(linear):
    """Mutant: the gradient taken at z_k, or the scale by the norm of the whole batch."""
    obs, z, delta = linear.observe(2), draw(3, 2, 4), 0.3 * draw(3, 2, 4, seed=1)
    guidance = GradientGuidance(Fixed(delta), REFERENCE)
    out, unit, size = guidance(z, STEPS, Context(obs.y, obs), linear)
    close(out, delta)
    for s, k in enumerate(STEPS):
        for n in range(2):
            guess = REFERENCE.rho[k] * z[s, n] + REFERENCE.spread[k] * delta[s, n]
            _, gradient = linear.grad_log_reward(guess[None], obs[n])
            force = REFERENCE.spread[k] * gradient[0] - delta[s, n]
            power = force.square().mean()
            close(unit[s, n], force / (1 + power).sqrt())
            close(size[s, n], (1 + power).log() / 10)


def test_only_the_guess_carries_gradient(linear):
    """Mutant: the force left in the graph, which would differentiate the prior twice."""
    obs, z = linear.observe(2), draw(3, 2, 4)
    guidance = GradientGuidance(Fixed(draw(3, 2, 4, seed=1)), REFERENCE)
    delta, unit, size = guidance(z, STEPS, Context(obs.y, obs), linear)
    assert delta.requires_grad
    assert not unit.requires_grad
    assert not size.requires_grad


def test_gradients_are_taken_under_the_own_observation(linear):
    """Mutant: observations repeated in the other order."""
    obs, guess = linear.observe(3), draw(2, 3, 4)
    got = gradient_at(linear, guess, obs)
    for s in range(2):
        for n in range(3):
            expected = linear.grad_log_reward(guess[s, n][None], obs[n])[1][0]
            close(got[s, n], expected)


def test_gauss_newton_is_exact_on_a_linear_problem(linear):
    """Mutant: the whitened error in the units of z, or the mean of another step."""
    obs, z = linear.observe(2), draw(3, 2, 4)
    context = Context(obs.y, obs, laplace_of(linear, obs))
    delta, error = GaussNewtonGuidance(REFERENCE)(z, STEPS, context, linear)
    close(delta, exact_delta(linear, obs, z))
    close(error, torch.zeros_like(z))


def test_one_exact_gradient_repairs_a_wrong_expansion(linear):
    """With the right curvature one Newton step lands on the mean from anywhere. Mutant: no
    correction, a correction by the gradient alone, or an error not in posterior deviations."""
    obs, z = linear.observe(2), draw(3, 2, 4)
    right = laplace_of(linear, obs)
    wrong = Laplace(right.anchor, right.gradient + 1, right.curvature, right.basis, right.log_z)
    delta, error = GaussNewtonGuidance(REFERENCE, limit=100.0)(
        z, STEPS, Context(obs.y, obs, wrong), linear
    )
    expected = exact_delta(linear, obs, z)
    close(delta, expected)
    for s, k in enumerate(STEPS):
        spread = REFERENCE.spread[k]
        start, _ = wrong.posterior(z[s : s + 1], REFERENCE.rho[k], spread)
        _, covariance = linear.posterior(obs, REFERENCE.rho[k] * z[s], float(spread**2))
        gap = spread * (expected[s] - start[0])
        distance = torch.einsum("ni,nij,nj->n", gap, torch.linalg.inv(covariance), gap)
        close(error[s].square().sum(-1), distance)


def test_the_repair_is_limited_for_each_sample(linear):
    """Mutant: an unbounded Newton step, or a bound shared by the batch or by the directions."""
    obs, z = linear.observe(2), draw(3, 2, 4)
    right = laplace_of(linear, obs)
    push = torch.tensor([[1000.0], [0.01]], dtype=torch.float64)
    wrong = Laplace(right.anchor, right.gradient + push, *list(vars(right).values())[2:])
    delta, error = GaussNewtonGuidance(REFERENCE, limit=2.0)(
        z, STEPS, Context(obs.y, obs, wrong), linear
    )
    along = torch.einsum("nji,snj->sni", right.basis, error)[:, 0].abs()
    assert (along <= 2 + 1e-12).all()
    assert (along > 2 - 1e-12).any()
    close(delta[:, 1], exact_delta(linear, obs, z)[:, 1])
    assert not torch.allclose(delta[:, 0], exact_delta(linear, obs, z)[:, 0], atol=0.1)


def test_context_repeats_observations_fastest(linear):
    """Mutant: repeat_interleave in one of the parts and repeat in the other."""
    obs = linear.observe(3)
    context = Context(draw(3, 5), obs, laplace_of(linear, obs)).repeat(2)
    assert torch.equal(context.obs.y, torch.cat([obs.y, obs.y]))
    assert torch.equal(context.embedding, draw(3, 5).repeat(2, 1))
    assert torch.equal(context.laplace.anchor, laplace_of(linear, obs).anchor.repeat(2, 1))
