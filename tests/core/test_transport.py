"""Noise carried along a conditional flow and back: closed form, the untrained map, its levels."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.tasks import Denoise
from tests.core.transports import (
    SCALE,
    SHAPE,
    SIGMA,
    STEPS,
    GaussianDiffusion,
    recorded,
    transport,
)


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return Posterior(GaussianDiffusion(), Denoise(SHAPE, sigma=SIGMA))


def test_untrained_transport_is_the_prior(posterior):
    """Its network is the prior's own, and the inversion undoes it.

    Mutants: new input channels that are looked at, another order of timesteps in one direction.
    """
    sampler = transport(posterior, tolerance=1e-5)
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    path = sampler.forward_path(obs, 5, torch.Generator().manual_seed(2))
    assert path.z.shape == (2, 5, 3, *SHAPE)
    assert path.log_ratio is None
    torch.testing.assert_close(path.end, path.z[0], rtol=1e-3, atol=1e-3)


def exact(posterior: Posterior, noise: Tensor, y: Tensor) -> Tensor:
    """The same sampler with the closed-form denoiser of p(x | y), and back through f: z."""
    prior = posterior.prior
    c = float(prior.denoise(torch.ones(1, *SHAPE)).mean())

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        alpha = float(prior.alphas_cumprod[timestep])
        precision = 1 / c**2 + alpha / (1 - alpha) + 1 / SIGMA**2
        clean = (alpha**0.5 / (1 - alpha) * x + y / SIGMA**2) / precision
        return (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5

    return prior.schedule.integrate(predict, noise) / c


def test_learns_the_gaussian_posterior(posterior):
    """x = c z and y = x + sigma n: samples are those of the closed-form denoiser for the same
    noise, which have the mean c y / (c^2 + sigma^2) and, but for their few steps, its deviation.

    Mutants: targets of another parametrisation, noise levels of other rows, latents of other
    observations, an inversion that is left out (it would draw x in the place of z).
    """
    sampler = transport(posterior)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    generator = torch.Generator().manual_seed(3)
    for _ in range(600):
        _z, x, obs = posterior.simulate(64, generator)
        loss = sampler.matching_loss(x, obs, 2, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    c = float(posterior.prior.denoise(torch.ones(1, *SHAPE)).mean())
    assert c == pytest.approx(SCALE, rel=0.05)
    _, _, obs = posterior.simulate(20, torch.Generator().manual_seed(4))
    path = sampler.forward_path(obs, 100, generator)
    mean, std = c * obs.y / (c**2 + SIGMA**2), SIGMA / (c**2 + SIGMA**2) ** 0.5
    wanted = exact(posterior, path.z[0].flatten(0, 1), obs.y.repeat(100, 1, 1, 1))
    error = path.end.flatten(0, 1) - wanted
    assert error.square().mean().sqrt() < 0.1 * std
    assert (path.end.mean(0) - mean).square().mean().sqrt() < 0.15 * std
    assert float(wanted.unflatten(0, (100, 20)).std(0).mean()) == pytest.approx(std, rel=0.1)


def test_the_encoder_learns_its_gaussian(posterior):
    """Of p(h | y) = N(c^2 y / (c^2 + sigma^2), c^2 sigma^2 / (c^2 + sigma^2)), by its own loss.

    Mutants: a loss of other rows, a log standard deviation for a log variance.
    """
    sampler, generator = transport(posterior), torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(sampler.encoder.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        _z, x, obs = posterior.simulate(64, generator)
        optimizer.zero_grad()
        sampler.regression_loss(x, obs).mean().backward()
        optimizer.step()
        schedule.step()
    _, _, obs = posterior.simulate(50, generator)
    with torch.no_grad():
        mean, log_variance = sampler.encoder.gaussian(sampler.encode(obs).embedding)
    square = float(posterior.prior.denoise(torch.ones(1, *SHAPE)).mean()) ** 2
    variance = square * SIGMA**2 / (square + SIGMA**2)
    assert (mean - variance / SIGMA**2 * obs.y).square().mean().sqrt() < 0.15 * variance**0.5
    assert log_variance.exp().mean() == pytest.approx(variance, rel=0.15)


def test_a_network_that_trusts_the_encoder_gives_its_gaussian(posterior):
    """With a share of 1, one step guesses the mean of N(estimate, 1) given the state.

    Mutants: mean and log variance in each other's place, a share of the network's own output, the
    Gaussian of another level.
    """
    sampler = transport(posterior)
    with torch.no_grad():
        sampler.network.conv_out.weight.zero_()
        sampler.network.conv_out.bias.copy_(torch.tensor([7.0, 1.0]))
    _, _, obs = posterior.simulate(5, torch.Generator().manual_seed(1))
    estimate, level = posterior.latent_estimate(obs), torch.arange(5) * 10
    state = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2))
    found = sampler._call(state, level, sampler.encode(obs).embedding)
    alpha = posterior.prior.alphas_cumprod[sampler.levels.timesteps[level]].view(5, 1, 1, 1)
    wanted = (1 - alpha).sqrt() * (state - alpha.sqrt() * estimate)  # of noise; variances add to 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_few_steps_begin_and_end_with_the_priors(posterior):
    """Mutants: more calls than were asked for, another order, ends within those of the prior."""
    sampler = transport(posterior, steps=4)
    with recorded(posterior.prior) as seen:
        _, _, obs = posterior.simulate(2, torch.Generator().manual_seed(1))
        sampler.draw(obs, 3)
    times, visited = [int(time[0]) for time in seen], posterior.prior.timesteps.tolist()
    assert all(time.shape == (6,) for time in seen)
    assert len(times) == 4
    assert times == sorted(times, reverse=True)
    assert (times[0], times[-1]) == (visited[0], visited[-1])
    for steps in (0, STEPS + 1):
        with pytest.raises(ValueError, match=rf"steps must lie in 1 .. {STEPS}.*got {steps}"):
            transport(posterior, steps=steps)


def test_the_encoders_gaussian_has_the_ends_of_the_way(posterior):
    """A network that trusts the encoder carries noise to N(estimate, 0.25); it is asked at the
    levels between the two ratios alone, in training too.

    Mutants: a last state in the place of what the Gaussian makes of it, another level of entry, a
    last level that the network is asked at, levels of the whole way.
    """
    sampler = transport(posterior, steps=6, between=(2.0, 0.5))
    with torch.no_grad():
        sampler.encoder.head.bias[1] = math.log(0.25)
        sampler.network.conv_out.weight.zero_()
        sampler.network.conv_out.bias.copy_(torch.tensor([0.0, 1.0]))
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    with recorded(posterior.prior) as seen:
        noise, latents = sampler.draw(obs, 4, torch.Generator().manual_seed(2))
        drawn = torch.stack(seen)
        sampler.matching_loss(latents[0], obs, 40, torch.Generator().manual_seed(3))
    wanted = posterior.latent_estimate(obs) + 0.5 * noise
    torch.testing.assert_close(latents, wanted, rtol=0.02, atol=0.02)
    alpha = posterior.prior.alphas_cumprod[drawn[:, 0]]
    ratio = ((1 - alpha) / alpha).sqrt().tolist()
    assert ratio == pytest.approx([2.0 * 0.25 ** (k / 6) for k in range(6)], rel=0.05)
    trained = torch.cat(seen[6:]).unique()
    assert trained.tolist() == drawn[:, 0].sort().values.tolist()
    for between in ((0.2, 2.0), (2.0, 0.0), (30.0, 1.0)):
        with pytest.raises(ValueError, match=r"sampler\.between must be two falling ratios"):
            transport(posterior, steps=4, between=between)
    with pytest.raises(ValueError, match=rf"steps must lie in 1 .. {STEPS}.*got None"):
        transport(posterior, between=(2.0, 0.2))
