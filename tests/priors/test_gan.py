"""The GAN's generator: style, initialisation, weights; and that the embedded one is good."""

import pytest
import torch
from torch.nn import functional as F

from outsourced.data import fashion_mnist_subset
from outsourced.metrics import sliced_wasserstein
from outsourced.priors import GAN
from outsourced.priors.gan import StyledUp
from outsourced.weights import ZOO_WEIGHTS

SMALL = {"latent": 4, "style": 6, "channels": (8, 4), "image_shape": (1, 8, 8)}


def small_gan(seed: int = 0) -> GAN:
    torch.manual_seed(seed)
    return GAN(**SMALL)


def test_the_style_scales_the_weights_of_each_image():
    """A block equals a convolution whose kernel is scaled, input channel by input channel.

    Mutant: one style for the whole batch, a scale without its 1, or scaled outputs.
    """
    torch.manual_seed(0)
    block = StyledUp(3, 5, style=4).double()
    h, style = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 4).double()
    out = block(h, style)
    assert out.shape == (2, 5, 8, 8)
    for b in range(2):
        scale = 1 + block.scale.weight @ style[b] + block.scale.bias
        kernel = block.up.weight * scale[:, None, None, None]
        expected = F.conv_transpose2d(h[b : b + 1], kernel, block.up.bias, stride=2, padding=1)
        torch.testing.assert_close(out[b : b + 1], F.silu(expected))


def test_an_untrained_generator_already_varies_with_its_noise():
    """The spread over z is of the order of the spread over pixels.

    Mutant: PyTorch's default initialisation, under which all images are nearly equal; or scales of
    full size, under which nearly every pixel is saturated.
    """
    torch.manual_seed(0)
    gan = GAN()
    with torch.no_grad():
        x = gan(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    assert x.std(0).mean() > 0.5 * x.std()
    assert 0.1 < x.std() < 0.7  # neither grey nor saturated


def test_each_sample_stands_alone():
    """Mutant: a batch normalisation, or a style averaged over the batch."""
    gan = small_gan()
    z = torch.randn(5, 4)
    torch.testing.assert_close(gan(z)[2:3], gan(z[2:3]), rtol=0, atol=1e-6)
    gan.train()
    torch.testing.assert_close(gan(z)[2:3], gan(z[2:3]), rtol=0, atol=1e-6)


def test_weights_round_trip_with_their_sizes(tmp_path):
    """Mutant: the default sizes in place of the file's."""
    gan, path = small_gan(), tmp_path / "small.safetensors"
    gan.save_weights(path, {"steps": "1"})
    loaded = GAN.from_weights(path)
    assert loaded.noise_shape == (4,)
    assert loaded.data_shape == (1, 8, 8)
    z = torch.randn(6, 4)
    torch.testing.assert_close(loaded(z), gan(z), rtol=0, atol=5e-3)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 0}, "GAN.latent must be > 0, got 0"),
        ({"style": -1}, "GAN.style must be > 0, got -1"),
        ({"channels": (8, 0)}, r"GAN.channels must be a list of sizes > 0, got \[8, 0\]"),
        ({"image_shape": (1, 32, 32)}, "must end in 8, 8 for 2 channels, got .*one number"),
    ],
)
def test_bad_sizes_are_named(change, message):
    """Mutant: a size that gives images of another shape than data_shape promises."""
    with pytest.raises(ValueError, match=message):
        GAN(**{**SMALL, **change})


def edges(x: torch.Tensor) -> float:
    """Root mean square of the discrete Laplacian: how sharp the images are."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).reshape(1, 1, 3, 3)
    return F.conv2d(x, kernel).square().mean().sqrt().item()


def test_the_embedded_gan_draws_all_garments_sharply():
    """Each class has its share by 5 nearest neighbours, and edges are those of photographs.

    Mutant: a generator that lost modes, one that paints averages, or weights of the first steps.
    """
    path = ZOO_WEIGHTS / "fashion_gan.safetensors"
    if not path.is_file():
        pytest.skip("not trained: python -m outsourced.zoo.fashion_gan")
    from outsourced.zoo.evaluate import class_shares

    gan = GAN.from_weights()
    (test, _), (train, labels) = (fashion_mnist_subset(split) for split in ("test", "train"))
    z = torch.randn(len(test), 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = torch.cat([gan(part) for part in z.split(256)])
    assert class_shares(samples, train, labels).min() > 0.02
    blurred = F.avg_pool2d(test, 3, 1, padding=1, count_include_pad=False)
    assert edges(samples) > 0.5 * (edges(blurred) + edges(test))

    def distance(x):
        return sliced_wasserstein(
            x.flatten(1), test.flatten(1), 256, torch.Generator().manual_seed(0)
        )

    assert distance(samples) < distance(blurred)
    assert path.stat().st_size < 4e6
