from pathlib import Path

import pytest
import torch
from PIL import Image

from outsourced.tasks import FixedMask, Inpaint, RandomBox, RandomPixels, Task

SHAPE = (3, 12, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_box_hides_one_rectangle_of_independent_uniform_sides():
    """Mutants: exclusive upper side; one side used for both; positions that never touch an edge;
    one box shared by the batch; observed and hidden swapped."""
    masks = RandomBox(2, 5)(4000, SHAPE, generator())
    hidden = masks == 0
    height, width = hidden.any(3).sum(2).flatten(), hidden.any(2).sum(2).flatten()
    assert torch.equal(hidden.flatten(1).sum(1), height * width)
    for side in (height, width):
        share = torch.bincount(side, minlength=6)[2:].float() / 4000
        assert side.min() >= 2
        assert side.max() == 5
        assert (share - 0.25).abs().max() < 0.035  # 5 standard deviations
    assert abs((height * width).float().mean() - 3.5**2) < 0.35
    assert hidden[:, 0, 0].any()
    assert hidden[:, 0, -1].any()
    assert hidden[:, 0, :, 0].any()
    assert hidden[:, 0, :, -1].any()


def test_random_box_positions_are_uniform_for_every_side():
    """Mutants: start = floor(u * (length - side)), which never reaches the last position; room for
    the largest side kept, so that small boxes stay away from the far edge."""
    hidden = RandomBox(1, 4)(12000, (1, 6, 6), generator())[:, 0] == 0
    rows = hidden.any(2)
    for side in (1, 4):
        start = rows[rows.sum(1) == side].float().argmax(1)
        share = torch.bincount(start, minlength=7 - side).float() / len(start)
        assert len(share) == 7 - side
        assert (share - 1 / (7 - side)).abs().max() < 0.045


def test_random_pixels_removes_the_stated_fraction():
    """Mutants: ratio of pixels kept; Bernoulli pixels, whose count varies at a fixed ratio; an
    order shared by the batch."""
    masks = RandomPixels(0.25, 0.25)(50, SHAPE, generator())
    assert (masks == 0).flatten(1).sum(1).eq(48).all()
    assert not torch.equal(masks[0], masks[1])
    removed = 1 - RandomPixels(0.2, 0.8)(3000, SHAPE, generator()).flatten(1).mean(1)
    assert 38 <= 192 * removed.min() < 41  # 0.2 and 0.8 of 192 pixels, rounded
    assert 151 < (192 * removed.max()).round() <= 154
    assert abs(removed.mean() - 0.5) < 0.016


@pytest.mark.parametrize("sampler", [RandomBox(2, 5), RandomPixels(0.1, 0.9)])
def test_the_generator_decides(sampler):
    """Mutant: torch's global random state is used and the generator ignored."""
    first = sampler(4, SHAPE, generator(1))
    torch.manual_seed(5)
    assert torch.equal(first, sampler(4, SHAPE, generator(1)))
    assert not torch.equal(first, sampler(4, SHAPE, generator(2)))


def test_fixed_mask_reads_white_as_observed(tmp_path: Path):
    """Mutant: black = keep, or transposed rows and columns."""
    image = Image.new("RGB", (16, 12), "white")
    image.putpixel((15, 2), (0, 0, 0))
    image.save(tmp_path / "mask.png")
    masks = FixedMask(tmp_path / "mask.png")(2, SHAPE)
    expected = torch.ones(2, 1, 12, 16)
    expected[:, :, 2, 15] = 0
    assert torch.equal(masks, expected)
    assert torch.equal(FixedMask(expected[0, 0])(2, SHAPE), expected)


def test_errors_name_the_mask(tmp_path: Path):
    """Mutant: a mask of a wrong size is broadcast, cropped or resized silently."""
    with pytest.raises(ValueError, match="image size 12x16, got 3x3"):
        FixedMask(torch.ones(3, 3))(1, SHAPE)
    with pytest.raises(ValueError, match="observes no pixel"):
        FixedMask(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"0 \(hidden\) and 1"):
        FixedMask(torch.full((3, 3), 0.5))
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        FixedMask(tmp_path / "none.png")
    with pytest.raises(ValueError, match="max_side must fit the image 12x16, got 13"):
        RandomBox(8, 13)(1, SHAPE)
    with pytest.raises(ValueError, match="min_side=3, max_side=2"):
        RandomBox(3, 2)
    with pytest.raises(ValueError, match=r"max_ratio=1\.0"):
        RandomPixels(0.5, 1.0)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        RandomBox(1, 1)(1, (5,))


def test_pairwise_rewards_of_inpainting_are_those_of_single_pairs():
    """Up to a constant of the observation. Mutant: hidden pixels counted, a noise level that all
    observations share, or rows and columns exchanged."""
    task = Inpaint((1, 12, 12), RandomBox(3, 6), sigma=[0.1, 0.5])
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(7, 1, 12, 12, generator=generator) * 2 - 1
    obs = task.sample(torch.rand(4, 1, 12, 12, generator=generator), generator)
    fast, slow = task.pairwise_log_reward(x, obs), Task.pairwise_log_reward(task, x, obs)
    assert fast.shape == (7, 4)
    torch.testing.assert_close(fast - fast[:1], slow - slow[:1], rtol=1e-4, atol=0.02)
    assert slow.std(0).min() > 10
    with pytest.raises(ValueError, match=r"task.x must be \(B, \*\(1, 12, 12\)\)"):
        task.pairwise_log_reward(x[..., :5], obs)
