"""Gaussians of low rank about an anchor, against dense linear algebra and exact posteriors."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from outsourced.control import ANCHOR_GAIN
from outsourced.low_rank import LowRank, expand, fit_low_rank
from outsourced.tasks.base import Observation

DOUBLE = torch.float64
MODES = [((6,), "auto", "diagonal"), ((6,), "auto", "full"), ((2, 4, 3), "auto", "diagonal")]
MODES.append(((2, 4, 3), "convolutional", "diagonal"))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Mixing:
    """y = g(M z) + sigma n for noise of any shape; g(u) = u + bend sin(u)."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], bend: float = 0.0):
        self.matrix, self.shape, self.bend = matrix, shape, bend
        self.data_shape = (len(matrix),)

    def apply(self, z: Tensor) -> Tensor:
        u = z.flatten(1) @ self.matrix.T
        return u + self.bend * u.sin()

    def observe(self, n: int, seed: int = 6) -> Observation:
        y = self.apply(draw(n, *self.shape, seed=seed)) + 0.3 * draw(n, len(self.matrix), seed=9)
        return Observation(y, {}, 0.5 + 0.2 * torch.arange(n).to(DOUBLE))

    def features(self, obs: Observation) -> Tensor:
        if len(self.shape) == 1:
            return obs.y
        return obs.y[:, :1, None, None].expand(-1, *self.shape)

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor:
        return -0.5 * ((obs.y - self.apply(z)) / obs.sigma[:, None]).square().sum(-1)

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        gap = (obs.y - x.to(DOUBLE)[:, None]) / obs.sigma[:, None]
        return -0.5 * gap.square().sum(-1)

    def jacobian(self, z: Tensor, obs: Observation) -> Tensor:
        """(B, m, d), by hand."""
        u = z.flatten(1) @ self.matrix.T
        slope = (1 + self.bend * u.cos()) / obs.sigma[:, None]
        return -slope[:, :, None] * self.matrix

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]:
        gap = (obs.y - self.apply(z)) / obs.sigma[:, None]
        gradient = -torch.einsum("bm,bmd->bd", gap, self.jacobian(z, obs))
        return self.log_reward(z, obs), gradient.reshape(z.shape)

    def random_vjp(self, z: Tensor, obs: Observation, count: int) -> Tensor:
        jacobian = self.jacobian(z, obs)
        found = torch.einsum("km,bmd->kbd", draw(count, jacobian.shape[1], seed=4), jacobian)
        return found.reshape(count, *z.shape)

    def jvp(self, z: Tensor, obs: Observation, tangents: Tensor) -> Tensor:
        return torch.einsum("bmd,kbd->kbm", self.jacobian(z, obs), tangents.flatten(2))

    def exact(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, covariance and log Z of the posterior without bend."""
        jacobian = self.jacobian(torch.zeros(len(obs), *self.shape, dtype=DOUBLE), obs)
        eye = torch.eye(self.matrix.shape[1], dtype=DOUBLE)
        covariance = torch.linalg.inv(eye + jacobian.mT @ jacobian)
        white = obs.y / obs.sigma[:, None]
        mean = -(covariance @ jacobian.mT @ white[..., None])[..., 0]
        marginal = torch.eye(len(self.matrix), dtype=DOUBLE) + jacobian @ jacobian.mT
        law = MultivariateNormal(torch.zeros(len(self.matrix), dtype=DOUBLE), marginal)
        return mean, covariance, law.log_prob(white) + len(self.matrix) / 2 * math.log(2 * math.pi)


def dense(found: LowRank) -> Tensor:
    """The curvature as a matrix, (B, d, d)."""
    eye = torch.eye(found.basis.shape[1], dtype=DOUBLE)
    outside = eye - found.basis @ found.basis.mT
    inside = found.basis @ torch.diag_embed(found.curvature) @ found.basis.mT
    return inside + found.rest[..., None] * outside


def test_the_matrix_is_found_where_it_has_the_rank():
    """Three measurements of 24 unknowns: three directions, nothing outside.

    Mutant: singular values for eigenvalues, the basis before its rotation, a rest of all probes.
    """
    problem = Mixing(draw(3, 24, seed=1), (2, 4, 3), bend=0.5)
    obs, z = problem.observe(5), draw(5, 2, 4, 3, seed=2)
    jacobian = problem.jacobian(z, obs)
    for rank in (3, 5):
        found = expand(problem, z, obs, rank)
        inside = found.basis @ torch.diag_embed(found.curvature) @ found.basis.mT
        torch.testing.assert_close(inside, jacobian.mT @ jacobian, rtol=1e-6, atol=1e-6)
        eye = torch.eye(rank, dtype=DOUBLE).expand(5, -1, -1)
        torch.testing.assert_close(found.basis.mT @ found.basis, eye)
    assert found.rest.max() < 1e-6


def test_what_the_span_misses_is_told():
    """Four strong directions and 76 weak ones, of which a span of 14 holds few.

    Mutant: zero, the mean over all directions (5.3), the total that is missed (28), the trace of
    the random products (off by the strong directions' chance).
    """
    basis = torch.linalg.qr(draw(80, 80)).Q
    scale = torch.full((80,), math.sqrt(0.3), dtype=DOUBLE)
    scale[:4] = 10.0
    problem = Mixing(scale[:, None] * basis, (80,))
    obs = Observation(torch.zeros(1, 80, dtype=DOUBLE), {}, torch.ones(1, dtype=DOUBLE))
    found = expand(problem, torch.zeros(1, 80, dtype=DOUBLE), obs, 14)
    trace = scale.square().sum() - found.curvature.sum()
    assert float(found.rest) == pytest.approx(float(trace) / 66, rel=0.15)
    assert (found.curvature[0, -4:] / 100 - 1).abs().max() < 0.05


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.97])
def test_posterior_of_the_end_is_that_of_a_dense_gaussian(rho):
    """N(rho z, spread^2) times the likelihood that turns N(0, I) into N(anchor, (I + H)^-1).

    Mutant: rest for the curvature, a square root of spread, rho missing in the prior mean."""
    found = LowRank(
        draw(3, 2, 3, 2), torch.linalg.qr(draw(3, 12, 4)).Q, draw(3, 4).exp(), draw(3, 1).exp()
    )
    z, rho = draw(2, 3, 2, 3, 2, seed=1), torch.tensor(rho, dtype=DOUBLE)
    spread = (1 - rho**2).sqrt()
    delta, c, rest = found.posterior(z, rho, spread)
    eye, curvature = torch.eye(12, dtype=DOUBLE), dense(found)
    covariance = torch.linalg.inv(eye / spread**2 + curvature)
    pull = ((eye + curvature) @ found.anchor.flatten(1)[..., None])[..., 0]
    mean = ((rho * z.flatten(2) / spread**2 + pull)[..., None, :] @ covariance)[..., 0, :]
    torch.testing.assert_close((rho * z + spread * delta).flatten(2), mean)
    inside = found.basis @ torch.diag_embed(c[0] - rest[0]) @ found.basis.mT
    torch.testing.assert_close(spread**2 * (inside + rest[0][..., None] * eye), covariance)


def test_log_z_of_a_gaussian_is_exact():
    """Mutant: the directions outside of the span forgotten, or counted with those inside."""
    basis, curvature = torch.linalg.qr(draw(8, 8)).Q, torch.full((8,), 0.7, dtype=DOUBLE)
    curvature[:3] = torch.tensor([9.0, 4.0, 2.0])
    anchor = draw(1, 8, seed=1)
    found = LowRank(anchor, basis[None, :, :3], curvature[None, :3], curvature[3:4, None])
    # N(z; 0, I) r(z) = C N(z; anchor, (I + H)^-1) with log r(anchor) = 0.
    precision = torch.eye(8, dtype=DOUBLE) + dense(found)[0]
    law = MultivariateNormal(anchor[0], precision_matrix=precision)
    prior = MultivariateNormal(torch.zeros(8, dtype=DOUBLE), torch.eye(8, dtype=DOUBLE))
    expected = prior.log_prob(anchor[0]) - law.log_prob(anchor[0])
    torch.testing.assert_close(found.log_z(torch.zeros(1, dtype=DOUBLE))[0], expected)


def test_one_step_ends_at_the_mean_of_a_linear_problem():
    """Whatever the start; a bent one is climbed as far as several steps go.

    Mutant: a step against the gradient, the curvature's inverse without the prior's, a start that
    is kept, lengths of the step that are shared by the batch.
    """
    problem = Mixing(draw(5, 24, seed=1), (2, 4, 3))
    obs, start = problem.observe(4), 3 * draw(4, 2, 4, 3, seed=2)
    mean, covariance, _ = problem.exact(obs)
    found, reward = fit_low_rank(problem, start, obs, 8, 1)
    torch.testing.assert_close(reward, problem.log_reward(found.anchor, obs))
    torch.testing.assert_close(found.anchor.flatten(1), mean, rtol=1e-5, atol=1e-5)
    eye = torch.eye(24, dtype=DOUBLE)
    torch.testing.assert_close(torch.linalg.inv(eye + dense(found)), covariance, atol=1e-5, rtol=0)
    bent = Mixing(problem.matrix, problem.shape, bend=0.9)
    together, _ = fit_low_rank(bent, start, obs, 8, 1)
    for i in range(4):
        alone, _ = fit_low_rank(bent, start[i : i + 1], obs[i], 8, 1)
        torch.testing.assert_close(alone.anchor[0], together.anchor[i], rtol=1e-6, atol=1e-6)
    found, _ = fit_low_rank(bent, start, obs, 8, 30)
    _, gradient = bent.grad_log_reward(found.anchor, obs)
    assert (gradient - found.anchor).flatten(1).norm(dim=1).max() < 1e-3


@pytest.fixture
def filled(make_sampler):
    """A sampler on a problem, with stored draws and its gates half or wholly open."""

    def build(problem, network="auto", covariance="diagonal", opened=False, **options):
        options = {"informed": "anchor", "lookup": 50, "rank": 6} | options
        sampler = make_sampler(
            *(problem, problem.shape, problem.features(problem.observe(1)).shape[1:]),
            **{"network": network, "covariance": covariance, "random": not opened, **options},
        )
        z = draw(50, *problem.shape, seed=7)
        sampler.anchoring.lookup.fill(z, problem.apply(z))
        with torch.no_grad():
            sampler.control.gate.mul_(2 / ANCHOR_GAIN)
        if opened:
            sampler.control.open()
        return sampler

    return build


@pytest.mark.parametrize(("shape", "network", "covariance"), MODES)
def test_open_gates_are_the_posterior_of_a_linear_problem(filled, shape, network, covariance):
    """Every path has the weight log Z, from any anchor and with any number of steps.

    Mutant: a kernel that mixes standard deviations for variances, a determinant without the
    directions outside, means and covariances in different bases.
    """
    problem = Mixing(draw(4, math.prod(shape), seed=1), shape)
    obs = problem.observe(3)
    sampler = filled(
        problem, network, covariance, opened=True, steps=5, anchors=2, anchor_precision=-14.0
    )
    path = sampler.forward_path(obs, 6, torch.Generator().manual_seed(0))
    index = torch.arange(3).repeat(6)
    reward = problem.log_reward(path.end.flatten(0, 1), obs[index]).reshape(6, 3)
    expected = problem.exact(obs)[2].expand(6, 3)
    torch.testing.assert_close(reward - path.log_ratio, expected, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize(("shape", "network", "covariance"), MODES)
def test_drawing_and_scoring_agree(filled, shape, network, covariance):
    """With weights in all places, on a bent problem.

    Mutant: the learned standard deviations in another order than their inverses, the guess of one
    anchor with the span of another, a gate that the score forgets.
    """
    problem = Mixing(draw(4, math.prod(shape), seed=1), shape, bend=0.5)
    obs = problem.observe(3)
    sampler = filled(problem, network, covariance, anchors=2, newton=2)
    path = sampler.forward_path(obs, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampler.log_ratio(path, obs), path.log_ratio, rtol=1e-6, atol=1e-6)
    alone = sampler.forward_path(obs[1], 4, torch.Generator().manual_seed(0))
    again = sampler.log_ratio(alone, obs[1])
    torch.testing.assert_close(again, alone.log_ratio, rtol=1e-6, atol=1e-6)


def test_closed_gates_are_the_prior(make_sampler):
    """An untrained sampler, on an observation that informs more directions than the rank.

    Mutant: a precision outside of the span that no gate closes.
    """
    problem = Mixing(draw(12, 24, seed=1), (2, 4, 3))
    options = {"random": False, "informed": "anchor", "lookup": 50, "rank": 4}
    sampler = make_sampler(problem, problem.shape, (2, 4, 3), **options)
    z = draw(50, *problem.shape, seed=7)
    sampler.anchoring.lookup.fill(z, problem.apply(z))
    path = sampler.forward_path(problem.observe(2), 5, torch.Generator().manual_seed(0))
    assert path.log_ratio.abs().max() < 1e-6


def test_the_precision_is_added_in_all_directions(filled):
    """Where y says nothing, z_K ~ N(anchor, 1/(1 + e^3)), entry by entry.

    Mutant: a precision that only the span has, or only what is outside of it.
    """
    problem = Mixing(1e-4 * draw(6, 24, seed=1), (2, 4, 3))
    obs = problem.observe(2)
    sampler = filled(problem, opened=True, steps=12, anchor_precision=3.0)
    end = sampler(obs, 4000, torch.Generator().manual_seed(0))
    std = (1 + math.exp(3)) ** -0.5
    assert (end.std(0) / std - 1).abs().max() < 5 / math.sqrt(2 * 4000)


def test_anchors_have_paths_by_their_evidence(filled):
    """Of two modes, +-3, that a square cannot tell apart but for a factor of 3 in their weight.

    Mutant: turns, the shares of another observation, evidence without the determinant (the
    narrower mode has as much height), a share that is forgotten by a selection.
    """

    class Square(Mixing):
        def apply(self, z: Tensor) -> Tensor:
            u = super().apply(z)
            return u.abs() * torch.where(u > 0, 1.0, 3.0) + torch.where(u > 0, 0.0, -6.0)

        def jacobian(self, z: Tensor, obs: Observation) -> Tensor:
            u = z.flatten(1) @ self.matrix.T
            slope = torch.where(u > 0, -1.0, 3.0) / obs.sigma[:, None]
            return slope[:, :, None] * self.matrix

    problem = Square(torch.eye(2, dtype=DOUBLE)[:1], (2,))
    obs = Observation(
        torch.tensor([[3.0], [0.5]], dtype=DOUBLE), {}, torch.full((2,), 0.1).to(DOUBLE)
    )
    sampler = filled(problem, opened=True, steps=6, anchors=2, rank=2, anchor_precision=-14.0)
    z = torch.tensor([[3.0, 0.0], [-3.0, 0.0]], dtype=DOUBLE).repeat(25, 1)
    sampler.anchoring.lookup.fill(z, problem.apply(z))
    lookup = sampler.anchoring.lookup
    lookup.z[2:] = 30.0
    lookup.x[2:] = 300.0
    context = sampler.encode(obs)
    assert context.share.shape == (2, 2)
    end = sampler.forward_path(obs[0], 64, torch.Generator().manual_seed(0)).end[:, 0, 0]
    assert (end > 0).sum() == 48
    alone = context.select(torch.tensor([1]))
    torch.testing.assert_close(alone.share, sampler.encode(obs[1]).share)
    assert len(alone.repeat(5).obs) == 5


def test_the_precision_outside_is_learned(filled):
    """The path-wise gradient reaches it, and a difference of the loss agrees.

    Mutant: a curvature that is detached with the rest of the encoding, a precision that only the
    span or only its outside sees."""
    problem = Mixing(draw(4, 24, seed=1), (2, 4, 3), bend=0.3)
    obs = problem.observe(2)
    sampler = filled(problem, anchor_precision=0.5)
    bias = sampler.anchoring.log_curvature.bias

    def loss() -> Tensor:
        path = sampler.differentiable_path(obs, 3, torch.Generator().manual_seed(1))
        index = torch.arange(2).repeat(3)
        return (
            path.log_ratio.flatten() - problem.log_reward(path.end.flatten(0, 1), obs[index])
        ).mean()

    (gradient,) = torch.autograd.grad(loss(), bias)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * 1e-5
        values.append(loss().item())
        with torch.no_grad():
            bias -= sign * 1e-5
    assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    assert abs(float(gradient)) > 0.1


def test_bad_ranks_are_refused(make_sampler, problems):
    """Mutant: a rank above the dimension, which QR cuts without a word."""
    cases = [
        ({"rank": 1}, r"sampler.rank must be 0, or in 2..3, the size of the noise, got 1"),
        ({"rank": 4}, r"sampler.rank must be 0, or in 2..3, the size of the noise, got 4"),
        ({"rank": 2, "newton": 0}, r"sampler.newton must be >= 1 steps, got 0"),
        ({"rank": 2, "components": 2}, r"sampler.rank needs sampler.components=1, got 2"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            make_sampler(problems["vector"], (3,), (3,), informed="anchor", lookup=5, **options)
