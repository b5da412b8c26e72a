"""Figures show the numbers they are given: what is drawn is read back from the axes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outsourced import figures
from outsourced.figures import (
    Case,
    comparison_figure,
    curves,
    posterior_figure,
    rank_histograms,
    samples_2d,
)
from outsourced.figures.images import TINT


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved, kept to look into its axes."""
    kept: list[Any] = []
    for module in (figures.images, figures.plots):
        save = module.save
        monkeypatch.setattr(
            module, "save", lambda f, path, save=save: (kept.append(f), save(f, path))[1]
        )
    return kept


def pixels(axis: Any) -> Tensor:
    return torch.as_tensor(axis.images[0].get_array().copy())


def test_posterior_figure(drawn: list, tmp_path: Path, generator: torch.Generator) -> None:
    """Each panel holds its own row and column; hidden pixels are tinted; one colour scale.

    Mutant: samples and observations swapped, [-1, 1] clipped instead of rescaled, black holes,
    the deviation of the mean, a colour scale of each row's own.
    """
    truth = torch.rand(2, 1, 6, 5, generator=generator) * 2 - 1
    noise = torch.rand(9, 2, 1, 6, 5, generator=generator) - 0.5
    samples = truth * 0.5 + noise * torch.tensor([0.1, 1.0]).reshape(2, 1, 1, 1)
    mask = (torch.rand(2, 1, 6, 5, generator=generator) > 0.4).float()
    path = posterior_figure(truth, truth * mask, samples, mask, tmp_path / "new" / "f.png", shown=4)
    assert [p.name for p in path.parent.iterdir()] == ["f.png"]  # and no temporary file
    (figure,) = drawn
    axes = figure.axes[:16]
    titles = ["truth", "observation", *(f"sample {i}" for i in range(1, 5)), "mean", "std. dev."]
    assert [a.get_title() for a in axes[:8]] == titles
    for row in range(2):
        grey = (truth[row, 0] + 1) / 2
        torch.testing.assert_close(pixels(axes[8 * row])[..., 1], grey)
        seen = mask[row, 0] == 1
        observed = pixels(axes[8 * row + 1])
        torch.testing.assert_close(observed[seen], grey[seen, None].expand(-1, 3))
        assert (observed[~seen] == torch.tensor(TINT)).all()
        for i in range(4):
            shown = pixels(axes[8 * row + 2 + i])[..., 0]
            torch.testing.assert_close(shown, (samples[i, row, 0] + 1) / 2)
        torch.testing.assert_close(
            pixels(axes[8 * row + 6])[..., 2], (samples[:, row, 0].mean(0) + 1) / 2
        )
        heat = axes[8 * row + 7].images[0]
        torch.testing.assert_close(pixels(axes[8 * row + 7]), samples[:, row, 0].std(0))
        assert heat.norm.vmin == 0
        assert heat.norm.vmax == pytest.approx(float(samples.std(0).max()))
    assert len(figure.axes) == 17  # and the colour bar


def test_posterior_figure_in_colour(drawn: list, tmp_path: Path) -> None:
    """Without truth or mask, colours stay in place and the spread is the root mean square.

    Mutant: a mean of standard deviations over channels, or channels in another order.
    """
    samples = torch.zeros(2, 1, 3, 4, 4)
    samples[1] += torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    posterior_figure(None, torch.full((1, 3, 2, 2), 3.0), samples, None, tmp_path / "f.png")
    axes = drawn[0].axes
    assert [a.get_title() for a in axes[:3]] == ["observation", "sample 1", "sample 2"]
    assert (pixels(axes[0]) == 1).all()
    torch.testing.assert_close(pixels(axes[2])[0, 0], torch.tensor([0.6, 0.7, 0.8]))
    expected = ((0.2**2 + 0.4**2 + 0.6**2) / 2 / 3) ** 0.5
    torch.testing.assert_close(pixels(axes[4]), torch.full((4, 4), expected))


def test_comparison_figure(drawn: list, tmp_path: Path, generator: torch.Generator) -> None:
    """A column for each solver of any row, its sample in its own row, one scale of spreads.

    Mutant: samples in the order of each row, a missing sample that shifts the others, hidden
    pixels in black, a scale of each row's own.
    """
    a, b, truth = (torch.rand(2, 1, 4, 4, generator=generator) * 2 - 1 for _ in range(3))
    mask = (torch.rand(1, 4, 4, generator=generator) > 0.5).float()
    small = truth[1, :, ::2, ::2]
    spread = torch.rand(4, 4, generator=generator)
    cases = [
        Case(truth[0], truth[0] * mask, mask, {"ours": a[0], "psld, 10": b[0]}, spread),
        Case(truth[1], small, None, {"psld, 10": b[1]}, None),
    ]
    comparison_figure(cases, tmp_path / "f.png")
    axes = drawn[0].axes
    titles = [axis.get_title() for axis in axes[:5]]
    assert titles == ["truth", "observation", "ours", "psld\n10", "std. dev."]
    torch.testing.assert_close(pixels(axes[2])[..., 0], (a[0, 0] + 1) / 2)
    for row in range(2):
        torch.testing.assert_close(pixels(axes[5 * row + 3])[..., 1], (b[row, 0] + 1) / 2)
        torch.testing.assert_close(pixels(axes[5 * row])[..., 1], (truth[row, 0] + 1) / 2)
    assert (pixels(axes[1])[mask[0] == 0] == torch.tensor(TINT)).all()
    torch.testing.assert_close(pixels(axes[6])[..., 2], (small[0] + 1) / 2)
    torch.testing.assert_close(pixels(axes[4]), spread)
    assert axes[4].images[0].norm.vmax == pytest.approx(float(spread.max()))
    assert not axes[7].images
    assert not axes[9].images


