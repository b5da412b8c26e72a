"""Noise carried along a conditional flow and back: closed form, the untrained map, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn

from outsourced.posterior import Posterior
from outsourced.priors import VAE
from outsourced.priors.base import Prior
from outsourced.priors.diffusion_schedule import Schedule
from outsourced.sampler import NoiseSampler
from outsourced.solvers import Amortized
from outsourced.tasks import Denoise
from outsourced.transport import NoiseTransport

SHAPE, SCALE, SIGMA, STEPS = (1, 4, 4), 0.6, 0.4, 60


class Linear(nn.Module):
    """A denoiser that is linear at every timestep: conv_out of gain[t, c] conv_in(x)_c."""

    def __init__(self, alphas: Tensor):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.conv_out.weight.fill_(1.0)
            self.conv_out.bias.zero_()
            self.conv_in.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            self.conv_in.bias.zero_()
        # E[noise | state] where pixels are N(0, SCALE^2).
        gain = (1 - alphas).sqrt() / (alphas * SCALE**2 + 1 - alphas)
        self.gain = nn.Parameter(torch.stack([gain, 0.5 * torch.ones_like(gain)], 1))

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        gain = self.gain[torch.as_tensor(timestep).long().expand(len(x))]
        return (self.conv_out(gain[:, :, None, None] * self.conv_in(x)),)


class GaussianDiffusion(Prior):
    """DDIM on independent Gaussian pixels: f multiplies noise by a constant."""

    def __init__(self) -> None:
        from diffusers import DDIMScheduler

        super().__init__(SHAPE, SHAPE)
        self.schedule = Schedule(
            DDIMScheduler(clip_sample=False, set_alpha_to_one=True), None, STEPS
        )
        self.alphas_cumprod = self.schedule.begin().alphas_cumprod.clone()
        self.network = Linear(self.alphas_cumprod)
        self.timesteps, self.calls = self.schedule.timesteps, STEPS
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        return self.denoise(z)

    def decode(self, h: Tensor) -> Tensor:
        return h

    encode = image = decode

    def denoise(self, z: Tensor) -> Tensor:
        return self.schedule.integrate(lambda x, t: self.network(x, t)[0], z)

    def invert(self, h: Tensor, tolerance: float) -> tuple[Tensor, float]:
        z = self.schedule.invert(lambda x, t: self.network(x, t)[0], h, tolerance)
        return z, 2.0 * len(h)

    def apply_network(self, network: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
        return network(x, timestep)[0]


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return Posterior(GaussianDiffusion(), Denoise(SHAPE, sigma=SIGMA))


def transport(posterior: Posterior, **options) -> NoiseTransport:
    torch.manual_seed(0)
    shapes = posterior.prior.noise_shape, posterior.task.feature_shape
    return NoiseTransport(*shapes, posterior, **{"width": 8, **options})


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
    sampler, seen = transport(posterior, steps=4), []
    apply = posterior.prior.apply_network

    def record(network: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return apply(network, x, timestep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posterior.prior, "apply_network", record)
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
    sampler, seen = transport(posterior, steps=6, between=(2.0, 0.5)), []
    with torch.no_grad():
        sampler.encoder.head.bias[1] = math.log(0.25)
        sampler.network.conv_out.weight.zero_()
        sampler.network.conv_out.bias.copy_(torch.tensor([0.0, 1.0]))
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    apply = posterior.prior.apply_network

    def record(network: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return apply(network, x, timestep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posterior.prior, "apply_network", record)
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


def test_a_batch_is_its_observations_alone(posterior):
    """Chunks and other observations change nothing. Mutant: rows in the order of the other axis."""
    sampler = transport(posterior)
    with torch.no_grad():  # let it see what it is given
        sampler.network.conv_in.weight.normal_(generator=torch.Generator().manual_seed(5))
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    noise = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(6))
    posterior.chunk = 4
    whole = sampler.forward_path(obs, 2, torch.Generator().manual_seed(6))
    posterior.chunk = 4096
    assert torch.equal(whole.z[0].flatten(0, 1), noise)
    for row in range(6):
        alone = sampler.latents(noise[row : row + 1], sampler.encode(obs[row % 3]))
        end, _ = posterior.prior.invert(alone, sampler.tolerance)
        torch.testing.assert_close(whole.end.flatten(0, 1)[row], end[0], rtol=1e-4, atol=1e-4)


def test_refinement_gives_the_posterior_of_a_linear_decoder(posterior):
    """A flat prior: as many conjugate gradients as unknowns end at y + sigma noise whatever the
    draws were, and with one operator for all pixels the first one does.

    Mutants: no noise, noise of other units, steps that are taken but not returned, of the other
    observations.
    """
    prior = posterior.prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "decode", lambda h: 2 * h, raising=False)
        _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
        sampler = transport(posterior, refine=1)
        _, latents = sampler.draw(obs, 2000, torch.Generator().manual_seed(2))
    error = (2 * latents - obs.y) / SIGMA
    assert error.mean(0).abs().max() < 5 / 2000**0.5
    torch.testing.assert_close(error.std(0), torch.ones_like(error[0]), rtol=0.1, atol=0)
    plain = transport(posterior).draw(obs, 2000, torch.Generator().manual_seed(2))[1]
    assert (plain - latents).abs().mean() > 0.1
    with pytest.raises(ValueError, match=r"sampler\.refine must be >= 0 steps, got -1"):
        transport(posterior, refine=-1)


def test_temperature_is_the_spread_of_the_noise(posterior):
    """Of the draws and of the measurement noise that the refinement adds: at 0 all are the same.

    Mutants: an inversion of other noise, a refinement that stays warm, a variance for its root.
    """
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    for refine in (0, 1):
        sampler = transport(posterior, refine=refine, tolerance=1e-5)
        with torch.no_grad():  # let it see what it is given
            sampler.network.conv_in.weight.normal_(generator=torch.Generator().manual_seed(5))
        spread = {}
        for temperature in (1.0, 0.5, 0.0):
            solver = Amortized(sampler, posterior, temperature=temperature)
            samples = solver(obs, 200, torch.Generator().manual_seed(2))
            spread[temperature] = float(samples.x.std(0).mean())
        assert spread[0.5] == pytest.approx(0.5 * spread[1.0], rel=1e-3)
        assert spread[0.0] < 1e-6
        full = Amortized(sampler, posterior, noise=True, temperature=0.5)
        samples = full(obs, 200, torch.Generator().manual_seed(2))
        assert float(samples.x.std(0).mean()) == pytest.approx(spread[0.5], rel=0.01)
    for temperature in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"solver\.temperature must lie in 0 \.\. 1, got"):
            Amortized(sampler, posterior, temperature=temperature)
    with pytest.raises(ValueError, match=r"uncorrected samples.*got 0.5 with a.*correct=pcn"):
        Amortized(sampler, posterior, correct="pcn", temperature=0.5)


def test_latents_are_decoded_where_no_noise_is_asked_for(posterior):
    """The same x as that of the noise, for no inversion and no call of f.

    Mutants: other draws, noise that is missing where it was asked for, x that f would clamp.
    """
    sampler = transport(posterior, tolerance=1e-5)
    _, _, obs = posterior.simulate(2, torch.Generator().manual_seed(1))
    calls = posterior.prior_calls
    plain = Amortized(sampler, posterior)(obs, 4, torch.Generator().manual_seed(2))
    assert plain.z is None
    assert plain.prior_calls == 0
    assert posterior.prior_calls == calls
    full = Amortized(sampler, posterior, noise=True)(obs, 4, torch.Generator().manual_seed(2))
    assert full.prior_calls == 8 + 16  # f, and as the inversion of this prior says
    torch.testing.assert_close(full.x, plain.x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(posterior.decode(full.z[0]), full.x[0])


def test_samples_count_equally_and_moves_start_from_them(posterior):
    """Mutants: weights of zero, which say that all is well; weights of another sampler."""
    sampler = transport(posterior)
    _, _, obs = posterior.simulate(2, torch.Generator().manual_seed(1))
    samples = Amortized(sampler, posterior, noise=True)(obs, 4, torch.Generator().manual_seed(2))
    assert samples.log_weight is None
    assert samples.proposal_log_weight is None
    assert torch.equal(samples.x[:, 0], posterior.decode(samples.z[:, 0]))
    moved = Amortized(sampler, posterior, correct="pcn", moves=40)(obs, 4)
    assert (moved.z - samples.z).abs().mean() > 0.1
    for correct in ("importance", "smc", "imh"):
        with pytest.raises(ValueError, match=f"solver.correct={correct} needs samples with weig"):
            Amortized(sampler, posterior, correct=correct)
    with pytest.raises(ValueError, match="candidates=9 > n = 4 needs samples with weights"):
        Amortized(sampler, posterior, correct="pcn", candidates=9)(obs, 4)


def test_refuses_priors_that_it_does_not_fit(posterior):
    """Each with the way out."""
    prior = VAE.from_weights("fashion_vae")
    task = Denoise(prior.data_shape, sigma=0.1)
    with pytest.raises(ValueError, match=r"needs a diffusion prior with a U-Net, got VAE"):
        NoiseTransport((16,), task.feature_shape, Posterior(prior, task))
    with pytest.raises(ValueError, match=r"sampler\.tolerance must be > 0, got 0"):
        transport(posterior, tolerance=0)
    assert NoiseSampler.weighted
    assert not NoiseTransport.weighted
