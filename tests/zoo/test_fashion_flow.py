"""The recipe of the embedded flow on problems whose answer is known."""

import math

import pytest
import torch

from outsourced.priors import ImageFlow
from outsourced.zoo.fashion_flow import (
    BIN,
    bits_per_dimension,
    dequantise,
    details_loss,
    low_loss,
    train,
)

TINY = {"width": 16, "layers": 1, "heads": 2, "blocks": 2, "patch": 1, "features": 8,
        "reader_blocks": 1, "hidden": 8, "steps": 2, "image_shape": (1, 8, 8)}  # fmt: skip


def test_dequantisation_fills_the_bin_and_adds_the_noise():
    """Mutant: noise in [0, 1) without the half (a shift), a bin of 1/255, a variance as std."""
    x = torch.zeros(4000, 1, 4, 4)
    spread = dequantise(x, torch.Generator().manual_seed(0))
    assert spread.abs().max() <= BIN / 2
    assert abs(spread.mean()) < 0.01 * BIN
    assert spread.std().item() == pytest.approx(BIN / math.sqrt(12), rel=0.01)
    noisy = dequantise(x, torch.Generator().manual_seed(0), noise=0.05)
    assert noisy.std().item() == pytest.approx(0.05, rel=0.01)


def test_losses_and_bits_are_those_of_the_whole_density():
    """The two losses make up -log p(x), and bits a dimension measure grey levels: a uniform
    density on [-1 - BIN/2, 1 + BIN/2] would give log2 256 = 8.

    Mutant: bits of the density on [-1, 1] (off by log2 of the bin), nats, a loss that forgets the
    details or weighs them otherwise.
    """
    torch.manual_seed(0)
    flow = ImageFlow(**TINY)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randint(0, 256, (40, 1, 8, 8)) / 127.5 - 1
    with torch.no_grad():
        parts = 16 * low_loss(flow, x) + 48 * details_loss(flow, x)
        whole = -flow.log_prob(x).mean()
        bits = bits_per_dimension(flow, x, torch.Generator().manual_seed(1))
        noisy = dequantise(x, torch.Generator().manual_seed(1))
        nats = -flow.log_prob(noisy).mean().item() / 64
    constant = 32 * math.log(2 * math.pi)
    torch.testing.assert_close(parts + constant, whole, rtol=1e-5, atol=0)
    uniform = 8 - math.log2(2 + BIN)  # density 1 / (2 + BIN) has log2(2 + BIN) bits
    assert bits == pytest.approx(nats / math.log(2) + uniform, abs=1e-4)


def test_training_learns_repeats_and_leaves_no_trace():
    """Mutant: one part that is not fitted, randomness outside the seed, averaged weights that are
    thrown away."""
    generator = torch.Generator().manual_seed(2)
    bright = torch.randint(0, 2, (64, 1, 1, 1), generator=generator)
    edge = torch.randint(0, 2, (64, 1, 1, 1), generator=generator)
    x = torch.where(bright > 0, 0.5, -0.8).repeat(1, 1, 8, 8)
    x[..., 4:] -= 0.2 * edge

    def trained(epochs):
        torch.manual_seed(0)
        return train(ImageFlow(**TINY), x, epochs, epochs, 32, 3e-3, 0.05, 0.01, seed=1)

    flow, untrained = trained(60), trained(0)
    assert trained(2).fingerprint() == trained(2).fingerprint()
    assert not any(p.requires_grad for p in flow.parameters())
    noisy = dequantise(x, torch.Generator().manual_seed(3), 0.05)
    with torch.no_grad():
        for loss in (low_loss, details_loss):
            assert loss(flow, noisy) < loss(untrained, noisy) - 1e-3, loss.__name__
