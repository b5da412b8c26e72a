"""The recipe of the embedded hierarchical VAE on a few small images."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from outsourced.data import to_model_range
from outsourced.priors import HVAE
from outsourced.zoo.fashion_hvae import elbo_terms, level_weights, objective, train


def tiny_hvae(seed: int = 0) -> HVAE:
    torch.manual_seed(seed)
    return HVAE(levels=((2, 1), (1, 4), (1, 8)), widths=(16, 8, 8, 8), features=8, sigma=0.25)


def test_the_terms_are_those_of_the_bound():
    """Mutant: a half or the log std missing in the divergence, a mean over coordinates, levels
    summed, or an error of another image than the drawn one."""
    hvae = tiny_hvae()
    for level in hvae.levels:
        nn.init.normal_(level.inferred.weight, std=0.5)
    x = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        error, kl = elbo_terms(hvae, x, torch.Generator().manual_seed(1))
        generator, expected = torch.Generator().manual_seed(1), []

        def draw(mean, log_std):
            q = Normal(mean, log_std.exp())
            expected.append(kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)))
            return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)

        image, _ = hvae.infer(x, draw)
    torch.testing.assert_close(kl, torch.stack(expected, 1))
    torch.testing.assert_close(error, ((image - x) ** 2).sum((1, 2, 3)))


def test_the_objective_prices_each_image_and_level_apart():
    """Mutant: free nats of the batch's mean, free nats that add up, or sigma not squared."""
    error = torch.tensor([2.0, 4.0])
    kl = torch.tensor([[0.5, 3.0], [5.0, 0.0]])
    weight = torch.tensor([0.1, 1.0])
    loss = objective(error, kl, sigma=0.5, weight=weight, free=1.0)
    assert loss.item() == pytest.approx((4 + 0.1 * 1 + 3 + 8 + 0.1 * 5 + 1) / 2)


def test_only_the_vector_levels_are_warmed():
    """Mutant: all levels warmed alike, or a ramp that never ends."""
    hvae = tiny_hvae()
    assert level_weights(hvae, 0.0).tolist() == pytest.approx([0.1, 1, 1])
    assert level_weights(hvae, 0.125).tolist() == pytest.approx([0.55, 1, 1])
    assert level_weights(hvae, 0.25).tolist() == level_weights(hvae, 1.0).tolist() == [1, 1, 1]


def test_training_learns_repeats_and_returns_a_frozen_average():
    """Mutant: an average that is never updated, randomness outside the seed, a level without
    gradient."""
    rows = torch.arange(28).expand(28, 28)
    bright = torch.randint(0, 2, (64, 1, 1), generator=torch.Generator().manual_seed(2))
    images = torch.where((rows < 14) ^ (bright > 0), 220, 20).byte()
    short = [train(tiny_hvae(), images, 3, 8, 1e-3, 0.5, seed=3) for _ in range(2)]
    assert short[0].fingerprint() == short[1].fingerprint()
    live = tiny_hvae()
    average = train(live, images, steps=150, batch=16, rate=3e-3, free=0.0, seed=3)
    assert not any(p.requires_grad for p in average.parameters())
    before = dict(tiny_hvae().named_parameters())
    for name, parameter in average.named_parameters():
        assert not torch.equal(parameter, before[name]), name

    def bound(hvae):
        with torch.no_grad():
            error, kl = elbo_terms(hvae, to_model_range(images), torch.Generator().manual_seed(4))
        return objective(error, kl, hvae.sigma, torch.ones(3), 0.0).item()

    assert bound(live) < 0.1 * bound(tiny_hvae())
    # An average over a thousand steps lags behind after 150.
    assert bound(live) < bound(average) < bound(tiny_hvae())
