"""The best fit of a decoder: a closed form, and which problems have one."""

import pytest
import torch
from torch import Tensor

from benchmarks.reach import best_fit, reachable, reached
from benchmarks.worth import Judge
from outsourced.classifiers import FashionFeatures
from outsourced.posterior import Posterior
from outsourced.priors import VAE, LatentDiffusionPrior
from outsourced.tasks import Denoise, PhaseRetrieval


def blocks(h: Tensor) -> Tensor:
    """Images of constant 4 x 4 blocks."""
    return h.mean(1, keepdim=True).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    return Posterior(prior, Denoise(prior.data_shape, sigma=0.05))


def test_best_fit_leaves_what_the_decoder_cannot_say(posterior, monkeypatch) -> None:
    """Of a decoder of blocks it is their means, and the residual is the deviation within them.

    Mutants: a step that is taken although it fits worse, steps of other observations, a prior that
    pulls back, a residual of the truth.
    """
    monkeypatch.setattr(posterior.prior, "decode", blocks)
    monkeypatch.setattr(posterior.prior, "image", blocks)
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    obs = posterior.task.sample(x, torch.Generator().manual_seed(1))
    found = posterior.decode_latents(best_fit(posterior, obs, rounds=2))
    means = torch.nn.functional.avg_pool2d(obs.y, 4)
    torch.testing.assert_close(found[:, :, ::4, ::4], means, rtol=1e-3, atol=1e-3)
    judge = Judge(x, torch.rand(40, 1, 32, 32) * 2 - 1, FashionFeatures.from_weights())
    rest = (obs.y - found).square().flatten(1).mean(1).sqrt() / 0.05
    assert reached(judge, posterior, obs)["residual"] == pytest.approx(float(rest.mean()), rel=1e-3)


def test_more_rounds_fit_better(posterior) -> None:
    """Through the shipped decoder. Mutant: latents that are encoded once and never improved."""
    z = torch.randn(2, *posterior.prior.noise_shape, generator=torch.Generator().manual_seed(2))
    x = posterior.decode(z)
    obs = posterior.task.sample(x, torch.Generator().manual_seed(3))
    errors = [
        (posterior.decode_latents(best_fit(posterior, obs, rounds)) - obs.y).flatten(1).norm(dim=1)
        for rounds in (0, 1, 4)
    ]
    assert (errors[1] < errors[0]).all()
    assert (errors[2] < errors[1]).all()


def test_only_decoders_and_linear_measurements_have_one(posterior) -> None:
    """Mutant: a VAE, whose f is no autoencoder of latents, or a task without an estimate."""
    assert reachable(posterior)
    vae = VAE.from_weights("fashion_vae")
    assert not reachable(Posterior(vae, Denoise(vae.data_shape, sigma=0.05)))
    shape = posterior.prior.data_shape
    assert not reachable(Posterior(posterior.prior, PhaseRetrieval(shape, sigma=0.05)))
