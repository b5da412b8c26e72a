"""What the tables of step sizes call a task."""

import json

import pytest

from outsourced.solvers.step_sizes import TUNED, task_name
from outsourced.tasks import (
    CompressedSensing,
    Deblur,
    Denoise,
    GaussianKernel,
    Inpaint,
    MotionKernel,
    RandomPixels,
    SuperResolution,
)
from outsourced.tasks.masks import RandomBox
from outsourced.tasks.region_masks import RandomStripes

SHAPE = (1, 8, 8)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (lambda: Inpaint(SHAPE, sigma=0.1, mask=RandomBox(2, 4)), "inpaint_box"),
        (lambda: Inpaint(SHAPE, sigma=0.1, mask=RandomPixels(0.5, 0.5)), "inpaint_pixels"),
        (lambda: Inpaint(SHAPE, sigma=0.1, mask=RandomStripes()), "destripe"),
        (lambda: SuperResolution(SHAPE, 2, 0.1), "superres"),
        (lambda: CompressedSensing(SHAPE, 0.5, 0.1), "compressed_sensing"),
        (lambda: Denoise(SHAPE, 0.1), "Denoising"),
        (lambda: Deblur(SHAPE, GaussianKernel(1.0, 5), 0.1), "blur"),
        (lambda: Deblur(SHAPE, MotionKernel(5), 0.1), "motion_blur"),
    ],
)
def test_tasks_have_names_of_their_own(task, name: str) -> None:
    """Each of which has been searched. Mutants: stripes that take a box's sizes, compressed sensing
    under the name of every physics that somebody writes, motions that are Gaussian blurs."""
    assert task_name(task()) == name
    table = json.loads(TUNED.read_text())["fashion_sd"]
    assert name in table["psld_paper"] or name == "motion_blur"
    assert name in table["psld"] or name == "compressed_sensing"  # no official variant
