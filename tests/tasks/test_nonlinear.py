"""Phase retrieval, JPEG and grey levels."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from outsourced.tasks import JPEG, Dequantize, NonlinearMeasurement, PhaseRetrieval
from outsourced.tasks.codecs import jpeg
from outsourced.tasks.phase import fourier_magnitude


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(channels: int, height: int = 24, width: int = 40) -> torch.Tensor:
    """A picture of 8-bit values with edges and slopes, (1, C, H, W) in [-1, 1]."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    parts = [
        128 + 90 * torch.sin(rows / (5 + c)) * torch.cos(columns / 7) + 30 * (columns > 17 + c)
        for c in range(channels)
    ]
    return torch.stack(parts).clamp(0, 255).round()[None] / 127.5 - 1


@pytest.mark.parametrize("quality", [5, 30, 50, 75])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_an_independent_codec(channels, quality):
    """Within what integer arithmetic and the rounding of pixels and of colours to 8 bits leave.

    Mutants: tables of luminance for colours, another scale of quality, blocks in another order or
    transposed, truncation for rounding, a transform that is not orthonormal, RGB left alone.
    """
    x = smooth(channels)
    ours = (jpeg(x, torch.tensor([float(quality)])) + 1) * 127.5
    pixels = ((x[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
        buffer, "JPEG", quality=quality, subsampling=0
    )
    theirs = np.array(Image.open(buffer)).reshape(*x.shape[2:], channels)
    gap = (ours[0].permute(1, 2, 0) - torch.from_numpy(theirs).float()).abs()
    changed = (torch.from_numpy(theirs).float() - torch.from_numpy(pixels).float()).abs()
    assert gap.mean() < (0.45 if channels == 1 else 1.3)
    assert (gap > 3.5 * channels).float().mean() < 0.02  # a coefficient may round otherwise
    assert changed.mean() > 1.5 * gap.mean()


def test_jpeg_treats_each_image_by_its_own_quality():
    """Mutants: the quality of the first image for all; sides that are no multiples of 8 cut off."""
    x = smooth(1, 21, 30).repeat(3, 1, 1, 1)
    quality = torch.tensor([5.0, 40.0, 95.0])
    out = jpeg(x, quality)
    assert out.shape == x.shape
    for i in range(3):
        assert torch.equal(out[i : i + 1], jpeg(x[i : i + 1], quality[i : i + 1]))
    error = (out - x).flatten(1).square().mean(1)
    assert error[0] > 4 * error[1] > 16 * error[2] > 0


def test_jpeg_is_a_task_whose_encoder_sees_the_quality():
    """Mutants: one draw for the batch, the quality left out, or raw and 30 times too large; a
    uniform draw."""
    task = JPEG((1, 16, 16), (3, 50), 0.1)
    obs = task.sample(torch.zeros(4000, 1, 16, 16), generator())
    place = (obs.params["quality"] / 3).log() / math.log(50 / 3)
    assert abs(place.mean() - 0.5) < 0.025
    assert abs(place.std() - 1 / math.sqrt(12)) < 0.02
    features = task.features(obs[:3])
    assert features.shape == (3, 2, 16, 16)
    expected = (obs.params["quality"][:3] / 30).log10()
    torch.testing.assert_close(features[:, 1, 4, 9], expected)
    assert not task.differentiable
    assert not task.linear


def test_grey_levels_are_evenly_spaced():
    """Mutants: 2^bits gaps, levels that miss black and white, truncation for rounding."""
    task = Dequantize((5,), 2, 0.1)
    x = torch.tensor([[-1.3, -0.68, -0.65, 0.66, 0.68]])
    expected = torch.tensor([[-1.0, -1.0, -1 / 3, 1 / 3, 1.0]])
    torch.testing.assert_close(task.apply(x, {}), expected)
    assert not task.differentiable


def test_magnitudes_keep_the_energy_and_forget_the_phase():
    """Parseval; an image turned by half a revolution, moved or negated gives the same y.

    Mutants: power for magnitude, no padding (where y would be that of cyclic images), a transform
    that is not orthonormal, the real part.
    """
    x = torch.randn(2, 1, 6, 9, generator=generator())
    y = fourier_magnitude(x)
    assert y.shape == (2, 1, 12, 18)
    torch.testing.assert_close(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    torch.testing.assert_close(fourier_magnitude(-x.flip(-1, -2)), y)
    assert (fourier_magnitude(x.flip(-1)) - y).abs().max() > 0.1
    assert (fourier_magnitude(x.roll(2, -1)) - y).abs().max() > 0.1
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    wave = torch.exp(-2j * math.pi * (3 * rows / 12 + 5 * columns / 18))
    at = (x[:, 0] * wave).sum((1, 2)).abs() / math.sqrt(12 * 18)
    torch.testing.assert_close(y[:, 0, 3, 5], at)


def test_encoders_see_all_magnitudes_on_the_image_grid():
    """Mutants: a picture shrunk by averaging, which loses three quarters; corners in the middle."""
    task = PhaseRetrieval((1, 8, 6), 0.01)
    obs = task.sample(torch.full((2, 1, 8, 6), 0.8), generator())
    features = task.features(obs)
    assert features.shape == (2, 4, 8, 6)
    assert torch.equal(
        features.flatten(1).sort(1).values, obs.y.clamp_min(0).log1p().flatten(1).sort(1).values
    )
    assert (features[:, 0].flatten(1).argmax(1) == 4 * 6 + 3).all()


def test_gauss_newton_sees_the_derivative_of_the_magnitudes():
    """Against finite differences in float64. Mutant: a linear operator's shortcut."""
    task = PhaseRetrieval((1, 4, 5), 0.3).double()
    x = torch.randn(2, 1, 4, 5, generator=generator(), dtype=torch.float64)
    obs = task.sample(x, generator(1))
    tangent = torch.randn(1, 2, 1, 4, 5, generator=generator(2), dtype=torch.float64)
    step = 1e-6 * tangent[0]
    finite = (task.whitened_residual(x + step, obs) - task.whitened_residual(x - step, obs)) / 2e-6
    torch.testing.assert_close(
        task.whitened_jacobian(tangent, x, obs)[0], finite, rtol=1e-5, atol=1e-5
    )


def test_errors_name_the_setting():
    """Mutant: no checks; a quality of 0 divides by zero, an odd number of channels is grey."""
    with pytest.raises(ValueError, match=r"quality must lie in \[1, 100\], got 120"):
        JPEG((1, 16, 16), 120, 0.1)
    with pytest.raises(ValueError, match=r"\(1 or 3, H, W\), got \(2, 16, 16\)"):
        JPEG((2, 16, 16), 20, 0.1)
    with pytest.raises(ValueError, match=r"task\.bits must be an integer from 1 to 8, got 0"):
        Dequantize((4,), 0, 0.1)
    with pytest.raises(ValueError, match=r"\(C, H, W\), got \(4,\)"):
        PhaseRetrieval((4,), 0.1)
    black = NonlinearMeasurement(torch.sign, (3,), 0.1, differentiable=False)
    assert not black.differentiable
