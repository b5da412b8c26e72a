"""The classifiers: what they compute, and what the shipped ones have learned."""

import math

import pytest
import torch
from torch.nn import functional as F

from outsourced.classifiers import Classifier, FashionClassifier, FashionFeatures, ResidualBlock
from outsourced.data import fashion_mnist_subset

SHIPPED = (FashionClassifier, FashionFeatures)


def tiny(kind: type[Classifier], seed: int = 0) -> Classifier:
    """A small network whose every weight matters: the zero-initialised ones are drawn too."""
    torch.manual_seed(seed)
    sizes = {"size": 6} if kind is FashionFeatures else {}
    network = kind(width=8, classes=4, image_shape=(1, 16, 16), **sizes)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def images(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def guesses() -> dict[str, torch.Tensor]:
    """Log-probabilities of the first 1024 test images by each shipped network."""
    x, _ = fashion_mnist_subset("test")
    with torch.no_grad():
        return {kind.embedded: kind.from_weights().log_probs(x) for kind in SHIPPED}


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_classifier_is_accurate_and_calibrated(kind, guesses):
    """92 % on all test images allows 90 % on these 1024; its mean confidence is its accuracy.

    Mutant: weights of another file, images on [0, 1], or a sharpened softmax.
    """
    _, labels = fashion_mnist_subset("test")
    log_probs = guesses[kind.embedded]
    accuracy = (log_probs.argmax(1) == labels).double().mean().item()
    assert accuracy > 0.90
    assert F.nll_loss(log_probs, labels) < 0.27
    assert log_probs.exp().amax(1).mean().item() == pytest.approx(accuracy, abs=0.03)


def test_shipped_classifiers_are_independent(guesses):
    """They err on different images: a reward cannot be gamed and judged by one set of errors.

    Mutant: one network under two names, or copies that differ in the seed of a rounding only.
    """
    _, labels = fashion_mnist_subset("test")
    a, b = (guess.argmax(1) for guess in guesses.values())
    wrong_a, wrong_b = a != labels, b != labels
    either, both = (wrong_a | wrong_b).sum().item(), (wrong_a & wrong_b).sum().item()
    assert both < 0.8 * either
    weights = [kind.from_weights().parameters() for kind in SHIPPED]
    kernels = [{tuple(p.shape) for p in each if p.ndim == 4} for each in weights]
    assert not kernels[0] & kernels[1]  # the heads are alike: 96 features, ten classes


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_classifier_is_small_and_frozen(kind):
    """Mutant: weights in single precision (too large), or left trainable."""
    network = kind.from_weights()
    assert 2 * sum(p.numel() for p in network.parameters()) < 1.5e6
    assert not any(p.requires_grad for p in network.parameters())
    x = images(2, 32).requires_grad_()
    network.log_probs(x)[:, 3].sum().backward()
    assert x.grad.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("kind", SHIPPED)
def test_gradient_of_log_probability(kind):
    """Directional derivatives agree with central differences in float64.

    Mutant: a detached or non-differentiable layer, or a log-softmax over the batch.
    """
    network, x = tiny(kind).double(), images(3).double().requires_grad_()
    network.log_probs(x)[:, 1].sum().backward()
    direction, step = images(3, seed=1).double(), 1e-5
    with torch.no_grad():
        ahead, behind = (network.log_probs(x + s * step * direction)[:, 1] for s in (1, -1))
    expected = (x.grad * direction).flatten(1).sum(1)
    torch.testing.assert_close((ahead - behind) / (2 * step), expected, rtol=1e-5, atol=1e-8)
    assert expected.abs().min() > 1e-4


@pytest.mark.parametrize("kind", SHIPPED)
def test_an_image_is_judged_alone(kind):
    """Logits of an image do not depend on the others, nor on a training mode.

    Mutant: batch normalisation, or dropout.
    """
    network, x = tiny(kind).double(), images(5).double()
    x[1:] *= 3
    alone = network(x[:1])
    torch.testing.assert_close(network(x)[:1], alone, rtol=1e-9, atol=1e-9)
    network.train()
    torch.testing.assert_close(network(x)[:1], alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(network(x)[1], alone[0], atol=1e-3)


def test_log_probs_are_normalised_logits():
    """Mutant: unnormalised logits, or probabilities."""
    network, x = tiny(FashionClassifier), images(4)
    logits = network(x)
    expected = torch.stack([row - math.log(row.exp().sum()) for row in logits])
    torch.testing.assert_close(network.log_probs(x), expected)


def test_logits_are_those_of_the_features():
    """Mutant: features after the nonlinearity (applied twice then), or of another layer."""
    network, x = tiny(FashionFeatures), images(4)
    features = network.features(x)
    assert features.shape == (4, 6)
    assert bool((features < -0.2).any())  # before the nonlinearity, which ends at -0.17
    torch.testing.assert_close(network.logits(features), network(x))


def test_maps_lead_to_the_features():
    """The rest of the network makes the features of the last map; each is a nonlinearity's output.

    Mutant: outputs before the nonlinearity, which go far below zero; a layer left out.
    """
    network, x = tiny(FashionFeatures), images(4)
    maps = network.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4)]
    assert all(-0.171 < float(m.min()) < 0 < float(m.max()) for m in maps)
    torch.testing.assert_close(network.body[-3:](maps[-1]), network.features(x))


def test_residual_block_starts_as_the_identity():
    """Mutant: no skip connection (all zero then), or a block that stays the identity."""
    torch.manual_seed(0)
    block, x = ResidualBlock(8), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x + block.convs[1].bias[:, None, None])
    torch.nn.init.normal_(block.convs[1].weight, std=0.2)
    changed = block(x) - x
    assert changed.std() > 0.1
    assert changed[:, :, 0, 0].std() > 0.1


@pytest.mark.parametrize("kind", SHIPPED)
def test_weights_come_back(kind, tmp_path):
    """Mutant: a size missing in the config, so that the defaults are built."""
    network, x = tiny(kind), images(3)
    network.save_weights(tmp_path / "a.safetensors", {})
    again = kind.from_weights(tmp_path / "a.safetensors")
    assert again.config == network.config
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0.02)  # half precision


@pytest.mark.parametrize("kind", SHIPPED)
def test_wrong_sizes_are_refused(kind):
    """Mutant: an error of some convolution deep inside, or none."""
    with pytest.raises(
        ValueError, match=rf"{kind.embedded} .*\(B, 1, 16, 16\), got \(2, 1, 8, 8\)"
    ):
        tiny(kind)(images(2, 8))
    with pytest.raises(ValueError, match=r"got \(1, 16, 16\)"):
        tiny(kind).features(images(2)[0])
    for arguments, message in (
        ({"width": 12}, "width must be a positive multiple of 8, got 12"),
        ({"classes": 0}, "classes must be > 0, got 0"),
        ({"image_shape": (1, 28, 28)}, r"divisible by 8, got \(1, 28, 28\)"),
    ):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\..*{message}"):
            kind(**arguments)
