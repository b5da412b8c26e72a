"""The measures on the card of the VAE, on cases whose value is known."""

import math

import pytest
import torch

from outsourced.zoo import evaluate


def images(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d():
    """Mutant: unnormalised directions, a mean of absolute values, or unsorted projections."""
    x, generator = images(300, 0), torch.Generator().manual_seed(1)
    shuffled = x[torch.randperm(300, generator=generator)]
    assert evaluate.sliced_wasserstein(x, shuffled, generator) < 1e-6
    moved = shuffled + 0.5  # a shift of length 0.5 · √16 = 2; E (c·θ)² = |c|²/16
    distance = evaluate.sliced_wasserstein(x, moved, generator, n=20000)
    assert distance == pytest.approx(0.5, rel=0.03)


def test_psnr_is_taken_on_the_unit_range_for_each_image():
    """Mutant: PSNR on [-1, 1] (6 dB off), or one PSNR of the mean error of the batch."""
    x = torch.zeros(2, 1, 4, 4)
    y = x + torch.tensor([0.2, 0.02]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(evaluate.psnr(x, y), torch.tensor([20.0, 40.0]))


def test_class_shares_count_the_votes_of_the_neighbours():
    """Mutant: shares of the training labels, or of the farthest images."""
    train = torch.cat([images(20, 3) * 0.1, images(20, 4) * 0.1 + 5, images(20, 5) * 0.1 - 5])
    labels = torch.arange(3).repeat_interleave(20)
    x = torch.cat([images(6, 6) * 0.1 + 5, images(2, 7) * 0.1 - 5])
    shares = evaluate.class_shares(x, train, labels)
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.75, 0.25]))


def test_active_units_are_those_that_the_encoder_uses():
    """Mutant: log variance in place of variance, or a threshold on the total."""

    class Encoder(torch.nn.Module):
        def encode(self, x):
            mean = torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], dim=1)
            return mean, torch.tensor([0.5, 1.0]).expand(len(x), 2)

    x = torch.ones(3, 1, 4, 4)
    kl, active = evaluate.active_units(Encoder(), x)
    expected = 0.5 * (1 + 0.25 - 1) + math.log(2)
    torch.testing.assert_close(kl, torch.tensor([expected, 0.0]))
    assert active == 1
