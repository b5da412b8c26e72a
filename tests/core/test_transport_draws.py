"""Draws of transports: batches, refinement, temperature, what samples carry, and refusals."""

import pytest
import torch

from outsourced.posterior import Posterior
from outsourced.priors import VAE
from outsourced.sampler import NoiseSampler
from outsourced.solvers import Amortized
from outsourced.tasks import Denoise
from outsourced.transport import NoiseTransport
from tests.core.transports import SHAPE, SIGMA, GaussianDiffusion, transport


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return Posterior(GaussianDiffusion(), Denoise(SHAPE, sigma=SIGMA))


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


def test_each_fit_is_about_the_end_of_the_one_before(posterior):
    """A curved decoder: several fits end at y + sigma noise, where one stays far off.

    Mutants: the Jacobian or the residual of the first fit in all, fits whose steps are those of the
    first, a solver that keeps the sampler's own.
    """
    prior = posterior.prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "decode", lambda h: h + h**3)
        obs = posterior.task.sample(torch.full((3, *SHAPE), 3.0), torch.Generator().manual_seed(1))
        draws = {}
        for refine in (16, [16], [16] * 6, [1] + [16] * 6):
            sampler = transport(posterior, refine=refine)
            _, draws[str(refine)] = sampler.draw(obs, 500, torch.Generator().manual_seed(2))
        solver = Amortized(transport(posterior, refine=16), posterior, refine=[16] * 6)
        asked = solver(obs, 500, torch.Generator().manual_seed(2)).x
        plain = Amortized(transport(posterior, refine=16), posterior, refine=0)
        assert plain(obs, 2).x.abs().max() < 4
    error = {name: (h + h**3 - obs.y) / SIGMA for name, h in draws.items()}
    assert torch.equal(draws["16"], draws["[16]"])
    assert error["[16]"].abs().median() > 3
    for name in (str([16] * 6), str([1] + [16] * 6)):
        assert error[name].mean(0).abs().max() < 5 / 500**0.5
        torch.testing.assert_close(
            error[name].std(0), torch.ones_like(error[name][0]), rtol=0.15, atol=0
        )
    torch.testing.assert_close(asked, draws[str([16] * 6)])


@pytest.mark.parametrize("refine", [-1, 1.5, [2, 0], [1.5]])
def test_refuses_fits_of_no_steps(posterior, refine):
    """Mutant: a number that is accepted and never used."""
    with pytest.raises(ValueError, match=r"sampler\.refine must be >= 0 steps or a list of"):
        transport(posterior, refine=refine)
    with pytest.raises(ValueError, match=r"solver\.refine must be >= 0 steps or a list of"):
        Amortized(transport(posterior), posterior, refine=refine)


def test_refinement_is_of_transports():
    """Mutant: an option that other samplers ignore."""
    prior = VAE.from_weights("fashion_vae")
    problem = Posterior(prior, Denoise(prior.data_shape, sigma=0.1))
    sampler = NoiseSampler((16,), problem.task.feature_shape, problem, steps=2, width=8)
    with pytest.raises(ValueError, match=r"solver\.refine is for a transport.*NoiseSampler"):
        Amortized(sampler, problem, refine=[2, 2])


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
            assert samples.estimates == (temperature < 1)
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


def test_medoids_of_a_transport_are_some_of_its_draws(posterior):
    """With or without their noise. Mutants: draws of other noise, the inversion of another one."""
    sampler = transport(posterior, tolerance=1e-5)
    _, _, obs = posterior.simulate(2, torch.Generator().manual_seed(1))
    draws = Amortized(sampler, posterior)(obs, 8, torch.Generator().manual_seed(2)).x
    plain = Amortized(sampler, posterior, medoid=4)(obs, 2, torch.Generator().manual_seed(2))
    assert plain.z is None
    assert plain.estimates
    for i in range(2):
        found = (draws[4 * i : 4 * i + 4] == plain.x[i]).flatten(2).all(-1)
        assert found.sum(0).tolist() == [1, 1]
    noisy = Amortized(sampler, posterior, noise=True, medoid=4)
    full = noisy(obs, 2, torch.Generator().manual_seed(2))
    torch.testing.assert_close(full.x, plain.x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(posterior.decode(full.z[0]), full.x[0])
    with pytest.raises(ValueError, match=r"draws that differ, got 4 with .*temperature=0"):
        Amortized(sampler, posterior, temperature=0.0, medoid=4)


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
