"""The user's own picture with the user's own mask or blur kernel."""

import numpy as np
import pytest
import torch
from PIL import Image

from outsourced.observing import observe_picture
from outsourced.posterior import Posterior
from outsourced.priors import CallablePrior
from outsourced.tasks import (
    Deblur,
    Denoise,
    Inpaint,
    Mixture,
    MotionKernel,
    Observation,
    RandomBox,
    SuperResolution,
)

SHAPE = (1, 16, 16)


def of(task) -> Posterior:
    return Posterior(CallablePrior(lambda z: z.view(-1, *SHAPE), (256,), SHAPE, True), task)


@pytest.fixture
def files(tmp_path):
    """A grey picture, a mask that hides one row, and a kernel of 3 x 3 pixels."""
    picture = np.arange(256, dtype="uint8").reshape(16, 16)
    Image.fromarray(picture).save(tmp_path / "x.png")
    mask = np.full((16, 16), 255, "uint8")
    mask[3] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    kernel = np.zeros((3, 3), "uint8")
    kernel[1, 2] = 9
    Image.fromarray(kernel).save(tmp_path / "kernel.png")
    return tmp_path


def observe(task, files, **options) -> tuple[torch.Tensor | None, Observation]:
    values = {"mask": None, "observed": False, "sigma": None, "kernel": None} | options
    generator = torch.Generator().manual_seed(0)
    return observe_picture(of(task), files / "x.png", generator=generator, **values)


def test_a_kernel_of_ones_own_replaces_the_random_one(files):
    """A small kernel gets a dark border; y is the blurred picture, or the picture itself.

    Mutants: the random kernel kept, the kernel in a corner of the frame, the observed picture
    blurred once more.
    """
    task = Deblur(SHAPE, MotionKernel(7), 1e-4, padding="circular")
    x, obs = observe(task, files, kernel=files / "kernel.png")
    assert x is not None
    kernel = torch.zeros(7, 7)
    kernel[3, 4] = 1
    assert torch.equal(obs.params["filter"][0, 0], kernel)
    torch.testing.assert_close(obs.y, x.roll(1, -1), rtol=0, atol=1e-3)
    none, seen = observe(task, files, kernel=files / "kernel.png", observed=True)
    assert none is None
    assert torch.equal(seen.y, x)
    with pytest.raises(ValueError, match=r"observed=true needs kernel=\.\.\., which"):
        observe(task, files, observed=True)


def test_mixtures_take_the_operator_that_has_a_use_for_it(files):
    """A mask means inpainting, a kernel deblurring, whatever kind would have been drawn.

    Mutants: the mask stored beside a random kind, which ignores it; the first kind of all.
    """
    parts = {
        "denoise": Denoise(SHAPE, 0.1),
        "superres": SuperResolution(SHAPE, 2, 0.2),
        "motion": Deblur(SHAPE, MotionKernel(7), 0.3),
        "inpaint": Inpaint(SHAPE, RandomBox(2, 4), 0.4),
    }
    task = Mixture(SHAPE, parts)
    _, masked = observe(task, files, mask=files / "mask.png")
    assert masked.params["kind"].tolist() == [3]
    assert masked.sigma.item() == pytest.approx(0.4)
    assert (masked.y.view(16, 16) == 0).all(1).tolist() == [row == 3 for row in range(16)]
    _, blurred = observe(task, files, kernel=files / "kernel.png")
    assert blurred.params["kind"].tolist() == [2]
    assert blurred.sigma.item() == pytest.approx(0.3)
    assert (blurred.params["mask"] == 0).all()


def test_errors_name_the_option(files):
    """Mutant: a mask that a deblurring run ignores, a kernel cut to size."""
    inpaint, deblur = Inpaint(SHAPE, RandomBox(2, 4), 0.1), Deblur(SHAPE, MotionKernel(3), 0.1)
    mask, kernel = files / "mask.png", files / "kernel.png"
    with pytest.raises(ValueError, match=r"mask=\.\.\. needs a run with random masks"):
        observe(deblur, files, mask=mask)
    with pytest.raises(ValueError, match=r"kernel=\.\.\. needs a run with random kernels"):
        observe(inpaint, files, kernel=kernel)
    with pytest.raises(ValueError, match=r"either mask=\.\.\. or kernel="):
        observe(deblur, files, mask=mask, kernel=kernel)
    Image.fromarray(np.full((5, 5), 9, "uint8")).save(kernel)
    with pytest.raises(ValueError, match="at most 3 x 3 pixels, as in training, got 5 x 5"):
        observe(deblur, files, kernel=kernel)
