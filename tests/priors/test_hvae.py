"""The hierarchical VAE: levels, posterior, weights; and that the embedded one is good."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from outsourced.data import fashion_mnist_subset
from outsourced.metrics import psnr, sliced_wasserstein
from outsourced.priors import HVAE
from outsourced.priors.hvae_networks import Level
from outsourced.weights import ZOO_WEIGHTS

SMALL = {"levels": ((2, 1), (1, 1), (2, 4)), "widths": (8, 6), "features": 4,
         "image_shape": (1, 8, 8), "sigma": 0.5}  # fmt: skip


def small_hvae(seed: int = 0, **change) -> HVAE:
    """A small HVAE with random weights everywhere, the zero heads included."""
    torch.manual_seed(seed)
    hvae = HVAE(**{**SMALL, **change})
    for level in hvae.levels:
        for head in (level.prior, level.inferred):
            nn.init.normal_(head.weight, std=0.3)
            nn.init.normal_(head.bias, std=0.3)
    return hvae


def test_a_level_is_mean_of_parents_plus_std_of_parents_times_noise():
    """Mutant: the variance in place of the std, a std that ignores the parents, or an unbounded
    one."""
    torch.manual_seed(0)
    level = Level(2, before=3, width=4, seen=5, sides=(4, 4)).double()
    nn.init.normal_(level.prior.weight)
    nn.init.normal_(level.prior.bias, std=3.0)
    level.below = nn.Identity()
    h, noise = torch.randn(3, 4, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    out = level.absorb(h, noise)
    weight = level.prior.weight[:, :, 0, 0]
    wide = torch.einsum("oc,bchw->bohw", weight, F.silu(h)) + level.prior.bias[:, None, None]
    mean, raw = wide[:, :2], wide[:, 2:]
    latents = mean + torch.exp(3 * torch.tanh(raw / 3)) * noise
    expected = torch.einsum("oc,bchw->bohw", level.writer.weight[:, :, 0, 0], latents)
    torch.testing.assert_close(out, h + expected + level.writer.bias[:, None, None])


def test_split_keeps_every_coordinate_and_its_place():
    """Mutant: levels in reverse order, interleaved channels, or a coordinate that is unused."""
    hvae = small_hvae()
    assert hvae.noise_shape == (2 + 1 + 2 * 16,)
    z = torch.arange(70.0).reshape(2, 35)
    first, second, third = hvae.split(z)
    torch.testing.assert_close(first[:, :, 0, 0], torch.tensor([[0.0, 1], [35, 36]]))
    torch.testing.assert_close(second[:, 0, 0, 0], torch.tensor([2.0, 37]))
    assert third[0, 0, 1, 2] == 3 + 4 + 2
    assert third[1, 1, 0, 3] == 35 + 3 + 16 + 3
    noise = torch.randn(1, 35, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda v: hvae(v).flatten(), noise)
    assert (jacobian.square().sum(0) > 1e-9).all()


def test_encode_gives_the_noise_of_its_own_reconstruction():
    """Mutant: latents in place of ε, lower levels inferred below drawn or zero ε rather than the
    means, or a log std returned as a std."""
    hvae = small_hvae().double()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2 - 1
    mean, std = hvae.encode(x)
    decoded, terms = hvae.infer(x, lambda mean, log_std: mean)
    torch.testing.assert_close(hvae(mean), decoded)
    torch.testing.assert_close(hvae.split(std)[2], terms[2][1].exp())
    # The posterior of the second level depends on what was drawn at the first.
    _, other = hvae.infer(x, lambda mean, log_std: mean + 1)
    torch.testing.assert_close(other[0][0], terms[0][0])
    assert (other[1][0] - terms[1][0]).abs().max() > 1e-3


def test_the_posterior_weighs_noise_correctly():
    """Importance sampling from q(ε|x) and plain sampling from N(0, I) agree on log p(x).

    Mutant: a posterior of the latents rather than of ε, ε of one level fed to another, or an image
    that is decoded from other noise than the posterior reports.
    """
    hvae = small_hvae(levels=((1, 1), (1, 1)), sigma=1.5)
    n, generator = 8000, torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 8, 8, generator=generator) * 2 - 1
    repeated = x.expand(n, -1, -1, -1)
    log_ratio = torch.zeros(n)

    def draw(mean, log_std):
        # Three times as wide: importance weights need a proposal with the longer tails.
        log_std = log_std + math.log(3.0)
        noise = torch.randn(mean.shape, generator=generator)
        epsilon = mean + log_std.exp() * noise
        step = 0.5 * noise.square() + log_std - 0.5 * epsilon.square()
        log_ratio.add_(step.flatten(1).sum(1))
        return epsilon

    def log_evidence(images, log_weight):
        error = (images - x).square().flatten(1).sum(1)
        return (torch.logsumexp(log_weight - error / (2 * 1.5**2), 0) - math.log(n)).item()

    with torch.no_grad():
        inferred, _ = hvae.infer(repeated, draw)
        importance = log_evidence(inferred, log_ratio)
        plain = log_evidence(hvae(torch.randn(n, 2, generator=generator)), torch.zeros(n))
    assert log_ratio.std() > 0.1  # the posterior is not the prior
    assert importance == pytest.approx(plain, abs=0.03)


def test_each_sample_stands_alone():
    """Mutant: any normalisation over the batch."""
    hvae = small_hvae()
    z, x = torch.randn(5, 35), torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(hvae(z)[2:3], hvae(z[2:3]), rtol=0, atol=1e-6)
    torch.testing.assert_close(hvae.encode(x)[0][2:3], hvae.encode(x[2:3])[0], rtol=0, atol=1e-6)


def test_weights_round_trip_with_their_sizes(tmp_path):
    """Mutant: default sizes in place of the file's, or a sigma that is lost."""
    hvae, path = small_hvae(), tmp_path / "small.safetensors"
    hvae.save_weights(path, {"steps": "1"})
    loaded = HVAE.from_weights(path)
    assert loaded.sigma == 0.5
    assert loaded.noise_shape == (35,)
    z = torch.randn(6, 35)
    torch.testing.assert_close(loaded(z), hvae(z), rtol=0, atol=1e-2)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "HVAE.sigma must be > 0, got 0.0"),
        ({"features": 0}, "HVAE.features must be > 0, got 0"),
        ({"image_shape": (1, 28, 28)}, r"side of 8, 16, 32, ..., got \(1, 28, 28\); pad"),
        ({"widths": (8,)}, r"one number > 0 for each of the sides \[1, 4\], got \[8\]"),
        ({"levels": ()}, r"pairs \(channels > 0, side\), got \[\]"),
        ({"levels": ((0, 1),)}, r"pairs \(channels > 0, side\), got"),
        ({"levels": ((1, 4), (1, 1))}, r"stay or move one further in \[1, 4\], got \[4, 1\]"),
        ({"levels": ((1, 1), (1, 8))}, r"stay or move one further in \[1, 4\], got \[1, 8\]"),
    ],
)
def test_bad_sizes_are_named(change, message):
    """Mutant: a list of levels that fails in a convolution, or gives another image size."""
    with pytest.raises(ValueError, match=message):
        HVAE(**{**SMALL, **change})


