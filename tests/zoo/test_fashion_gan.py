"""The recipe of the embedded GAN on a few small images."""

import torch
from torch import nn

from outsourced.priors import GAN
from outsourced.zoo.fashion_gan import (
    Discriminator,
    discriminator_step_loss,
    generator_step_loss,
    gradient_penalty,
    train,
)


class Quadratic(nn.Module):
    """D(x) = a |x|² / 2 + b · x, whose gradient is a x + b."""

    def __init__(self, a: float, b: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), b

    def forward(self, x):
        return 0.5 * self.a * x.square().flatten(1).sum(1) + (self.b * x).flatten(1).sum(1)


def images(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_gradient_penalty_is_the_squared_norm_at_each_image():
    """Mutant: the norm, a mean over pixels, or a penalty without a gradient to the weights."""
    b, x = images(1, 0)[0], images(3, 1)
    discriminator = Quadratic(0.7, b)
    penalty = gradient_penalty(discriminator, x)
    expected = (0.7 * x + b).square().flatten(1).sum(1)
    torch.testing.assert_close(penalty, expected)
    (slope,) = torch.autograd.grad(penalty.sum(), discriminator.a)
    torch.testing.assert_close(slope, (2 * (0.7 * x + b) * x).sum())


def test_the_losses_pair_each_image_with_a_real_one():
    """Mutant: scores against zero in place of against each other, both players with one sign, or a
    generator that also pulls on the real scores."""
    torch.manual_seed(0)
    real, z = images(4, 2).repeat(1, 1, 8, 8), torch.randn(4, 3)
    gan = GAN(latent=3, style=4, channels=(4, 4, 4, 4))
    discriminator = Quadratic(0.05, torch.full((1, 32, 32), 0.02))
    gap = discriminator(real) - discriminator(gan(z))
    fake = gan(z)
    expected = torch.log1p(torch.exp(-gap)).mean()
    torch.testing.assert_close(discriminator_step_loss(discriminator, real, fake, 0.0), expected)
    torch.testing.assert_close(
        generator_step_loss(gan, discriminator, real, z), torch.log1p(torch.exp(gap)).mean()
    )
    penalised = discriminator_step_loss(discriminator, real, fake, 0.4)
    both = (gradient_penalty(discriminator, x).mean() for x in (real, fake))
    torch.testing.assert_close(penalised - expected, 0.4 / 2 * sum(both))
    real = real.clone().requires_grad_(True)
    generator_step_loss(gan, discriminator, real, z).backward()
    assert real.grad is None or not real.grad.any()


def test_training_repeats_and_returns_a_frozen_average():
    """Mutant: an average that is not updated or is the live network, a layer without gradient, or
    randomness outside the seed."""
    data = torch.randint(0, 256, (64, 28, 28), generator=torch.Generator().manual_seed(0)).byte()

    def tiny():
        torch.manual_seed(0)
        return GAN(latent=4, style=16, channels=(16, 16, 8, 8)), Discriminator(1, 8)

    live, opponent = tiny()
    average = train(live, opponent, data, steps=4, batch=8, rate=2e-3, penalty=0.5, seed=1)
    again = train(*tiny(), data, steps=4, batch=8, rate=2e-3, penalty=0.5, seed=1)
    assert average.fingerprint() == again.fingerprint()
    assert not any(p.requires_grad for p in average.parameters())
    start, end = (dict(network.named_parameters()) for network in (tiny()[0], live))
    for name, parameter in average.named_parameters():
        assert not torch.equal(parameter, start[name]), name
        assert not torch.equal(parameter, end[name]), name
