"""Stored draws: the best of them is found, and they travel with the weights."""

import math

import pytest
import torch

from outsourced.laplace import Anchored
from outsourced.lookup import Lookup


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_best_draw_of_each_observation_is_found(problems):
    """Mutant: the best draw of the whole batch, the worst one, or the index over observations."""
    problem = problems["spatial"]
    lookup = Lookup(50, (2, 4, 3), (2, 4, 3))
    z = draw(50, 2, 4, 3)
    lookup.fill(z, torch.tanh(z))
    obs = problem.observe(5)
    found = lookup(problem, obs)
    for row in range(5):
        rewards = problem.log_reward(z, obs[row].repeat(50))
        torch.testing.assert_close(found[row], z[rewards.argmax()], rtol=0, atol=2e-3)
    assert len({tuple(part.flatten().tolist()) for part in found}) > 1


def test_draws_without_a_finite_reward_are_not_chosen(problems):
    """Mutant: NaN, which argmax takes for the largest of all."""
    lookup = Lookup(3, (3,), (3,))
    z = torch.tensor([[math.nan] * 3, [9.0] * 3, [0.1] * 3])
    lookup.fill(z, torch.tanh(z))
    assert torch.allclose(
        lookup(problems["vector"], problems["vector"].observe(2)), z[2].double(), atol=1e-3
    )


