"""Calibration ranks, planar posteriors and training curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outsourced.figures.style import BLUE, GREY, ORANGE, new_figure, panels, save, styled

MOST_PANELS = 12


@styled
def rank_histograms(ranks: Tensor, n: int, path: str | Path, bins: int | None = None) -> Path:
    """Save histograms of simulation-based calibration ranks, uniform where samples are exact.

    The band holds 99 % of the counts of exact samples. Humps mean posteriors too wide, cups too
    narrow, slopes biased; Talts et al., 2018.

    Args:
        ranks: rank of the truth among n samples, (B, d) in 0..n; the first 12 of d are shown.
        n: samples behind each rank.
        path: file to write.
        bins: number of bins in 2..n + 1; by default at most 20, with 10 ranks each.

    Raises:
        ValueError: when ranks are not (B, d) in 0..n or bins is out of range.
    """
    if ranks.dim() != 2 or ranks.numel() == 0 or ranks.min() < 0 or ranks.max() > n:
        raise ValueError(f"ranks must be (B, d) in 0..n = {n}, got shape {tuple(ranks.shape)}")
    count, d = ranks.shape
    bins = min(n + 1, 20, max(2, count // 10)) if bins is None else bins
    if not 2 <= bins <= n + 1:
        raise ValueError(f"bins must be in 2..n + 1 = {n + 1}, got {bins}")
    shown = min(d, MOST_PANELS)
    figure, axes = panels(shown, 2.0, 1.6, sharey=True)
    members = torch.bincount(torch.arange(n + 1) * bins // (n + 1), minlength=bins).double()
    low, high = _binomial_band(count, (members / (n + 1)).numpy())
    edges = torch.arange(bins + 1) / bins
    for j, axis in enumerate(axes):
        counts = torch.bincount(ranks[:, j].cpu().long() * bins // (n + 1), minlength=bins)
        axis.stairs(high, edges, baseline=low, fill=True, color=GREY, alpha=0.5, linewidth=0)
        axis.stairs(counts, edges, baseline=None, color=BLUE, linewidth=1.4)
        axis.set(title=f"coordinate {j + 1}", xlim=(0, 1))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0].set_ylim(bottom=0)  # shared, so it has to know the counts of all panels
    figure.supxlabel(f"rank of the truth / {n}")
    figure.supylabel("observations")
    more = f", {shown} of {d} coordinates" if shown < d else ""
    figure.suptitle(f"{count} observations, {n} samples each{more}; grey: 99 % of exact")
    return save(figure, path)


@styled
def samples_2d(
    exact: Tensor,
    samples: Tensor,
    path: str | Path,
    truth: Tensor | None = None,
    prior: Tensor | None = None,
) -> Path:
    """Save planar scatter plots: exact posterior draws above, a sampler's draws below.

    Args:
        exact: (m, B, 2).
        samples: (n, B, 2).
        path: file to write.
        truth: the x behind each observation, (B, 2), drawn as a cross, or None.
        prior: draws of the prior (k, 2), drawn in grey behind both, or None.

    Raises:
        ValueError: when the shapes are not planar or disagree on B.
    """
    if exact.dim() != 3 or samples.dim() != 3 or exact.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f"samples_2d needs exact (m, B, 2) and samples (n, B, 2), got {tuple(exact.shape)} and "
            f"{tuple(samples.shape)}"
        )
    if exact.shape[2] != 2:
        raise ValueError(f"samples_2d draws planar data, got dimension {exact.shape[2]}")
    batch = exact.shape[1]
    figure = new_figure(1.7 * batch + 0.4, 3.7)
    axes = figure.subplots(2, batch, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat:
        axis.set(aspect="equal", xticks=[], yticks=[])
        if prior is not None:
            axis.scatter(*prior.cpu().T.numpy(), s=1.5, color=GREY, alpha=0.25, linewidths=0)
    for b in range(batch):
        for row, points, color in ((0, exact, BLUE), (1, samples, ORANGE)):
            axis, size = axes[row, b], max(1.5, min(8.0, 2000 / len(points)))
            axis.scatter(*points[:, b].cpu().T.numpy(), s=size, color=color, alpha=0.5, lw=0)
            if truth is not None:
                axis.plot(*truth[b].cpu().tolist(), "x", color="black", ms=6, mew=1.4)
        axes[0, b].set_title(f"observation {b + 1}", pad=3)
    axes[0, 0].set_ylabel("exact posterior")
    axes[1, 0].set_ylabel("sampler")
    return save(figure, path)


@styled
def curves(source: str | Path, path: str | Path, names: Sequence[str] | None = None) -> Path:
    """Save training curves from a CSV of metrics with a `step` column; blanks are skipped.

    Columns that differ only in what stands before a slash (train/loss, val/loss) share a panel.

    Args:
        source: the CSV, one row per logged step, as Lightning's CSVLogger writes it.
        path: file to write.
        names: columns to draw; every numeric column but step and epoch by default.

    Raises:
        FileNotFoundError: when there is no CSV at `source`.
        ValueError: when a column is missing or there is nothing to draw.
    """
    series = _read_csv(Path(source), names)
    groups: dict[str, list[str]] = {}
    for name in series:
        groups.setdefault(name.rpartition("/")[2], []).append(name)
    figure, axes = panels(len(groups), 2.6, 1.9)
    for axis, (title, members) in zip(axes, groups.items(), strict=True):
        for name in members:
            label, (steps, values) = name.rpartition("/")[0], series[name]
            axis.plot(steps, values, marker="." if len(values) < 30 else "", lw=1.2, label=label)
        axis.set_title(title.replace("_", " "))
        if any("/" in name for name in members):
            axis.legend()
    figure.supxlabel("step")
    return save(figure, path)


def _read_csv(
    source: Path, names: Sequence[str] | None
) -> dict[str, tuple[list[float], list[float]]]:
    if not source.exists():
        raise FileNotFoundError(f"curves needs a CSV of metrics, got no file at {source}")
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    wanted = [c for c in columns if c not in ("step", "epoch")] if names is None else list(names)
    if missing := [c for c in ["step", *wanted] if c not in columns]:
        raise ValueError(f"{source} has no columns {missing}; it has {columns}")
    series = {}
    for name in wanted:
        points = [(float(r["step"]), v) for r in rows if (v := _number(r[name])) is not None]
        if points:
            series[name] = ([s for s, _ in points], [v for _, v in points])
    if not series:
        raise ValueError(f"{source} holds no numbers to draw in columns {wanted}")
    return series


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _binomial_band(count: int, probability: Any) -> tuple[Any, Any]:
    from scipy.stats import binom

    return binom.ppf(0.005, count, probability), binom.ppf(0.995, count, probability)
