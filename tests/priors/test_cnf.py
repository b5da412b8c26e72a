"""The CNF: its solvers and its velocity on flows known in closed form; the embedded one."""

import itertools

import pytest
import torch
from torch import nn

from outsourced.data import fashion_mnist_subset
from outsourced.priors import CNF
from outsourced.priors.cnf import Velocity, integrate
from outsourced.weights import ZOO_WEIGHTS

WEIGHTS = ZOO_WEIGHTS / "fashion_cnf.safetensors"
SMALL = {"channels": (8, 8), "layers": 1, "patch": 2, "image_shape": (1, 8, 8)}


def small_velocity(seed: int = 0) -> Velocity:
    """A small field in float64 whose UNet does something, unlike an untrained one."""
    torch.manual_seed(seed)
    velocity = Velocity(**SMALL)
    nn.init.normal_(velocity.unet.conv_out.weight, std=0.3)
    velocity.set_statistics(torch.randn(1, 8, 8), 0.2 + torch.rand(1, 8, 8))
    return velocity.double()


def noise(n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)


def test_the_linear_field_carries_noise_to_the_gaussian_at_the_order_of_the_solver():
    """With a UNet that returns zero the exact solution is mean + std z; Euler's error halves and
    Heun's falls to a quarter when the steps double.

    Mutant: a Heun that is Euler (or averages the wrong two slopes), time running from 1 to 0,
    t at the end of a step, a mean or a std that is lost, an untrained UNet that is not zero.
    """
    velocity = Velocity(**SMALL).double()
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 8, 8, generator=generator)
    std = 0.3 + torch.rand(1, 8, 8, generator=generator)
    velocity.set_statistics(mean, std)
    z = noise(4)
    exact = mean + std * z
    for solver, order in (("euler", 1), ("heun", 2)):
        errors = [
            (CNF(velocity, solver, steps)(z) - exact).abs().mean().item() for steps in (16, 32, 64)
        ]
        assert errors[2] < 0.05
        for coarse, fine in itertools.pairwise(errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.12), (solver, errors)


def test_the_residual_is_uncorrelated_with_the_state_and_has_the_announced_scale():
    """For independent z and x the closed form is the best linear estimate of x - z, and what it
    leaves, over std * scale, has unit variance at every t: that is what the UNet must output.

    Mutant: a linear coefficient for another path (variance preserving, time reversed), or a scale
    of the output that explodes or vanishes at an end.
    """
    velocity = Velocity(**SMALL).double()
    std = torch.full((1, 8, 8), 0.4)
    velocity.set_statistics(torch.full((1, 8, 8), -0.5), std)
    z, x = noise(400, 2), -0.5 + 0.4 * noise(400, 3)
    for time in (0.0, 0.3, 0.9, 1.0):
        t = torch.full((400,), time, dtype=torch.float64)
        state = (1 - time) * z + time * x
        left = (x - z) - velocity(state, t)
        total = time**2 * 0.16 + (1 - time) ** 2
        unit = left / (0.4 * total**-0.5)
        assert unit.square().mean().item() == pytest.approx(1.0, abs=0.04)
        correlation = (unit * (state + 0.5 * time) / total**0.5).mean().item()
        assert correlation == pytest.approx(0.0, abs=0.02)


def test_the_unet_reads_and_writes_in_those_units_and_in_place():
    """A UNet that returns its input makes the velocity linear with a known coefficient.

    Mutant: patches that are put back in another order, an input or output that is not scaled, a
    time in [0, 1] where the embedding expects step numbers.
    """
    velocity = small_velocity()
    seen = []

    class Echo(nn.Module):
        def forward(self, patches, timestep, return_dict):
            seen.append(timestep)
            return (patches,)

    velocity.unet = Echo()
    x, t = noise(3), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    time, variance = t.reshape(3, 1, 1, 1), velocity.std**2
    total = time**2 * variance + (1 - time) ** 2
    coefficient = (time * variance - (1 - time) + velocity.std) / total
    expected = velocity.mean + coefficient * (x - time * velocity.mean)
    torch.testing.assert_close(velocity(x, t), expected)
    torch.testing.assert_close(seen[0], torch.tensor([0.0, 400.0, 1000.0], dtype=torch.float64))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_gradients_with_and_without_checkpoints_are_the_same_and_right(solver):
    """Mutant: a solver that detaches, or a checkpoint that closes over the last step's time."""
    velocity, z, weight = small_velocity(), noise(2), noise(2, 5)
    gradients = []
    for checkpointed in (True, False):
        leaf = z.clone().requires_grad_()
        (CNF(velocity, solver, 3, checkpointed)(leaf) * weight).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    prior, direction = CNF(velocity, solver, 3), noise(2, 6)
    h = 1e-5
    slope = ((prior(z + h * direction) - prior(z - h * direction)) * weight).sum() / (2 * h)
    assert (gradients[0] * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)


