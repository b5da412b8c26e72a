"""Blurs: kernels, and the convolution with a kernel per sample."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from outsourced.tasks import Deblur, FixedKernel, GaussianKernel, MotionKernel, Task
from outsourced.tasks.features import transfer
from outsourced.tasks.ridge import ridge_estimate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_kernels_have_unit_sum_and_the_drawn_width():
    """Mutants: width as variance, one width for the batch, a uniform width, a kernel that is cut
    off where it still has mass, no normalisation."""
    kernels = GaussianKernel((0.7, 2.8))(2000, generator())
    assert kernels.shape == (2000, 1, 25, 25)
    offset = torch.arange(25.0) - 12
    torch.testing.assert_close(kernels.sum((1, 2, 3)), torch.ones(2000))
    assert torch.equal(kernels, kernels.mT)
    width = (kernels.sum(2)[:, 0] * offset.square()).sum(1).sqrt()
    position = (width / 0.7).log() / math.log(4)
    assert -1e-3 < position.min() < 0.01
    assert 0.99 < position.max() < 1.01
    assert abs(position.mean() - 0.5) < 0.033  # 5 standard deviations
    assert abs(position.std() - 1 / math.sqrt(12)) < 0.02
    assert GaussianKernel(0.7)(3).unique(dim=0).shape == (1, 1, 7, 7)
    assert GaussianKernel(3.0, 61)(1).shape == (1, 1, 61, 61)


@pytest.mark.parametrize("width", [1.2, 2.5])
def test_a_wave_loses_the_amplitude_that_its_kernel_takes(width):
    """By Fourier: exp(-(width frequency)^2 / 2), on both sides of the switch to fast transforms.

    Mutants: a kernel of another width, one that shifts by a pixel, the kernel of sample 0 for all.
    """
    task = Deblur((1, 32, 32), GaussianKernel((width, 1.05 * width)), 0.1, padding="circular")
    assert task.physics.use_fft == (width == 2.5)
    wave = torch.cos(2 * math.pi * torch.arange(32) * 3 / 32).expand(4, 1, 32, 32)
    params = task.sample_operator(4, generator())
    offset = torch.arange(params["filter"].shape[-1]) - params["filter"].shape[-1] // 2
    drawn = (params["filter"].sum((1, 2)) * offset.square()).sum(1)
    assert drawn.std() > 0.01
    amplitude = torch.exp(-0.5 * drawn * (6 * math.pi / 32) ** 2).view(4, 1, 1, 1)
    torch.testing.assert_close(task.apply(wave, params), amplitude * wave, rtol=0, atol=2e-3)


@pytest.mark.parametrize("padding", ["reflect", "replicate", "circular", "zeros"])
@pytest.mark.parametrize("width", [(0.5, 1.0), (0.5, 3.0)])
def test_the_adjoint_is_the_transpose_at_every_border(padding, width):
    """A^T of each sample's own kernel, checked on the border alone, where padding folds back.

    Mutants: the adjoint of circular padding for all, the kernel of another sample.
    """
    task = Deblur((2, 28, 32), GaussianKernel(width), 0.1, padding)
    params = task.sample_operator(3, generator())
    x = torch.randn(3, 2, 28, 32, generator=generator(1))
    x[:, :, 3:-3, 3:-3] = 0
    v = torch.randn(3, 2, 28, 32, generator=generator(2))
    v[:, :, 3:-3, 3:-3] = 0
    left = (task.apply(x, params) * v).flatten(1).sum(1)
    right = (x * task.adjoint(v, params)).flatten(1).sum(1)
    scale = torch.linalg.vector_norm(v.flatten(1), dim=1).square()
    assert ((left - right).abs() / scale).max() < 1e-6
    other = {"filter": params["filter"].flip(0)}
    crossed = (x * task.adjoint(v, other)).flatten(1).sum(1)
    assert ((left - crossed).abs() / scale)[[0, 2]].min() > 1e-4


def test_fixed_kernels_are_part_of_the_operator():
    """Mutants: a fixed kernel drawn, stored and shown to the encoder with every observation; lost
    after the first call with another kernel."""
    fixed = Deblur((1, 16, 16), GaussianKernel(1.0), 0.1)
    drawn = Deblur((1, 16, 16), GaussianKernel((0.5, 1.5), 9), 0.1)
    x = torch.randn(2, 1, 16, 16, generator=generator())
    params = {"filter": GaussianKernel(1.0, 9)(2)}
    assert fixed.sample_operator(2) == {}
    assert fixed.feature_shape == (1, 16, 16)
    torch.testing.assert_close(fixed.apply(x, {}), drawn.apply(x, params))
    drawn.apply(x, drawn.sample_operator(2, generator()))
    with pytest.raises(ValueError, match=r"params must be .*filter.*got \{\}"):
        drawn.apply(x, {})


def moments(kernels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (n, 2) and covariance (n, 2, 2) of kernels as densities over rows and columns."""
    place = torch.arange(kernels.shape[-1]) - kernels.shape[-1] // 2
    grid = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1).flatten(0, 1).float()
    weight = kernels.flatten(1)
    mean = weight @ grid
    return mean, torch.einsum("np,pa,pb->nab", weight, grid, grid) - mean[:, :, None] * mean[
        :, None
    ]


