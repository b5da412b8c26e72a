"""The recipe of the embedded VAE on a few small images."""

import pytest
import torch
from torch import nn

from outsourced.data import to_model_range
from outsourced.priors import VAE
from outsourced.zoo.fashion_vae import elbo_terms, train


def tiny_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(latent=2, width=32, hidden=16, blocks=1, channels=2, couplings=2, flow_hidden=8)


def test_elbo_bounds_the_evidence_and_its_kl_is_right():
    """E_q[log q − log p] is the closed-form KL where the flow is the identity.

    Mutant: a half that is missing, log q without its noise term, or the flow's determinant with
    the wrong sign (which would make importance weights disagree with the change of variables).
    """
    vae = tiny_vae()
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    repeated = x.expand(8000, -1, -1, -1)
    mean, logvar = vae.encoder(x)
    exact = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        _, kl = elbo_terms(vae, repeated, generator)
    torch.testing.assert_close(kl.mean(), exact, rtol=0, atol=0.05)
    for parameter in vae.flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        _, kl = elbo_terms(vae, repeated, generator)
    # E_q[p/q] = 1 wherever the two overlap: only a normalised density p(h) can do this.
    assert torch.exp(-kl).mean() == pytest.approx(1.0, abs=0.1)


def test_training_learns_repeats_and_returns_a_frozen_average():
    """Mutant: an average that is never updated, an optimiser without the flow, or randomness
    outside the seed."""
    rows = torch.arange(28).expand(28, 28)
    bright = torch.randint(0, 2, (64, 1, 1), generator=torch.Generator().manual_seed(2))
    images = torch.where((rows < 14) ^ (bright > 0), 220, 20).byte()
    live, other = tiny_vae(), tiny_vae()
    first = train(live, images, epochs=40, batch=16, rate=5e-3, seed=3)
    second = train(other, images, epochs=40, batch=16, rate=5e-3, seed=3)
    assert first.fingerprint() == second.fingerprint()
    assert not any(p.requires_grad for p in first.parameters())
    before = dict(tiny_vae().named_parameters())
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    x = to_model_range(images)

    def loss(vae):
        with torch.no_grad():
            error, kl = elbo_terms(vae, x, torch.Generator().manual_seed(4))
        return (error / (2 * vae.sigma**2) + kl).mean().item()

    # An average over a thousand steps lags far behind after 160.
    assert 10 * loss(live) < loss(first) < 0.9 * loss(tiny_vae())
