"""The image flow: exactly invertible, its density exact, its noise in place; the embedded one."""

import math

import pytest
import torch
from torch import nn

from outsourced.data import fashion_mnist_subset
from outsourced.priors import ImageFlow
from outsourced.priors.flow_networks import ConvStep, haar, inverse_haar
from outsourced.priors.flow_tokens import TokenBlock, TokenFlow
from outsourced.weights import ZOO_WEIGHTS

WEIGHTS = ZOO_WEIGHTS / "fashion_flow.safetensors"
SMALL = {"width": 8, "layers": 2, "heads": 2, "blocks": 3, "patch": 1, "features": 6,
         "reader_blocks": 1, "hidden": 6, "steps": 3, "image_shape": (1, 8, 8)}  # fmt: skip


def small_flow(seed: int = 0, shape: tuple[int, ...] = (1, 8, 8), patch: int = 1) -> ImageFlow:
    """A small flow in float64 with random weights everywhere, the zero layers included."""
    torch.manual_seed(seed)
    flow = ImageFlow(**{**SMALL, "image_shape": shape, "patch": patch})
    for parameter in flow.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    shape = flow.low.mean.shape
    flow.low.set_statistics(3 * torch.rand(shape) * torch.randn(500, *shape) + torch.randn(shape))
    return flow.double()


def noise(n: int, shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).double()


def test_haar_is_orthonormal_and_separates_what_it_says():
    """Mutant: an unnormalised transform (which would change the density), or two details swapped
    by the inverse."""
    x = noise(3, (2, 4, 6))
    low, details = haar(x)
    torch.testing.assert_close(inverse_haar(low, details), x)
    squares = low.square().sum((1, 2, 3)) + details.square().sum((1, 2, 3))
    torch.testing.assert_close(squares, x.square().sum((1, 2, 3)))
    torch.testing.assert_close(low, 2 * nn.functional.avg_pool2d(x, 2))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 4, 8)  # they change along a row
    assert haar(stripes)[1].abs().sum((2, 3)).tolist() == [[16.0, 0.0, 0.0]]


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 1), ((2, 8, 4), 1), ((1, 8, 8), 2)])
def test_inverse_and_log_determinant_are_exact(shape, patch):
    """Mutant: layers inverted in the wrong order, a log-determinant of the forward map or without
    the factor of the grid, a token that sees itself, keys of another token, a loose tail."""
    flow = small_flow(shape=shape, patch=patch)
    z = noise(4, flow.noise_shape)
    x = flow(z)
    assert x.shape == (4, *shape)
    back, log_det = flow.inverse(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow(back), x, rtol=0, atol=1e-9)
    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse(v[None])[0][0], x[b])
        size = z[0].numel()
        expected = jacobian.reshape(size, size).slogdet().logabsdet
        torch.testing.assert_close(log_det[b], expected, rtol=0, atol=1e-7)


def test_an_untrained_low_flow_is_the_independent_gaussian_of_the_data():
    """Mutant: a variance in place of a standard deviation, one mean for all places, entries that
    patches put elsewhere."""
    torch.manual_seed(0)
    spread, mean = 0.1 + torch.rand(1, 4, 4).double(), torch.randn(1, 4, 4).double()
    data = spread * torch.randn(4000, 1, 4, 4).double() + mean
    flow = TokenFlow((1, 4, 4), patch=2, width=4, layers=1, heads=1, blocks=2).double()
    flow.set_statistics(data)
    z, log_det = flow.inverse(data)
    log_prob = -0.5 * z.square().flatten(1).sum(1) - 8 * math.log(2 * math.pi) + log_det
    exact = torch.distributions.Normal(data.mean(0), data.std(0)).log_prob(data)
    torch.testing.assert_close(log_prob, exact.flatten(1).sum(1), rtol=0, atol=1e-6)


def random_block(backwards: bool) -> TokenBlock:
    torch.manual_seed(0)
    block = TokenBlock(tokens=5, size=2, width=8, layers=2, heads=2, backwards=backwards).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


@pytest.mark.parametrize("backwards", [False, True])
def test_a_token_depends_on_the_noise_before_it_alone(backwards):
    """The Jacobian is triangular in the order of the block, with the tokens' scales on its
    diagonal, whose logarithms sum up to the log-determinant.

    Mutant: both blocks of a pair in the same direction, attention without its mask.
    """
    block, z = random_block(backwards), noise(1, (5, 2))
    slopes = torch.autograd.functional.jacobian(lambda v: block(v[None])[0], z[0])
    seen = slopes.abs().amax((1, 3))  # (data token, noise token)
    future = torch.triu(torch.ones(5, 5), 1).bool()
    later = future.T if backwards else future
    assert (seen[later] == 0).all()
    assert (seen[~later] > 1e-9).all()
    log_det = block.inverse(block(z))[1]
    expected = -slopes.reshape(10, 10).slogdet().logabsdet
    torch.testing.assert_close(log_det[0], expected, rtol=0, atol=1e-9)


