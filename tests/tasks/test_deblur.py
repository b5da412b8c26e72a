"""Blurs: kernels, and the convolution with a kernel per sample."""

import math

import pytest
import torch

from outsourced.tasks import Deblur, GaussianKernel


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
