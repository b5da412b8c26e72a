"""What a solver costs: evaluations of networks, and memory at its peak."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.counting import Peak, counted, networks
from outsourced.priors import VAE, Prior


class Stepped(Prior):
    """A network that is called three times, then a decoder."""

    def __init__(self, repeated: bool = False) -> None:
        super().__init__((4,), (3,))
        self.network, self.vae = nn.Linear(4, 4), nn.Module()
        self.vae.decoder, self.vae.encoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.repeated = repeated
        self.freeze()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            z = (
                checkpoint(self.network, z, use_reentrant=False)
                if self.repeated
                else (self.network(z))
            )
            z = z.tanh()
        return self.vae.decoder(z)


def test_evaluations_of_networks_are_counted_by_samples() -> None:
    """Forward and backward apart; none after the block.

    Mutant: one for a batch, a backward pass for every forward one, hooks that stay.
    """
    prior, z = Stepped(), torch.randn(5, 4)
    with counted(prior) as counts:
        prior(z)
        leaf = z[:2].clone().requires_grad_()
        torch.autograd.grad(prior(leaf).square().sum(), leaf)
    assert counts == {
        "network_forward": 21,
        "network_backward": 6,
        "decoder_forward": 7,
        "decoder_backward": 2,
    }
    prior(z)
    assert counts["network_forward"] == 21


def test_passes_that_checkpointing_repeats_are_evaluations() -> None:
    """Mutant: repeated passes left out, or backward passes counted twice for them."""
    prior, z = Stepped(repeated=True), torch.randn(2, 4, requires_grad=True)
    with counted(prior) as counts:
        torch.autograd.grad(prior(z).sum(), z)
    assert counts["network_forward"] == 12
    assert counts["network_backward"] == 6


def test_other_priors_are_one_network() -> None:
    """Mutant: the decoder of a VAE in the place of f, or the tangents of a Jacobian counted."""
    prior = VAE.from_weights("fashion_vae")
    assert set(networks(prior)) == {"f"}
    z = torch.randn(3, 16)
    with counted(prior) as counts:
        torch.func.jvp(prior, (z,), (torch.ones_like(z),))
    assert counts == {"f_forward": 3}


def test_peak_is_what_the_block_adds() -> None:
    """Memory of before does not count, freed memory of the block does.

    Mutant: the size at the end, the largest size of the whole process, or kibibytes.
    """
    before = torch.ones(60_000_000)
    del before
    with Peak(torch.device("cpu")) as peak:
        inside = torch.ones(25_000_000)
        del inside
    assert peak.megabytes is not None
    assert 95 < peak.megabytes < 115
    with Peak(torch.device("cpu")) as peak:
        pass
    assert peak.megabytes < 10
