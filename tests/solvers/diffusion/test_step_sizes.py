"""Step sizes: what their tables call a task, published and tuned ones."""

import json

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.solvers.step_sizes import PUBLISHED, TUNED, step_sizes, task_name
from outsourced.tasks import (
    CompressedSensing,
    Deblur,
    Denoise,
    GaussianKernel,
    Inpaint,
    MotionKernel,
    RandomPixels,
    SuperResolution,
    Task,
)
from outsourced.tasks.masks import RandomBox
from outsourced.tasks.region_masks import RandomStripes
from tests.solvers.diffusion.gaussian import GaussianLatent

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


def problem_of(task: Task, path: str = "") -> Posterior:
    prior = GaussianLatent()
    prior.data_shape, prior.path = task.data_shape, path
    return Posterior(prior, task)


def _box(n: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    mask = torch.ones(n, 1, *shape[1:])
    mask[..., 2:4, 2:4] = 0
    return mask


def test_published_step_sizes() -> None:
    """By the task's operator and masks; the user's win.

    Mutant: box values for random pixels, values of another method, a given 0 that is replaced.
    """
    shape = (1, 8, 8)
    box, pixels = Inpaint(shape, sigma=0.1, mask=_box), Inpaint(shape, RandomPixels(0.5, 0.5))
    box, pixels, small = map(problem_of, (box, pixels, SuperResolution(shape, 2, 0.1)))
    asked = {"omega": None, "gamma": None}
    assert step_sizes("psld", box, 1000, **asked) == (0.1, 0.01)
    assert step_sizes("psld", pixels, 1000, **asked) == (1.0, 0.1)
    assert step_sizes("gml_dps", small, 1000, **asked) == (1.0, 0.1)
    assert step_sizes("latent_dps", small, 1000, omega=None) == (1.0,)
    assert step_sizes("dps", small, 1000, omega=None) == (0.3,)
    assert step_sizes("dps", pixels, 1000, omega=None) == (0.5,)
    assert step_sizes("daps", box, 200, rate=None) == (0.02,)
    assert step_sizes("resample", box, 500, gamma=7.0, omega=None) == (7.0, 0.5)
    assert step_sizes("psld", box, 1000, omega=0.0, gamma=None) == (0.0, 0.01)
    none = problem_of(Denoise(shape, 0.1))
    with pytest.raises(ValueError, match=r"solver\.omega of psld has no published value for Denoi"):
        step_sizes("psld", none, 1000, **asked)
    with pytest.raises(ValueError, match=r"solver\.gamma must be >= 0, got -1"):
        step_sizes("psld", box, 1000, omega=None, gamma=-1.0)


def test_tuned_step_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the embedded prior at the nearest number of steps, before the published ones; over
    the ratio at a larger number, times its root at a smaller one, but for a rate.

    Mutant: the first number of steps, the nearest difference (400 is nearer to 100 by it), sizes
    of another prior or task, published sizes of motions for a blur's, tuned sizes that win over
    given ones, a ratio upside down.
    """
    sizes = {"100": {"omega": 3.0, "gamma": 0.4}, "1000": {"omega": 0.5, "gamma": 0.06}}
    rate = {"daps": {"inpaint_box": {"100": {"rate": 0.3}}}}
    blur = {"100": {"omega": 0.7, "gamma": 0.2}}
    table = {"fashion_sd": {"psld": {"inpaint_box": sizes, "blur": blur}, **rate}}
    monkeypatch.setattr("outsourced.solvers.step_sizes._table", lambda: table)
    box, asked = Inpaint((1, 8, 8), sigma=0.1, mask=_box), {"omega": None, "gamma": None}
    ours, other = problem_of(box, "fashion_sd"), problem_of(box, "sd15")
    assert step_sizes("psld", ours, 100, **asked) == (3.0, 0.4)
    assert step_sizes("psld", ours, 4000, **asked) == pytest.approx((0.125, 0.015))
    assert step_sizes("psld", ours, 400, **asked) == pytest.approx((0.79057, 0.094868), rel=1e-4)
    assert step_sizes("psld", ours, 200, **asked) == pytest.approx((1.5, 0.2))
    assert step_sizes("psld", ours, 1000, omega=2.0, gamma=None) == (2.0, 0.06)
    assert step_sizes("daps", ours, 1000, rate=None) == (0.3,)
    assert step_sizes("psld", other, 100, **asked) == (0.1, 0.01)
    assert step_sizes("gml_dps", ours, 100, **asked) == (0.1, 0.01)
    motion = problem_of(Deblur((1, 8, 8), MotionKernel(5), 0.1), "fashion_sd")
    assert step_sizes("psld", motion, 100, **asked) == (0.7, 0.2)  # in want of its own
    small = problem_of(SuperResolution((1, 8, 8), 2, 0.1), "fashion_sd")
    assert step_sizes("psld", small, 100, **asked) == (1.0, 0.1)


def test_tuned_sizes_are_those_of_known_methods() -> None:
    """The shipped table names priors, methods, tasks and sizes that are asked for.

    Mutant: a table under a task's configuration name, or sizes of another method.
    """
    known = {**PUBLISHED, "psld_paper": PUBLISHED["psld"]}
    tasks = {*PUBLISHED["psld"], "Denoising", "compressed_sensing"}  # the last two: searched only
    for of_prior in json.loads(TUNED.read_text()).values():
        for method, of_task in of_prior.items():
            names = set(next(iter(known[method].values())))
            for task, of_steps in of_task.items():
                assert task in tasks
                for steps, sizes in of_steps.items():
                    assert int(steps) > 0
                    assert set(sizes) == names
                    assert min(sizes.values()) > 0