def test_rank_histograms(drawn: list, tmp_path: Path, generator: torch.Generator) -> None:
    """Counts are those of the ranks, and 99 % of exact ranks lie in the band.

    Mutant: rank n in a bin of its own, a 95 % or a one-sided band, ranks of another coordinate.
    """
    ranks = torch.randint(0, 100, (500, 2), generator=generator)
    ranks[:, 1] //= 2
    rank_histograms(ranks, 99, tmp_path / "f.png", bins=5)
    first, second = drawn[0].axes
    for axis, column in ((first, ranks[:, 0]), (second, ranks[:, 1])):
        counts = axis.patches[1].get_data().values
        assert counts.tolist() == torch.bincount(column // 20, minlength=5).tolist()
        assert axis.get_ylim()[1] >= counts.max()  # shared, and nobody's bars leave it
    band = first.patches[0].get_data()
    exact = torch.distributions.Binomial(500, torch.tensor(0.2)).sample((40_000,))
    low, high = float(band.baseline[0]), float(band.values[0])
    for tail in ((exact < low), (exact > high)):
        assert 0.002 < tail.float().mean() < 0.0065
    with pytest.raises(ValueError, match=r"ranks must be \(B, d\) in 0..n = 98"):
        rank_histograms(torch.full((9, 1), 99), 98, tmp_path / "g.png")
    with pytest.raises(ValueError, match=r"bins must be in 2..n \+ 1 = 100, got 101"):
        rank_histograms(ranks, 99, tmp_path / "g.png", bins=101)
    assert not (tmp_path / "g.png").exists()


def test_samples_2d(drawn: list, tmp_path: Path, generator: torch.Generator) -> None:
    """Exact draws above, the sampler's below, each under its own observation, on shared axes.

    Mutant: rows swapped, (n, B, 2) read as (B, n, 2), axes scaled to each panel's own points.
    """
    exact = torch.randn(40, 2, 2, generator=generator)
    samples, truth = exact[:30] * 3 + 1, exact[0]
    samples_2d(exact, samples, tmp_path / "f.png", truth)
    axes = drawn[0].axes
    for i, points in enumerate((exact[:, 0], exact[:, 1], samples[:, 0], samples[:, 1])):
        offsets = torch.as_tensor(axes[i].collections[0].get_offsets().data)
        torch.testing.assert_close(offsets, points.double())
        assert axes[i].lines[0].get_xydata()[0].tolist() == pytest.approx(truth[i % 2].tolist())
        assert axes[i].get_xlim() == axes[0].get_xlim()
    with pytest.raises(ValueError, match=r"got \(40, 2, 2\) and \(30, 1, 2\)"):
        samples_2d(exact, samples[:, :1], tmp_path / "f.png")
    with pytest.raises(ValueError, match="planar data, got dimension 3"):
        samples_2d(torch.zeros(4, 1, 3), torch.zeros(4, 1, 3), tmp_path / "f.png")


def test_curves(drawn: list, tmp_path: Path) -> None:
    """Blanks and NaN are skipped, train and val share a panel, step and epoch are no curves.

    Mutant: blanks as zeros, rows instead of steps along x, one panel per column.
    """
    source = tmp_path / "metrics.csv"
    source.write_text(
        "epoch,step,train/loss,val/loss,note\n0,0,3.0,,a\n0,10,2.0,2.5,b\n1,20,nan,,c\n"
    )
    curves(source, tmp_path / "f.png")
    (axis,) = drawn[0].axes
    assert axis.get_title() == "loss"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {"train": [[0, 3], [10, 2]], "val": [[10, 2.5]]}
    curves(source, tmp_path / "g.png", names=["val/loss"])
    assert [line.get_label() for line in drawn[1].axes[0].lines] == ["val"]
    with pytest.raises(FileNotFoundError, match=r"got no file at .*none\.csv"):
        curves(tmp_path / "none.csv", tmp_path / "f.png")
    with pytest.raises(ValueError, match=r"has no columns \['ess'\]; it has"):
        curves(source, tmp_path / "f.png", names=["ess"])
    with pytest.raises(ValueError, match="no numbers to draw"):
        curves(source, tmp_path / "f.png", names=["note"])


def test_posterior_figure_refuses(tmp_path: Path) -> None:
    """Shapes that do not match are named. Mutant: broadcasting one mask over all rows."""
    samples, y = torch.zeros(3, 2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    path = tmp_path / "f.png"
    with pytest.raises(ValueError, match=r"samples \(n >= 2, .* got \(1, 2, 1, 4, 4\)"):
        posterior_figure(None, y, samples[:1], None, path)
    with pytest.raises(ValueError, match=r"truth must be \(2, 1, 4, 4\)"):
        posterior_figure(y[:1], y, samples, None, path)
    with pytest.raises(ValueError, match=r"observation must be images \(2, C, h, w\)"):
        posterior_figure(None, y[:1], samples, None, path)
    with pytest.raises(ValueError, match=r"mask must be \(2, 1, 4, 4\), got \(1, 1, 4, 4\)"):
        posterior_figure(None, y, samples, y[:1], path)
    assert not path.exists()


def test_style_stays_ours(tmp_path: Path) -> None:
    """A caller's style is what it was after a figure. Mutant: rcParams.update."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    samples_2d(torch.randn(3, 1, 2), torch.randn(3, 1, 2), tmp_path / "f.png")
    assert dict(matplotlib.rcParams) == before
