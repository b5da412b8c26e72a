"""Third-party faces: the message where a package is missing; and the priors where it is there."""

import importlib.util
import sys

import pytest
import torch
from torch.nn import functional as F

from outsourced.priors import Faces1024, FacesGAN
from outsourced.priors.faces import package_folder

Z = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("build", "missing", "command"),
    [
        (FacesGAN, "gan_face_generate", "pip install --no-deps gan-face-generate==1.1.1"),
        (Faces1024, "random_face", "pip install --no-deps random-face==2021.7.21.1"),
    ],
)
def test_a_missing_package_gives_its_command(monkeypatch, build, missing, command):
    """Mutant: the ModuleNotFoundError of an import, which names no version and no --no-deps."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(FileNotFoundError, match=f"{missing} is not installed; run: {command}"):
        build()
    assert missing not in sys.modules or missing == "gan_face_generate"


def test_a_package_without_its_weights_is_named(monkeypatch, tmp_path):
    """Mutant: an open() that fails later on a path of site-packages."""
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"hollow holds no w\.tar; .*pip install hollow"):
        package_folder("hollow", ("w.tar",), "pip install hollow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample": 3}, "prior.downsample must be a power of two from 1 to 1024, got 3"),
        ({"downsample": 0}, "prior.downsample must be a power of two from 1 to 1024, got 0"),
        ({"truncation": 0.0}, r"prior.truncation must lie in \(0, 1\], got 0.0"),
        ({"truncation": 1.5}, r"prior.truncation must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named_before_anything_is_loaded(monkeypatch, change, message):
    """Mutant: a check after 40 MB were compiled, or only where the package is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("looked for files"))
    with pytest.raises(ValueError, match=message):
        Faces1024(**change)


def test_faces_gan_is_the_published_generator_in_eval_mode():
    """Faces in colour in (-1, 1), each alone, with a gradient; that of the stored weights.

    Mutant: random weights (grey noise without symmetry), batch statistics, an output in [0, 1].
    """
    pytest.importorskip("gan_face_generate")
    prior = FacesGAN()
    z = torch.randn(8, 100, generator=torch.Generator().manual_seed(0), requires_grad=True)
    x = prior(z)
    assert x.shape == (8, 3, 64, 64)
    assert x.min() < -0.7
    assert x.max() > 0.7
    torch.testing.assert_close(prior(z[:1]), x[:1], rtol=0, atol=1e-5)
    # Skin is red before it is green and blue, in the middle of every face.
    red, green, blue = x.detach()[:, :, 24:48, 20:44].mean((0, 2, 3))
    assert red > green > blue
    # The mean face is symmetric, its top and bottom are not alike.
    with torch.no_grad():
        mean = prior(torch.randn(64, 100, generator=torch.Generator().manual_seed(1))).mean(0)
    mirrored, upside_down = ((mean - mean.flip(axis)).square().mean() for axis in (-1, -2))
    assert mirrored < 0.5 * upside_down
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert (gradient.abs() > 0).float().mean() > 0.99
    assert prior.fingerprint() == FacesGAN().fingerprint()


@pytest.fixture(scope="module")
def faces() -> Faces1024:
    pytest.importorskip("openvino")
    if importlib.util.find_spec("random_face") is None:
        pytest.skip("random-face is not installed")
    return Faces1024(downsample=16)


@pytest.mark.slow
def test_faces_1024_is_a_deterministic_black_box(faces):
    """Mutant: bfloat16 or batched inference, which lets one face depend on its neighbours, images
    outside [-1, 1], a gradient that is silently zero, or BGR."""
    x = faces(Z)
    assert x.shape == (3, 3, 64, 64)
    assert x.abs().max() <= 1
    assert torch.equal(faces(Z[1:2]), x[1:2])
    assert (x[0] - x[1]).abs().mean() > 0.1
    red, _, blue = x[:, :, 24:48, 20:44].mean((0, 2, 3))
    assert red > blue
    assert not faces.differentiable
    with pytest.raises(RuntimeError, match="not differentiable"):
        faces(Z[:1].clone().requires_grad_(True)).sum().backward()


@pytest.mark.slow
def test_downsampling_averages_areas_and_truncation_draws_to_the_mean(faces):
    """Mutant: strided or bilinear shrinking; truncation of z rather than of the style, or towards
    zero."""
    full = Faces1024()
    x = full(Z[:1])
    assert x.shape == (1, 3, 1024, 1024)
    torch.testing.assert_close(faces(Z[:1]), F.avg_pool2d(x, 16), rtol=0, atol=1e-5)
    close = Faces1024(downsample=16, truncation=0.05)
    near, far = close(Z), faces(Z)
    spread = (near - near.mean(0)).square().mean() / (far - far.mean(0)).square().mean()
    assert spread < 0.05
    assert near.std() > 0.3  # a face, not grey
    prints = {prior.fingerprint() for prior in (full, faces, close)}
    assert len(prints) == 3