def test_checkpoints_recompute_and_calls_are_counted():
    """Mutant: an option `checkpointed` that is ignored, or `calls` that forgets Heun's second."""
    count = 0

    def field(x, t):
        nonlocal count
        count += 1
        return x.tanh()

    for solver, calls in (("euler", 3), ("heun", 6)):
        assert CNF(small_velocity(), solver, 3).calls == calls
        for checkpointed, after_backward in ((True, 2 * calls), (False, calls)):
            z, count = noise(2).requires_grad_(), 0
            x = integrate(field, z, solver, 3, checkpointed)
            assert count == calls
            x.sum().backward()
            assert count == after_backward


def test_a_batch_is_its_members():
    """Mutant: a normalisation over the batch, or one time for all."""
    prior = CNF(small_velocity(), "heun", 3)
    z = noise(4)
    alone = torch.cat([prior(z[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(prior(z), alone, rtol=0, atol=1e-10)


def test_weights_round_trip_and_the_solver_is_part_of_the_prior(tmp_path):
    """Mutant: sizes or pixel statistics that are lost; a fingerprint blind to solver or steps,
    which would let a bank of pairs serve another map."""
    velocity = small_velocity().float()
    path = tmp_path / "small.safetensors"
    velocity.save_weights(path, {})
    prior = CNF.from_weights(path, solver="heun", steps=5)
    z = noise(4).float()
    torch.testing.assert_close(prior(z), CNF(velocity, "heun", 5)(z), rtol=0, atol=2e-2)
    assert not any(p.requires_grad for p in prior.parameters())
    prints = {
        CNF.from_weights(path, solver=solver, steps=steps).fingerprint()
        for solver, steps in (("heun", 5), ("euler", 5), ("euler", 10))
    }
    assert len(prints) == 3
    assert prior.fingerprint() in prints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "rk4"}, "CNF.solver must be one of euler, heun, got 'rk4'"),
        ({"steps": 0}, "CNF.steps must be >= 1, got 0"),
    ],
)
def test_bad_settings_of_the_solver_are_named(change, message):
    """Mutant: a KeyError, or a prior of no steps that returns its noise."""
    with pytest.raises(ValueError, match=message):
        CNF(small_velocity(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "Velocity.layers must be >= 1, got 0"),
        ({"channels": (8, 12)}, r"Velocity.channels must be multiples of 8, got \(8, 12\)"),
        ({"image_shape": (1, 10, 8)}, r"H and W divisible by 4 .*got \(1, 10, 8\)"),
    ],
)
def test_bad_sizes_are_named(change, message):
    """Mutant: a size that diffusers refuses later, or in its first forward pass."""
    with pytest.raises(ValueError, match=message):
        Velocity(**{**SMALL, **change})


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs `python -m outsourced.zoo.fashion_cnf`")
def test_the_embedded_cnf_samples_garments_within_twelve_calls():
    """Samples lie within the brackets of the card, and twelve calls are near the ODE's limit.

    Mutant: weights of an untrained field (Gaussian images), images in [0, 1], or a solver that
    needs hundreds of steps.
    """
    from outsourced.zoo.evaluate import sliced_wasserstein

    test, _ = fashion_mnist_subset("test")
    train, _ = fashion_mnist_subset("train")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 1, 32, 32, generator=generator)
    prior = CNF.from_weights("fashion_cnf")
    assert prior.calls <= 12
    with torch.no_grad():
        samples = prior(z)
        limit = CNF(prior.velocity, "heun", 16)(z[:32])
    gaussian = prior.velocity.mean + prior.velocity.std * z

    def distance(x):
        return sliced_wasserstein(x, test[:256], torch.Generator().manual_seed(0))

    assert distance(samples) < 2.5 * distance(train[:256])
    # 256 samples and as many images differ by chance: training images by 0.05 of the 0.15 here.
    assert distance(samples) < 0.75 * distance(gaussian)
    assert (samples[:32] - limit).square().mean().sqrt() < 0.2
    assert WEIGHTS.stat().st_size < 4e6