def test_motion_kernels_are_centred_traces_of_every_direction():
    """Mutants: one trace for the batch, a kernel that moves the image, horizontal traces more
    often, lengths in other units, light outside the frame cut off."""
    kernels = MotionKernel(15, 0.5)(2000, generator())
    assert kernels.shape == (2000, 1, 15, 15)
    torch.testing.assert_close(kernels.sum((1, 2, 3)), torch.ones(2000))
    assert kernels.min() >= 0
    mean, covariance = moments(kernels)
    assert mean.abs().max() < 1e-4
    assert covariance.mean(0)[0, 1].abs() < 0.15
    assert abs(covariance[:, 0, 0].mean() / covariance[:, 1, 1].mean() - 1) < 0.1
    assert kernels.unique(dim=0).shape[0] == 2000


def test_motion_kernels_without_intensity_are_straight_lines():
    """A line of length L has the variance L^2 / 12 along itself, and at most that of linear
    interpolation across (1/4).

    Mutants: brightness that depends on the grid, a speed that changes at intensity 0, lengths that
    are not uniform.
    """
    _, covariance = moments(MotionKernel(31, 0.0, 0.2, 0.8)(1000, generator()))
    across, along = torch.linalg.eigvalsh(covariance).unbind(1)
    assert across.max() < 0.26
    length = (12 * (along - across)).sqrt()
    assert abs(length.min() - 6.2) < 0.7
    assert abs(length.max() - 24.8) < 0.7
    assert abs(length.mean() - 15.5) < 0.9
    _, bent = moments(MotionKernel(31, 1.0, 0.8, 0.8)(1000, generator()))
    assert torch.linalg.eigvalsh(bent)[:, 0].mean() > 2


def test_a_kernel_file_shows_what_a_bright_point_becomes(tmp_path: Path):
    """The blurred image of a point is the picture, neither flipped nor turned.

    Mutants: correlation in place of convolution, transposed rows and columns, no unit sum.
    """
    picture = np.zeros((5, 5), dtype="uint8")
    picture[0, 1], picture[3, 4] = 200, 100
    Image.fromarray(picture).save(tmp_path / "kernel.png")
    np.save(tmp_path / "kernel.npy", picture / 7)
    expected = torch.zeros(1, 1, 9, 9)
    expected[0, 0, 2, 3], expected[0, 0, 5, 6] = 2 / 3, 1 / 3
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    for name in ("kernel.png", "kernel.npy"):
        task = Deblur((1, 9, 9), FixedKernel(tmp_path / name), 0.1)
        torch.testing.assert_close(task.apply(point, {}), expected)
        assert task.sample_operator(1) == {}
    big = FixedKernel(torch.nn.functional.pad(FixedKernel(tmp_path / name).kernel, (7, 7, 7, 7)))
    task = Deblur((1, 32, 32), big, 0.1)
    assert task.physics.use_fft
    blurred = task.apply(torch.nn.functional.pad(point, (11, 12, 11, 12)), {})
    torch.testing.assert_close(blurred[..., 11:20, 11:20], expected, atol=1e-6, rtol=0)


