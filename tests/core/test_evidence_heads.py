"""The learned log Z, flow and anchor, and the closed-form sampler whose log-weights are log Z."""

import math

import pytest
import torch
from torch.distributions import Normal

from outsourced.sampler import Path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("kind", ["vector", "spatial", "convolutional"])
def test_flow_of_the_start_is_log_z(sampler_of, kind):
    """Mutant: a flow of z_0 that depends on z_0, or the log Z of another observation."""
    sampler, obs = sampler_of((kind, "none", "diagonal"), flow=True)
    path = sampler.forward_path(obs, 2, seeded())
    with torch.no_grad():
        context = sampler.encode(obs)
        flow, log_z = sampler.log_flow(path, context), sampler.log_z(context)
    assert flow.shape == (4, 2, 3)
    assert log_z.unique().numel() == 3
    close(flow[0], log_z.expand(2, 3))
    assert (flow[1:] - log_z).abs().min() > 1e-6
    with torch.no_grad():
        for b in range(3):
            alone = sampler.log_flow(Path(path.z[:, 1:, b : b + 1]), sampler.encode(obs[b]))
            close(flow[:, 1:, b : b + 1], alone)


def test_learned_evidence_starts_at_the_laplace_estimate(linear, make_sampler):
    """Mutant: the estimate left out, or a head that is not zero."""
    sampler = make_sampler(linear, (4,), (3,), random=False, informed="gauss_newton")
    obs = linear.observe(3)
    close(sampler.log_z(sampler.encode(obs)), linear.log_z(obs))


def test_anchor_is_trained_as_a_gaussian_density(linear, make_sampler):
    """Mutant: the sign of log_std, or the Laplace summary fed to a head that predicts it."""
    sampler = make_sampler(linear, (4,), (3,), informed="gauss_newton")
    obs = linear.observe(3)
    z = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    mean, log_std = sampler.anchor(sampler.encoder(obs.y)).chunk(2, -1)
    constant = 2 * math.log(2 * math.pi)
    expected = -Normal(mean, log_std.exp()).log_prob(z).sum(-1) - constant
    close(sampler.anchor_loss(sampler.encode(obs).embedding, z), expected)


def test_the_optimal_sampler_draws_the_exact_posterior(optimal, linear, play_noise):
    """The map from noise to z_K is affine: unit noise gives its exact mean and covariance. Mutant:
    wrong bridge variance, missing rho, another time grid."""
    size = 4 * (optimal.steps + 1)
    eye = torch.cat([torch.eye(size), torch.zeros(1, size)]).double()  # the last path is noiseless
    obs = linear.observe(2)
    for b in range(2):
        play_noise(list(eye.unflatten(1, (-1, 4)).transpose(0, 1)))
        end = optimal.forward_path(obs[b], size + 1).end[:, 0]
        mean, covariance = linear.posterior(obs[b])
        close(end[-1], mean[0])
        root = (end[:-1] - end[-1]).T
        close(root @ root.T, covariance[0])


@pytest.mark.parametrize("source", ["forward", "explored", "backward", "reference"])
def test_log_weight_of_the_optimal_sampler_is_log_z_on_any_path(optimal, linear, source):
    """Mutant: wrong bridge variance, missing rho, another time grid."""
    obs = linear.observe(3)
    free = torch.randn(5, 3, 4, generator=seeded(8), dtype=torch.float64)
    path = {
        "forward": lambda: optimal.forward_path(obs, 5, seeded()),
        "explored": lambda: optimal.forward_path(obs, 5, seeded(), exploration=1.0),
        "backward": lambda: optimal.backward_path(2 * free, seeded()),
        "reference": lambda: Path(
            optimal.reference.forward_path(free.flatten(0, 1), seeded()).unflatten(1, (5, 3))
        ),
    }[source]()
    with torch.no_grad():
        ratio = optimal.log_ratio(path, obs)
    index = torch.arange(3).repeat(5)
    reward = linear.log_reward(path.end.flatten(0, 1), obs[index]).unflatten(0, (5, 3))
    close(reward - ratio, linear.log_z(obs).expand(5, 3))
