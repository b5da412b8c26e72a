"""The best linear estimate under a Gaussian, against its closed form."""

import pytest
import torch
from torch import Tensor

from outsourced.data import fashion_images
from outsourced.tasks import CompressedSensing, Inpaint, SuperResolution
from outsourced.tasks.linear_estimate import DataGaussian, linear_estimate
from outsourced.tasks.masks import RandomBox

SHAPE, ENTRIES = (1, 8, 8), 64


def images(count: int = 600) -> Tensor:
    """Correlated entries about 0.7."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(ENTRIES, ENTRIES, generator=generator) * torch.logspace(0, -2, ENTRIES)
    return 0.7 + (torch.randn(count, ENTRIES, generator=generator) @ mix.T).view(-1, *SHAPE)


def gaussian(axes: int) -> DataGaussian:
    found = DataGaussian(SHAPE, axes)
    found.fill(images())
    return found


def covariance(about: DataGaussian) -> Tensor:
    excess = torch.diag(about.variances - about.rest)
    return about.axes.T @ excess @ about.axes + about.rest * torch.eye(ENTRIES)


@pytest.mark.parametrize("axes", [0, 12, 63])
def test_gaussian_has_the_moments_of_the_images(axes) -> None:
    """The mean, the leading covariance, and the total variance whatever the number of axes.

    Mutants: variances that are not divided by the number of images, a mean that is left in, a rest
    that counts the axes or that is shared among all entries.
    """
    x, about = images().flatten(1), gaussian(axes)
    found = covariance(about)
    wanted = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    torch.testing.assert_close(about.mean.flatten(), x.mean(0))
    torch.testing.assert_close(found.trace(), wanted.trace(), rtol=1e-4, atol=0)
    if axes == 63:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    gap = torch.linalg.eigvalsh(found).flip(0)[:axes] - torch.linalg.eigvalsh(wanted).flip(0)[:axes]
    assert gap.abs().max() <= 1e-3 * wanted.trace() if axes else True


@pytest.mark.parametrize(
    "task",
    [
        Inpaint(SHAPE, sigma=(0.05, 0.5), mask=RandomBox(2, 4)),
        SuperResolution(SHAPE, 2, 0.1),
        CompressedSensing(SHAPE, 0.25, 0.1),
    ],
    ids=["inpaint", "superres", "compressed"],
)
def test_estimate_is_the_conditional_mean_of_a_gaussian(task) -> None:
    """mean + C A^T (A C A^T + sigma^2 I)^-1 (y - A mean), each row under its own operator.

    Mutants: a prior mean of 0, sigma in the place of its square, one operator for all rows,
    sigma of another row, C^(1/2) for C.
    """
    about, generator = gaussian(12), torch.Generator().manual_seed(1)
    obs = task.sample(images(5), generator=generator)
    found = linear_estimate(task, obs, about, steps=150)
    eye, spread = torch.eye(ENTRIES).view(-1, *SHAPE), covariance(about)
    for row in range(len(obs)):
        params = {k: v[row : row + 1].expand(ENTRIES, *v.shape[1:]) for k, v in obs.params.items()}
        forward = task.apply(eye, params).flatten(1).T  # A, (m, D)
        noise = obs.sigma[row].square() * torch.eye(len(forward))
        gain = spread @ forward.T @ torch.linalg.inv(forward @ spread @ forward.T + noise)
        away = obs.y[row].flatten() - forward @ about.mean.flatten()
        wanted = about.mean.flatten() + gain @ away
        torch.testing.assert_close(found[row].flatten(), wanted, rtol=0.01, atol=0.01)


def test_few_steps_are_enough_and_many_do_no_harm() -> None:
    """Of real images, at the default steps and at so many that gradients are mere rounding.

    Mutants: no preconditioner (0.019) or one of the variances alone (0.003), steps along rounding
    errors (10).
    """
    x = fashion_images("train")[:1000]
    about = DataGaussian(x.shape[1:], 40)
    about.fill(x)
    task = CompressedSensing(x.shape[1:], 0.25, 0.05)
    obs = task.sample(x[:8], generator=torch.Generator().manual_seed(1))
    exact = linear_estimate(task, obs, about, steps=80)
    for steps in (24, 200):
        error = (linear_estimate(task, obs, about, steps) - exact).square().mean().sqrt()
        assert error < 0.001 * x.std()


def test_needs_more_images_than_axes() -> None:
    """Mutant: axes of no variance, along which nothing could be learned."""
    with pytest.raises(ValueError, match="12 principal axes need more than 12 images, got 12"):
        DataGaussian(SHAPE, 12).fill(images(12))
    with pytest.raises(ValueError, match=r"axes must lie in 0 \.\. 63, got 64"):
        DataGaussian(SHAPE, 64)