def test_encoders_see_the_kernel_and_what_a_solver_sees():
    """y, the ridge estimate, the kernel and its transfer function, per sample.

    Mutants: an estimate with the noise level or the kernel of another sample, one that is just
    A^T y, iterations that have not converged where they must, a transfer function of other signs.
    """
    task = Deblur((1, 16, 16), MotionKernel(5), (0.05, 0.5), padding="circular")
    x = torch.rand(3, 1, 16, 16, generator=generator()) * 2 - 1
    obs = task.sample(x, generator(1))
    features = task.features(obs)
    assert features.shape == (3, 28, 16, 16) == (3, *task.feature_shape)
    assert torch.equal(features[:, :1], obs.y)
    spectrum = torch.fft.fft2(task.apply(_points(3), obs.params))
    damping = (obs.sigma / 0.5).square().view(3, 1, 1, 1)
    inverse = spectrum.conj() / (spectrum.abs().square() + damping)
    expected = torch.fft.ifft2(inverse * torch.fft.fft2(obs.y)).real
    exact = ridge_estimate(task, obs, steps=200)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)
    size = expected.flatten(1).norm(dim=1)
    assert ((features[:, 1:2] - expected).flatten(1).norm(dim=1) / size).max() < 0.2
    assert ((task.adjoint(obs.y, obs.params) - expected).flatten(1).norm(dim=1) / size).min() > 0.4
    torch.testing.assert_close(features[:, 2, 5:10, 5:10], obs.params["filter"][:, 0])
    constant = features[:, 3:27]
    assert torch.equal(constant, constant[..., :1, :1].expand_as(constant))
    # at pi/8 along the columns and pi/2 along the rows, from the definition
    place = torch.arange(5.0) - 2
    kernel = obs.params["filter"][:, 0]
    for index, rate, axis in ((0, math.pi / 8, 1), (10, math.pi / 2, 0)):
        line = kernel.sum(2 - axis)
        torch.testing.assert_close(constant[:, index, 0, 0], line @ torch.cos(rate * place))
        torch.testing.assert_close(constant[:, 12 + index, 0, 0], -line @ torch.sin(rate * place))
    assert transfer(torch.ones(1, 1, 1, 1)).tolist() == [[1.0] * 12 + [0.0] * 12]


def _points(n: int) -> torch.Tensor:
    point = torch.zeros(n, 1, 16, 16)
    point[..., 0, 0] = 1
    return point


@pytest.mark.parametrize(
    "kernel", [GaussianKernel(1.0), GaussianKernel((0.5, 1.5)), MotionKernel(7)]
)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_pairwise_rewards_are_those_of_single_pairs(kernel, padding):
    """Up to a constant of the observation. Mutants: circular borders, the kernel or the noise level
    of another observation, rows and columns exchanged."""
    task = Deblur((2, 14, 18), kernel, (0.1, 0.5), padding)
    x = torch.rand(6, 2, 14, 18, generator=generator()) * 2 - 1
    obs = task.sample(torch.rand(3, 2, 14, 18, generator=generator(1)), generator(2))
    fast, slow = task.pairwise_log_reward(x, obs), Task.pairwise_log_reward(task, x, obs)
    assert fast.shape == (6, 3)
    torch.testing.assert_close(fast - fast[:1], slow - slow[:1], rtol=1e-4, atol=0.05)
    assert slow.std(0).min() > 5


def test_errors_name_the_kernel():
    """Mutant: no checks, so that reflect padding fails inside deepinv, hours later at another
    width."""
    with pytest.raises(ValueError, match="must fit the image 16x16, got 25x25; lower its width"):
        Deblur((1, 16, 16), GaussianKernel((0.5, 3.0)), 0.1)
    with pytest.raises(ValueError, match=r"GaussianKernel\.width must be > 0, got 0"):
        GaussianKernel(0)
    with pytest.raises(
        ValueError, match=r"GaussianKernel\.size must be an odd integer >= 1, got 8"
    ):
        GaussianKernel(1.0, 8)
    with pytest.raises(ValueError, match=r"padding must be one of .*'mirror'"):
        Deblur((1, 16, 16), GaussianKernel(1.0), 0.1, "mirror")
    with pytest.raises(ValueError, match=r"\(C, H, W\), got \(16,\)"):
        Deblur((16,), GaussianKernel(1.0), 0.1)
    kernel = GaussianKernel(1.0)
    with pytest.raises(ValueError, match=r"k odd, got \(1, 1, 4, 4\)"):
        Deblur((1, 16, 16), lambda n, g: kernel(n, g)[..., :4, :4], 0.1)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"kernel file none\.png does not exist"):
        FixedKernel("none.png")
    with pytest.raises(ValueError, match=r"\(k, k\) with k odd, got \(3, 4\); crop it"):
        FixedKernel(torch.ones(3, 4))
    with pytest.raises(ValueError, match="not 0 everywhere"):
        FixedKernel(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"MotionKernel\.size must be an odd integer >= 1, got 6"):
        MotionKernel(6)
    with pytest.raises(ValueError, match=r"min_length=0\.5, max_length=1\.5"):
        MotionKernel(7, 0.5, 0.5, 1.5)