def test_draws_that_do_not_fit_are_refused():
    """Mutant: fewer draws broadcast over the rest."""
    with pytest.raises(ValueError, match=r"sampler.lookup=3 needs z \(3, 2\) .* got \(1, 2\)"):
        Lookup(3, (2,), (4,)).fill(torch.zeros(1, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"sampler.lookup must be >= 1 draws.* got 0"):
        Lookup(0, (2,), (4,))


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.97])
def test_anchored_posterior_of_the_end_is_a_product_of_gaussians(rho):
    """N(rho z, spread^2) times the likelihood that turns N(0, 1) into N(anchor, 1/(1 + curvature)).

    Mutant: the likelihood's centre for the posterior's mean, or rho missing in the prior mean."""
    z, anchor = draw(2, 3, 4), draw(3, 4, seed=1)
    curvature = draw(3, 4, seed=2).exp()
    rho = torch.tensor(rho, dtype=torch.float64)
    spread = (1 - rho**2).sqrt()
    delta, c = Anchored(anchor, curvature).posterior(z, rho, spread)
    centre = anchor * (1 + curvature) / curvature
    precision = 1 / spread**2 + curvature
    mean = (rho * z / spread**2 + curvature * centre) / precision
    torch.testing.assert_close(rho * z + spread * delta, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(spread**2 * c, (1 / precision).expand_as(c), rtol=1e-9, atol=1e-9)


def test_open_gates_sample_the_gaussian_about_the_anchor(make_sampler, problems):
    """Zero network outputs: z_K ~ N(anchor, 1/(1 + e^3)), entry by entry.

    Mutant: a variance of the normalised end for its standard deviation, or gates that open beyond
    the Gaussian."""
    problem = problems["spatial"]
    sampler = make_sampler(
        problem,
        (2, 4, 3),
        (2, 4, 3),
        random=False,
        steps=12,
        informed="anchor",
        lookup=40,
        anchor_precision=3.0,
    )
    z = draw(40, 2, 4, 3)
    sampler.anchoring.lookup.fill(z, torch.tanh(z))
    sampler.control.open()
    obs = problem.observe(2)
    end = sampler(obs, 4000, torch.Generator().manual_seed(0))
    std = (1 + math.exp(3)) ** -0.5
    anchor = sampler.anchoring.lookup(problem, obs)
    assert (end.mean(0) - anchor).abs().max() < 5 * std / math.sqrt(4000)
    assert (end.std(0) / std - 1).abs().max() < 5 / math.sqrt(2 * 4000)


def test_a_climb_improves_the_anchor(make_sampler, problems):
    """Mutant: a climb that is accepted and ignored, or one that leaves the stored draw unused."""
    problem, values = problems["vector"], {}
    z, obs = draw(40, 3), problem.observe(4)
    for steps in (0, 30):
        sampler = make_sampler(problem, (3,), (3,), informed="anchor", lookup=40, climb=steps)
        sampler.anchoring.lookup.fill(z, torch.tanh(z))
        anchor = sampler.encode(obs).anchored.anchor
        values[steps] = problem.log_reward(anchor, obs) - 0.5 * anchor.square().sum(-1)
        if steps == 0:
            assert torch.equal(anchor, sampler.anchoring.lookup(problem, obs))
    assert (values[30] > values[0]).all()
    with pytest.raises(ValueError, match=r"sampler.climb must be >= 0 steps, got -1"):
        make_sampler(problem, (3,), (3,), informed="anchor", climb=-1)


def test_paths_take_turns_at_the_best_draws(make_sampler, problems):
    """Path i starts from the draw of rank i modulo the number of anchors, whether drawn or scored.

    Mutant: ranks that go with the observation, one anchor for all, scores under another anchor
    than the draw's, the worst draws for the best.
    """
    problem = problems["vector"]
    options = {"random": False, "steps": 6, "informed": "anchor", "anchor_precision": 9.0}
    sampler = make_sampler(problem, (3,), (3,), lookup=40, anchors=3, **options)
    z, obs = draw(40, 3), problem.observe(2)
    sampler.anchoring.lookup.fill(z, torch.tanh(z))
    sampler.control.open()
    score = problem.pairwise_log_reward(torch.tanh(z.half().float()), obs)
    ranked = z[score.argsort(0, descending=True)[:3]]  # (3, 2, 3)
    path = sampler.forward_path(obs, 5, torch.Generator().manual_seed(0))
    assert (path.end - ranked[[0, 1, 2, 0, 1]]).abs().max() < 0.1
    torch.testing.assert_close(sampler.log_ratio(path, obs), path.log_ratio, rtol=1e-4, atol=1e-3)
    one = sampler.encode(obs).select(torch.tensor([1])).repeat(3)
    assert (one.anchored.anchor - ranked[:, 1]).abs().max() < 1e-2
    assert len(sampler.encode(obs, 2).embedding) == 4
    with pytest.raises(ValueError, match=r"sampler.anchors must be in 1..lookup = 5, got 6"):
        make_sampler(problem, (3,), (3,), informed="anchor", lookup=5, anchors=6)


def test_several_anchors_weigh_both_modes(make_sampler, problems):
    """Importance weights of paths from different anchors estimate one log Z without bias.

    Mutant: weights that forget which anchor a path came from.
    """
    problem = problems["vector"]
    obs = problem.observe(1)
    options = {"random": False, "steps": 12, "informed": "anchor", "anchor_precision": -1.0}
    z = draw(400, 3)
    reward = problem.log_reward(draw(200_000, 3), obs[torch.zeros(200_000, dtype=torch.long)])
    expected = reward.double().logsumexp(0) - math.log(200_000)
    for anchors in (1, 4):
        sampler = make_sampler(problem, (3,), (3,), lookup=400, anchors=anchors, **options)
        sampler.anchoring.lookup.fill(z, torch.tanh(z))
        sampler.control.open()
        path = sampler.forward_path(obs, 20_000, torch.Generator().manual_seed(1))
        weight = problem.log_reward(path.end[:, 0], obs[torch.zeros(20_000, dtype=torch.long)])
        weight = weight.double() - path.log_ratio[:, 0].double()
        found = weight.logsumexp(0) - math.log(20_000)
        ess = (2 * weight.logsumexp(0) - (2 * weight).logsumexp(0)).exp()
        assert abs(found - expected) < 4 / ess.sqrt() + 0.02


@pytest.mark.parametrize(("kind", "network"), [("vector", "auto"), ("spatial", "convolutional")])
def test_the_control_may_see_the_slope_at_the_anchor(make_sampler, problems, kind, network):
    """The embedding ends with the gradient of log r - |z|^2 / 2 at the anchor, of size O(1), and
    its log-length.

    Mutant: the gradient of log r alone, that of another observation, a length over the batch.
    """
    problem = problems[kind]
    sampler = make_sampler(
        *(problem, problem.shape, problem.shape),
        **{"informed": "anchor", "network": network, "lookup": 40, "anchor_slope": True},
    )
    z, obs = draw(40, *problem.shape), problem.observe(3)
    sampler.anchoring.lookup.fill(z, torch.tanh(z))
    context = sampler.encode(obs)
    anchor = context.anchored.anchor.clone().requires_grad_()
    density = problem.log_reward(anchor, obs) - 0.5 * anchor.flatten(1).square().sum(1)
    (force,) = torch.autograd.grad(density.sum(), anchor)
    square = force.flatten(1).square().mean(1).reshape(-1, *[1] * (anchor.ndim - 1))
    seen = context.embedding.double()[:, -1 - problem.shape[0] :]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(seen[:, :-1], (force / (1 + square).sqrt()).double(), **close)
    expected = (torch.log1p(square) / 10).double().reshape(3, 1, *[1] * (anchor.ndim - 2))
    torch.testing.assert_close(seen[:, -1:], expected.expand_as(seen[:, -1:]), **close)
