import math

import pytest
import torch

from outsourced.metrics import perceptual, psnr, residual, ssim


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5


def test_psnr_of_a_constant_offset():
    """Mutants: range 2 on [-1, 1] inputs without rescaling the error; natural log; an error pooled
    over the batch. An offset of 0.2 is 0.1 on [0, 1]: exactly 20 dB."""
    x = images()
    offset = torch.tensor([0.2, 0.02, 0.0]).view(3, 1, 1, 1)
    score = psnr(x + offset, x)
    assert score[:2].tolist() == pytest.approx([20, 40], abs=1e-3)
    assert score[2] == math.inf


def test_values_outside_the_range_are_clamped():
    """Mutant: overshoot counted as error although no saved image can show it."""
    x = torch.ones(1, 1, 16, 16)
    assert psnr(3 * x, x).item() == math.inf
    assert ssim(3 * x, x).item() == pytest.approx(1)


def test_ssim_of_constants_in_closed_form():
    """Mutant: data range 2, or inputs left in [-1, 1]. For constants only the luminance term stays:
    (2 a b + C) / (a^2 + b^2 + C) with C = 0.01^2."""
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.6 * 0.8 + 1e-4) / (0.6**2 + 0.8**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-5)


def test_scores_are_per_image():
    """Mutant: a batch mean, or a data range taken from the batch."""
    x, y = images(), images().flip(3) * 0.3
    y[1] *= 0.1
    for metric in (psnr, ssim):
        single = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(metric(x, y), single)
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1])
    assert (ssim(x, y) < 0.9).all()


def test_residual_counts_observed_entries_only():
    """Mutant: division by m, which makes inpainting look better than the noise."""
    whitened = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    score = residual(whitened, torch.tensor([2.0, 4.0]))
    assert score.tolist() == pytest.approx([math.sqrt(12.5), 1])
    assert residual(whitened[:1] * 0, torch.zeros(1)).isnan().all()


def test_shape_errors():
    """Mutant: (B, 1, H, W) broadcast against (B, 3, H, W)."""
    with pytest.raises(ValueError, match="of one shape"):
        psnr(images(), images()[:, :1])
    with pytest.raises(ValueError, match="11x11"):
        ssim(images()[..., :8], images()[..., :8])
    with pytest.raises(ValueError, match=r"count \(B,\)"):
        residual(torch.zeros(2, 3), torch.zeros(3))


def test_perceptual_in_closed_form():
    """Orthogonal features are 2 apart, opposite ones 4, whatever their sizes.

    Mutants: features that are not normalised; a norm over positions; a sum over positions or
    layers; an unsquared distance; NaN where there is no feature; a mean over the batch.
    """
    one, other = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.2])
    a = torch.zeros(2, 3, 1, 4)
    b = a.clone()
    a[0], b[0] = one[:, None, None], one[:, None, None] * 7  # alike
    b[0, :, 0, 0] = other  # orthogonal at one position of four
    a[1], b[1] = one[:, None, None], -other[2] * one[:, None, None]  # opposite
    alike = torch.ones(2, 5, 2, 2)
    assert perceptual([a], [b]).tolist() == pytest.approx([0.5, 4.0])
    assert perceptual([a, alike], [b, 2 * alike]).tolist() == pytest.approx([0.25, 2.0])
    assert perceptual([torch.zeros_like(a)], [torch.zeros_like(a)]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="equal feature maps"):
        perceptual([a], [a[:1]])
    with pytest.raises(ValueError, match="equal feature maps"):
        perceptual([], [])