def test_levels_may_skip_the_vector_and_stop_before_the_finest():
    """Mutant: a decoder that always goes on from the finest side, or an encoder that always ends in
    a vector."""
    widths, shape = (8, 8, 6, 4), (1, 32, 32)
    for levels in [((2, 4),), ((2, 1), (1, 4)), ((2, 1), (2, 1), (1, 4), (1, 8), (1, 16))]:
        hvae = small_hvae(levels=levels, widths=widths, image_shape=shape)
        z = torch.randn(2, *hvae.noise_shape)
        assert hvae(z).shape == (2, *shape)
        mean, _ = hvae.encode(hvae(z))
        assert mean.shape == z.shape


def test_the_embedded_hvae_explains_test_images_and_uses_every_level():
    """Reconstructions are better than those of the small VAE (21.8 dB), samples are garments.

    Mutant: weights of an untrained decoder, a level that collapsed to its prior, or noise of the
    levels in another order than in training.
    """
    path = ZOO_WEIGHTS / "fashion_hvae.safetensors"
    if not path.is_file():
        pytest.skip("not trained: python -m outsourced.zoo.fashion_hvae")
    from outsourced.zoo.evaluate import class_shares
    from outsourced.zoo.fashion_hvae import elbo_terms

    hvae = HVAE.from_weights()
    (test, _), (train, labels) = (fashion_mnist_subset(split) for split in ("test", "train"))
    z = torch.randn(len(test), *hvae.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = torch.cat([hvae(part) for part in z.split(256)])
        reconstructions = torch.cat([hvae(hvae.encode(part)[0]) for part in test.split(256)])
        _, kl = elbo_terms(hvae, test[:256], torch.Generator().manual_seed(0))
    assert psnr(reconstructions, test).mean() > 21.8
    assert (kl.mean(0) > 1.5).all()
    assert class_shares(samples, train, labels).min() > 0.02
    blurred = F.avg_pool2d(test, 3, 1, padding=1, count_include_pad=False)

    def distance(x):
        return sliced_wasserstein(
            x.flatten(1), test.flatten(1), 256, torch.Generator().manual_seed(0)
        )

    untrained = HVAE(**hvae.config)
    with torch.no_grad():
        smear = torch.cat([untrained(part) for part in z.split(256)])
    assert distance(samples) < 0.25 < 0.5 * distance(smear)
    assert distance(reconstructions) < distance(blurred)
    assert path.stat().st_size < 6e6
