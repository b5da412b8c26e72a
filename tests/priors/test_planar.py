"""The planar priors have the curve, the masses and the thickness that they announce."""

import math

import pytest
import torch

from outsourced.priors import Rings, SwissRoll, TwoMoons


def noise(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def test_two_moons_halves_lie_on_their_half_circles():
    """Mutant: a lower moon that is shifted but not turned, or both moons from the same sign."""
    x, z = TwoMoons(std=0.0)(noise(4000)), noise(4000)
    upper, lower = x[z[:, 0] < 0], x[z[:, 0] >= 0]
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)).double())
    centre = torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close((lower - centre).norm(dim=1), torch.ones(len(lower)).double())
    assert upper[:, 1].min() >= 0
    assert lower[:, 1].max() <= 0.5
    # Uniform on a half circle: mean height 2/π, mean of the across coordinate 0 and 1.
    torch.testing.assert_close(
        torch.stack([upper.mean(0), lower.mean(0)]),
        torch.tensor([[0, 2 / math.pi], [1, 0.5 - 2 / math.pi]], dtype=torch.float64),
        rtol=0,
        atol=0.05,
    )


def test_rings_have_equal_masses_and_gaussian_thickness():
    """Mutant: mass proportional to the circumference, or z_2 used as a variance."""
    x = Rings(count=3, std=0.05)(noise(6000))
    radius = x.norm(dim=1)
    ring = radius.round()
    shares = ring.long().bincount(minlength=4)[1:] / len(x)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.03)
    torch.testing.assert_close((radius - ring).std().item(), 0.05, rtol=0.05, atol=0)
    torch.testing.assert_close(x.mean(0), torch.zeros(2).double(), rtol=0, atol=0.1)


def test_rings_stay_on_the_last_ring_in_the_far_tail():
    """Mutant: floor(count · Φ(z)) without a clamp, which opens another ring where Φ rounds to 1."""
    x = Rings(count=2, std=0.1)(torch.tensor([[12.0, 0.0], [-12.0, 0.0]]))
    torch.testing.assert_close(x.norm(dim=1), torch.tensor([2.0, 1.0]))


def test_swiss_roll_winds_one_and_a_half_turns():
    """Mutant: a radius that does not grow with the angle, or a single turn."""
    z = torch.tensor([[-9.0, 0.0], [0.0, 0.0], [9.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = SwissRoll(std=0.2)(z)
    expected = torch.tensor([[0, -1.0], [-2, 0], [0, 3], [-2.2, 0]], dtype=torch.float64)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prior", [TwoMoons(), SwissRoll(), Rings()])
def test_gradients_match_finite_differences(prior):
    """Mutant: a detached angle, or a piecewise-constant one."""
    z = torch.tensor([[-1.3, 0.4], [0.7, -1.1], [-0.2, 0.9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(prior, (z.requires_grad_(True),))


def test_bad_arguments_are_named():
    """Mutant: a negative thickness, which mirrors z_2, accepted in silence."""
    with pytest.raises(ValueError, match=r"TwoMoons.std must be >= 0, got -0.1"):
        TwoMoons(std=-0.1)
    with pytest.raises(ValueError, match=r"Rings.count must be >= 1, got 0"):
        Rings(count=0)