def test_draws_with_and_without_gradient_agree():
    """They keep the keys of earlier tokens in different ways.

    Mutant: a buffer that the next token overwrites, or one that holds tokens still to come.
    """
    block, z = random_block(False).requires_grad_(False), noise(3, (5, 2))
    with torch.no_grad():
        plain = block(z)
    torch.testing.assert_close(block(z.clone().requires_grad_()), plain, rtol=0, atol=1e-12)


def test_scales_are_bounded():
    """Mutant: a scale without its bound, which no inverse survives in single precision."""
    block = random_block(False)
    nn.init.constant_(block.head.bias, 1e3)
    slopes = torch.autograd.functional.jacobian(lambda v: block(v[None])[0], noise(5, (2,)))
    assert slopes.diagonal(0, 0, 2).diagonal(0, 0, 1).max() < math.exp(3) * 1.01
    step = ConvStep(4, 3, 8).double()
    nn.init.constant_(step.net[-1].bias, 1e3)
    h, features = noise(1, (4, 2, 2)), noise(1, (3, 2, 2), 2)
    slope = torch.autograd.functional.jacobian(lambda v: step(v, features), h)
    assert torch.linalg.svdvals(slope.reshape(16, 16)).max() < math.exp(2) * 1.01


def test_noise_moves_the_pixels_at_its_own_place():
    """The layout that spatial samplers rely on: a change of z at one place of the grid changes
    the image most in the same 4×4 block.

    Mutant: patches that are put together in another order than they were cut in, or scrambled
    channels.
    """
    torch.manual_seed(0)
    flow = ImageFlow(**{**SMALL, "image_shape": (1, 16, 16), "patch": 2}).double()
    smooth = nn.functional.avg_pool2d(torch.randn(2000, 1, 16, 16), 3, 1, 1)
    flow.low.set_statistics(nn.functional.pixel_unshuffle(haar(smooth)[0], 2))
    z = noise(1, flow.noise_shape)
    for row, column, channels in ((1, 2, slice(0, 4)), (3, 0, slice(4, 16))):
        moved = z.clone()
        moved[:, channels, row, column] += 1.0
        energy = nn.functional.avg_pool2d((flow(moved) - flow(z)).square(), 4)[0, 0]
        assert energy.argmax().item() == row * 4 + column


def test_weights_round_trip_with_their_sizes(tmp_path):
    """Mutant: axes or statistics that are not saved, default sizes in place of the file's."""
    flow = small_flow().float()
    path = tmp_path / "small.safetensors"
    flow.save_weights(path, {})
    loaded = ImageFlow.from_weights(path)
    z = noise(4, flow.noise_shape).float()
    torch.testing.assert_close(loaded(z), flow(z), rtol=5e-3, atol=0.05)
    assert loaded.noise_shape == (16, 2, 2)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "ImageFlow.steps must be >= 1, got 0"),
        ({"hidden": -3}, "ImageFlow.hidden must be >= 1, got -3"),
        ({"heads": 3}, "heads must divide ImageFlow.width = 8, got 3"),
        ({"image_shape": (1, 28, 30)}, r"divisible by 4, got \(1, 28, 30\)"),
    ],
)
def test_bad_sizes_are_named(change, message):
    """Mutant: a size that torch refuses later with a message about matrices."""
    with pytest.raises(ValueError, match=message):
        ImageFlow(**{**SMALL, **change})


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs `python -m outsourced.zoo.fashion_flow`")
def test_the_embedded_flow_inverts_test_images_and_samples_garments():
    """Round trip, density and samples lie within the brackets of the card.

    Mutant: weights of an untrained flow (the Gaussian of the data), inverses that lose digits
    through extreme scales, or images in [0, 1].
    """
    from outsourced.zoo.evaluate import sliced_wasserstein
    from outsourced.zoo.fashion_flow import bits_per_dimension

    flow = ImageFlow.from_weights("fashion_flow")
    test, train = fashion_mnist_subset("test")[0], fashion_mnist_subset("train")[0]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1024, *flow.noise_shape, generator=generator)
    with torch.no_grad():
        assert (flow(flow.inverse(test)[0]) - test).abs().max() < 1e-3
        samples = flow(z)
        bits = bits_per_dimension(flow, test[:500], generator)
    assert bits < 4.5  # eight bits for uniform grey levels; the card's on all test images

    def distance(x):
        return sliced_wasserstein(x, test, torch.Generator().manual_seed(0))

    gaussian = train[:1024].mean(0) + train[:1024].std(0) * torch.randn(1024, 1, 32, 32)
    assert distance(samples) < 4 * distance(train[:1024])
    assert distance(samples) < 0.5 * distance(gaussian)
    double = flow.double()
    with torch.no_grad():
        back = double(double.inverse(test[:64].double())[0])
    assert (back - test[:64]).abs().max() < 1e-9
    assert WEIGHTS.stat().st_size < 6e6
