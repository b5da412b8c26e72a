"""Halves, borders, stripes, brush strokes and their mixtures."""

import math

import pytest
import torch

from outsourced.tasks import (
    BrushStrokes,
    MixedMasks,
    Outpaint,
    RandomBox,
    RandomHalf,
    RandomPixels,
    RandomStripes,
)

SHAPE = (3, 12, 17)
SAMPLERS = [
    RandomHalf(),
    Outpaint(0.3, 0.8, centred=False),
    RandomStripes(),
    BrushStrokes(),
    MixedMasks([RandomPixels(0.1, 0.5), RandomHalf()]),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_masks_are_binary_differ_and_come_from_the_generator(sampler):
    """Mutants: one mask for the batch, torch's global random state, soft edges, everything hidden
    or nothing."""
    masks = sampler(64, SHAPE, generator(1))
    assert masks.shape == (64, 1, 12, 17)
    assert masks.dtype == torch.float32
    assert ((masks == 0) | (masks == 1)).all()
    assert masks.flatten(1).mean(1).min() > 0
    assert masks.flatten(1).mean(1).max() < 1
    assert len(masks.unique(dim=0)) >= 4
    torch.manual_seed(5)
    assert torch.equal(masks, sampler(64, SHAPE, generator(1)))
    assert not torch.equal(masks, sampler(64, SHAPE, generator(2)))


def test_halves_hide_their_own_side():
    """Each side as often as the others. Mutants: left and right exchanged, height for width, a
    middle column that is hidden by neither side or by both."""
    masks = RandomHalf()(2000, SHAPE, generator())[:, 0]
    kinds, count = masks.unique(dim=0, return_counts=True)
    assert len(kinds) == 4
    assert (count - 500).abs().max() < 97  # 5 standard deviations
    for side, hidden in (
        ("left", masks.new_ones(12, 17).index_fill(1, torch.arange(8), 0)),
        ("right", masks.new_ones(12, 17).index_fill(1, torch.arange(9, 17), 0)),
        ("top", masks.new_ones(12, 17).index_fill(0, torch.arange(6), 0)),
        ("bottom", masks.new_ones(12, 17).index_fill(0, torch.arange(6, 12), 0)),
    ):
        assert torch.equal(RandomHalf([side])(1, SHAPE, generator())[0, 0], hidden)


def test_outpainting_observes_one_box_of_the_stated_size():
    """Mutants: observed and hidden swapped, one side for both, a corner in place of the middle, the
    largest ratio never reached."""
    masks = Outpaint(0.25, 0.5)(3000, (1, 20, 24), generator())[:, 0].bool()
    height, width = masks.any(2).sum(1), masks.any(1).sum(1)
    assert torch.equal(masks.flatten(1).sum(1), height * width)
    assert sorted(height.unique().tolist()) == list(range(5, 11))
    assert sorted(width.unique().tolist()) == list(range(6, 13))
    assert abs(torch.corrcoef(torch.stack([height, width]).float())[0, 1]) < 0.1
    top, left = masks.any(2).float().argmax(1), masks.any(1).float().argmax(1)
    assert torch.equal(top, (20 - height) // 2)
    assert torch.equal(left, (24 - width) // 2)
    free = Outpaint(0.25, 0.5, centred=False)(3000, (1, 20, 24), generator())[:, 0].bool()
    assert free[:, 0].any(1).sum() > 100
    assert free[:, -1].any(1).sum() > 100


def test_stripes_repeat_with_their_period_and_run_across_the_image():
    """Mutants: a phase that is always 0, the ratio of observed lines, stripes of the other
    direction, a period beyond the stated range."""
    masks = RandomStripes(4, 6, 0.25, "rows")(400, (1, 24, 10), generator())[:, 0]
    assert torch.equal(masks, masks[:, :, :1].expand_as(masks))
    lines = masks[:, :, 0]
    period = torch.stack([(lines[:, p:] == lines[:, :-p]).all(1) for p in (4, 5, 6)], 1)
    assert period.any(1).all()
    assert (period.float().mean(0) > 0.25).all()
    hidden = 1 - lines.mean(1)  # round(ratio period) of it: 1/4, 1/5, 2/6
    for column, share in ((0, 1 / 4), (1, 1 / 5), (2, 2 / 6)):
        assert (hidden[period[:, column]] - share).abs().max() < 0.05
    first = lines[period[:, 0]].argmin(1)
    assert set(first.tolist()) == {0, 1, 2, 3}
    columns = RandomStripes(4, 6, 0.25, "columns")(5, (1, 24, 10), generator())[:, 0]
    assert torch.equal(columns, columns[:, :1].expand_as(columns))
    both = RandomStripes()(200, (1, 24, 24), generator())[:, 0]
    upright = (both == both[:, :1]).all(2).all(1)
    assert 60 < upright.sum() < 140


def test_strokes_cover_what_a_round_brush_covers(monkeypatch):
    """A chain of two segments, whose brush has a radius of 7.5 pixels.

    Mutants: a diameter for a radius, a square brush, segments that do not start where the last one
    ended, rows and columns exchanged, lines in place of segments.
    """
    chain = torch.tensor([[20.0, 30], [20, 90], [70, 90]]).expand(1, 1, 3, 2)
    monkeypatch.setattr(BrushStrokes, "_strokes", lambda *_: (chain, torch.tensor([[7.5]])))
    mask = BrushStrokes(1, 1, 2)(1, (1, 100, 130), generator())[0, 0]
    hidden = [(20, 60), (45, 90), (20, 23), (13, 60), (70, 97), (77, 90), (15, 94), (65, 84)]
    observed = [(20, 22), (12, 60), (14, 24), (76, 96), (78, 90), (50, 60), (5, 90), (20, 110)]
    assert [mask[at].item() for at in hidden] == [0] * 8
    assert [mask[at].item() for at in observed] == [1] * 8
    bands, caps, corner = 15 * (60 + 50), math.pi * 7.5**2, (math.pi / 4 - 1) * 7.5**2
    assert abs((mask == 0).sum().item() - bands - caps - corner) < 30


def test_strokes_wander_as_stated():
    """Mutants: lengths in fractions of the longer side, a start that is not uniform, every segment
    in a fresh direction, one brush for all strokes."""
    sampler = BrushStrokes(1, 2, 3, length=0.5, min_width=0.1, max_width=0.2, turn=0.3)
    chains, radius = sampler._strokes(4000, (40, 80), generator())
    start, step = chains[:, :, 0], chains.diff(dim=2)
    length = torch.linalg.vector_norm(step, dim=-1)
    assert 19.9 < length.max() <= 20
    assert abs(length.mean() - 10) < 0.2
    assert (start.flatten(0, 1).mean(0) - torch.tensor([19.5, 39.5])).abs().max() < 1.5
    angle = torch.atan2(step[..., 0], step[..., 1])
    turn = torch.remainder(angle.diff(dim=-1) + math.pi, 2 * math.pi) - math.pi
    assert abs(turn.std() - 0.3) < 0.01
    assert abs(angle[..., 0].cos().mean()) < 0.04
    assert (radius.min() - 2).abs() < 0.01
    assert (radius.max() - 4).abs() < 0.01
    assert (radius[:, 0] != radius[:, 1]).all()


def test_strokes_grow_with_their_number():
    """Mutant: all strokes drawn whatever the number, or always the smallest number."""
    few, many, mixed = (
        1 - BrushStrokes(a, b, max_width=0.1)(300, (1, 32, 32), generator()).mean().item()
        for a, b in ((1, 1), (6, 6), (1, 6))
    )
    assert many > 3 * few
    assert 1.3 * few < mixed < 0.85 * many


def test_mixtures_keep_their_proportions_and_their_masks():
    """Mutants: equal weights, one sampler for the whole batch, parts of two masks in one."""
    kinds = [RandomPixels(0.5, 0.5), RandomHalf(["left"]), Outpaint(0.5, 0.5)]
    shape = (1, 16, 16)
    masks = MixedMasks(kinds, [1, 2, 1])(1000, shape, generator())
    left, middle = (kind(1, shape, generator()) for kind in kinds[1:])
    is_left, is_middle = ((masks == m).flatten(1).all(1) for m in (left, middle))
    rest = masks[~is_left & ~is_middle]
    assert abs(is_left.sum().item() - 500) < 80  # 5 standard deviations
    assert abs(is_middle.sum().item() - 250) < 69
    assert (rest.flatten(1).sum(1) == 128).all()
    assert len(rest.unique(dim=0)) == len(rest)


def test_boxes_as_fractions_of_the_image():
    """Mutant: fractions of the longer side, or pixels that stay 0."""
    hidden = RandomBox(0.25, 0.5)(500, (1, 16, 32), generator())[:, 0] == 0
    for side in (hidden.any(2).sum(1), hidden.any(1).sum(1)):
        assert (side.min(), side.max()) == (4, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomHalf(["middle"]), r"RandomHalf\.sides must be some of .*\['middle'\]"),
        (lambda: RandomHalf([]), r"RandomHalf\.sides"),
        (lambda: Outpaint(0.5, 1.0), r"Outpaint needs .*max_ratio=1\.0"),
        (lambda: RandomStripes(1, 4), "min_period=1, max_period=4"),
        (lambda: RandomStripes(ratio=1.0), r"ratio must lie in \(0, 1\), got 1\.0"),
        (lambda: RandomStripes(direction="up"), "'up'"),
        (lambda: BrushStrokes(3, 2), "got 3, 2 and 4"),
        (lambda: BrushStrokes(max_width=1.5), r"max_width=1\.5"),
        (lambda: BrushStrokes(length=0), "length=0"),
        (lambda: MixedMasks([]), "got 0 masks"),
        (lambda: MixedMasks([RandomHalf()], [1, 2]), r"weights \[1, 2\]"),
        (lambda: RandomBox(0.5, 4), r"min_side=0\.5, max_side=4"),
    ],
)
def test_errors_name_the_setting(make, message):
    """Mutant: no validation; the range is empty or the mask hides nothing."""
    with pytest.raises(ValueError, match=message):
        make()
