"""The recipe of the embedded CNF on problems whose answer is known."""

import itertools

import torch

from outsourced.priors.cnf import Velocity
from outsourced.zoo.fashion_cnf import couple, flow_matching_loss, train


def test_coupling_is_the_cheapest_permutation():
    """Mutant: the most expensive pairing, the inverse permutation, or images reordered instead."""
    generator = torch.Generator().manual_seed(0)
    z, x = torch.randn(5, 2, 3, generator=generator), torch.randn(5, 2, 3, generator=generator)
    costs = {
        order: (z[list(order)] - x).square().sum().item()
        for order in itertools.permutations(range(5))
    }
    best = min(costs, key=lambda order: costs[order])
    assert best not in (tuple(range(5)), tuple(torch.tensor(best).argsort().tolist()))
    torch.testing.assert_close(couple(z, x), z[list(best)])


def test_the_loss_is_zero_for_the_velocity_of_known_paths():
    """For pairs x = 2 z + 1 the paths do not cross and v(x_t, t) = (x_t - t) / (1 + t) + 1.

    Mutant: time reversed, z - x in place of x - z, or one t for the batch.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.rand(6, generator=generator, dtype=torch.float64)

    def exact(x, t):
        at = t.reshape(-1, 1, 1, 1)
        return (x - at) / (1 + at) + 1

    assert flow_matching_loss(exact, z, 2 * z + 1, t) < 1e-20
    assert flow_matching_loss(exact, z, 2 * z + 1.1, t).item() > 1e-3


SIZES = {"channels": (16,), "patch": 2, "image_shape": (1, 4, 4)}


def test_training_learns_repeats_and_returns_an_average():
    """Mutant: an average that is never updated, statistics that are not set, or randomness
    outside the seed."""
    bright = torch.randint(0, 2, (64, 1, 1, 1), generator=torch.Generator().manual_seed(2))
    x = torch.where(bright > 0, 0.5, -0.8).expand(-1, 1, 4, 4).contiguous()

    def trained(epochs):
        torch.manual_seed(0)
        live = Velocity(**SIZES)
        return live, train(live, x, epochs, pool=64, batch=32, rate=1e-2, seed=1)

    live, average = trained(40)
    first, second = trained(2)[1].state_dict(), trained(2)[1].state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    torch.testing.assert_close(average.mean, x.mean(0))
    torch.testing.assert_close(average.std, x.std(0))
    untrained = Velocity(**SIZES)
    untrained.set_statistics(x.mean(0), x.std(0))
    generator = torch.Generator().manual_seed(3)
    z, t = torch.randn(x.shape, generator=generator), torch.rand(64, generator=generator)
    with torch.no_grad():
        losses = [flow_matching_loss(v, z, x, t).item() for v in (live, average, untrained)]
    # All pixels of an image agree, which no linear field of single pixels can use; an average
    # over a thousand steps lags behind after 80.
    assert losses[0] < losses[1] < losses[2]
    assert losses[0] < 0.8 * losses[2]
