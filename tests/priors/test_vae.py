"""The VAE: its flow, its encoder, its weights file; and that the embedded one is good."""

import pytest
import torch
from torch import nn

from outsourced.data import fashion_mnist_subset
from outsourced.priors import VAE
from outsourced.priors.vae_networks import Flow
from outsourced.weights import ZOO_WEIGHTS

SMALL = {"latent": 4, "width": 16, "hidden": 8, "blocks": 1, "channels": 2, "couplings": 4,
         "flow_hidden": 8, "image_shape": (1, 8, 8)}  # fmt: skip


def small_vae(seed: int = 0) -> VAE:
    """A small VAE with random weights everywhere, the flow's zero layers included."""
    torch.manual_seed(seed)
    vae = VAE(**SMALL)
    for parameter in vae.flow.parameters():
        nn.init.normal_(parameter, std=0.5)
    return vae


def test_flow_inverse_and_log_determinant_are_exact():
    """Mutant: inverting the couplings in the wrong order, or the log-determinant of the forward
    map, or of only one coupling."""
    torch.manual_seed(0)
    flow = Flow(latent=4, hidden=8, couplings=3).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.7)
    z = torch.randn(5, 4, dtype=torch.float64)
    h = flow(z)
    back, log_det = flow.inverse(h)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    for b in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse(v[None])[0][0], h[b])
        torch.testing.assert_close(log_det[b], jacobian.slogdet().logabsdet)


def test_encoder_std_is_the_linearised_posterior():
    """Mutant: the std of the code passed off as that of the noise, or a transposed Jacobian."""
    vae = small_vae().double()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2 - 1
    mean, std = vae.encode(x)
    h, logvar = vae.encoder(x)
    torch.testing.assert_close(vae.flow(mean), h, rtol=0, atol=1e-9)
    torch.testing.assert_close(vae(mean), vae.decoder(h), rtol=0, atol=1e-9)
    for b in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: vae.flow.inverse(v[None])[0][0], h[b]
        )
        covariance = jacobian @ torch.diag(logvar[b].exp()) @ jacobian.T
        torch.testing.assert_close(std[b], covariance.diagonal().sqrt())


def test_weights_round_trip_with_their_sizes(tmp_path):
    """Mutant: default sizes in place of the file's, or a sigma that is lost."""
    vae = small_vae()
    vae.sigma = vae.config["sigma"] = 0.4
    path = tmp_path / "small.safetensors"
    vae.save_weights(path, {"epochs": "1"})
    loaded = VAE.from_weights(path)
    assert loaded.sigma == 0.4
    assert loaded.data_shape == (1, 8, 8)
    z = torch.randn(6, 4)
    torch.testing.assert_close(loaded(z), vae(z), rtol=0, atol=5e-3)
    assert loaded.fingerprint() == VAE.from_weights(str(path)).fingerprint()
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]


def test_fingerprint_changes_with_one_weight():
    """Mutant: a fingerprint of the file name or of the sizes alone."""
    first, second = small_vae(), small_vae()
    assert first.fingerprint() == second.fingerprint()
    second.decoder.head.bias.data[3] += 1e-6
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no_config", "wrong_sizes"])
def test_a_damaged_file_gives_one_clear_error(tmp_path, damage):
    """Mutant: letting the exception of safetensors, json or load_state_dict through."""
    from safetensors.torch import load_file, save_file

    path = tmp_path / "small.safetensors"
    vae = small_vae()
    if damage == "wrong_sizes":
        vae.config["width"] = 32
    vae.save_weights(path, {})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"\x07" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no_config":
        save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"small\.safetensors .*git checkout.*outsourced\.zoo"):
        VAE.from_weights(path)


def test_a_missing_file_names_the_embedded_ones():
    """Mutant: a bare FileNotFoundError of open()."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist .*fashion_v"):
        VAE.from_weights("nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 0}, "VAE.latent must be > 0, got 0"),
        ({"latent": 5}, "VAE.latent must be even, got 5"),
        ({"sigma": -0.1}, "VAE.sigma must be > 0, got -0.1"),
        ({"image_shape": (1, 28, 28)}, "divisible by 8"),
    ],
)
def test_bad_sizes_are_named(change, message):
    """Mutant: a size that torch refuses later with a message about matrices."""
    with pytest.raises(ValueError, match=message):
        VAE(**{**SMALL, **change})


def test_the_embedded_vae_explains_test_images_and_samples_garments():
    """Reconstructions and samples lie within the brackets of the card.

    Mutant: weights of an untrained or collapsed decoder, a flow that is skipped (samples from a
    Gaussian code are blends), or images in [0, 1].
    """
    from outsourced.zoo.evaluate import psnr, sliced_wasserstein

    vae = VAE.from_weights("fashion_vae")
    test, _ = fashion_mnist_subset("test")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        reconstructions = vae(vae.encode(test)[0])
        z = torch.randn(len(test), *vae.noise_shape, generator=generator)
        samples, unwarped = vae(z), vae.decoder(z)
    assert psnr(reconstructions, test).mean() > 21.5  # the card's 21.8 on all test images

    def distance(x):
        return sliced_wasserstein(x, test, torch.Generator().manual_seed(0))

    train, _ = fashion_mnist_subset("train")
    blurred = torch.nn.functional.avg_pool2d(test, 3, 1, padding=1, count_include_pad=False)
    # 1024 training images lie at 0.04, blurred test images at 0.096, Gaussian codes at 0.2.
    assert distance(train[: len(test)]) < distance(samples) < distance(blurred)
    assert distance(samples) < 0.5 * distance(unwarped)
    assert (ZOO_WEIGHTS / "fashion_vae.safetensors").stat().st_size < 6e6
