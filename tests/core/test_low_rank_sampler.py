"""Samplers about anchors with curvatures of low rank, against exact posteriors."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.control import ANCHOR_GAIN
from outsourced.tasks.base import Observation
from tests.core.mixing import DOUBLE, MODES, Mixing, draw


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
