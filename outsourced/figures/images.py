"""Posterior samples of images beside the observation they explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from outsourced.figures.style import new_figure, save, styled

TINT = (0.78, 0.83, 0.92)  # of hidden pixels: a pale blue, which no grey image holds


@styled
def posterior_figure(
    truth: Tensor | None,
    observation: Tensor,
    samples: Tensor,
    mask: Tensor | None,
    path: str | Path,
    shown: int = 6,
) -> Path:
    """Save one row per observation: truth, observation, samples, their mean and their spread.

    The spread is the standard deviation of each pixel over the n samples in units of [-1, 1] (root
    mean square over channels), on one colour scale for all rows.

    Args:
        truth: images in [-1, 1], (B, C, H, W) with C 1 or 3, or None.
        observation: images of any size, (B, C, h, w).
        samples: (n, B, C, H, W), n >= 2.
        mask: 1 where a pixel of the observation was seen, (B, 1, h, w), or None; hidden pixels are
            shown in a pale blue.
        path: file to write; its suffix sets the format.
        shown: number of samples to show, at most n.

    Raises:
        ValueError: when shapes do not match.
    """
    _check_images(truth, observation, samples, mask, shown)
    columns = [] if truth is None else [("truth", _pixels(truth))]
    columns.append(("observation", _tinted(_pixels(observation), mask)))
    shown = min(shown, samples.shape[0])
    names = [f"sample {i + 1}" for i in range(shown)]
    columns += zip(names, (_pixels(s) for s in samples[:shown]), strict=True)
    columns.append(("mean", _pixels(samples.mean(0))))
    spread = samples.float().var(0).mean(1).sqrt().cpu()
    rows, width = samples.shape[1], len(columns) + 1
    ratio = samples.shape[-2] / samples.shape[-1]
    figure = new_figure(1.05 * width + 0.55, (1.05 * rows) * ratio + 0.3)
    axes = figure.subplots(rows, width, squeeze=False)
    for axis, (name, _) in zip(axes[0], [*columns, ("std. dev.", None)], strict=True):
        axis.set_title(name, pad=3)
    for row in range(rows):
        for axis, (_, images) in zip(axes[row], columns, strict=False):
            axis.imshow(images[row].numpy(), interpolation="nearest")
        top = max(float(spread.max()), 1e-6)
        heat = axes[row, -1].imshow(spread[row].numpy(), cmap="magma", vmin=0, vmax=top)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.colorbar(heat, ax=list(axes[:, -1]), fraction=0.08, pad=0.06, aspect=12 * rows)
    return save(figure, path)


@dataclass(frozen=True)
class Case:
    """An observation and what several solvers make of it.

    Attributes:
        truth: the image, (C, H, W) in [-1, 1].
        observation: of any size, (C, h, w).
        mask: 1 where a pixel of the observation was seen, (1, h, w), or None.
        samples: a sample (C, H, W) of each solver, by its name.
        spread: pixelwise standard deviation of many samples of one solver, (H, W), or None.
        label: written beside the row.
    """

    truth: Tensor
    observation: Tensor
    mask: Tensor | None
    samples: dict[str, Tensor]
    spread: Tensor | None
    label: str = ""


@styled
def comparison_figure(cases: Sequence[Case], path: str | Path) -> Path:
    """Save one row per observation: truth, observation, a sample of each solver, and a spread.

    A column is a solver, in the order in which the cases name them first; a panel stays empty
    where a case has no sample of it. All spreads share one colour scale.

    Args:
        cases: at least one.
        path: file to write; its suffix sets the format.
    """
    names = list(dict.fromkeys(name for case in cases for name in case.samples))
    titles = ["truth", "observation", *names, "std. dev."]
    figure = new_figure(1.05 * len(titles), 1.05 * len(cases) + 0.4)
    axes = figure.subplots(len(cases), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title.replace(", ", "\n"), pad=3, fontsize=6.5)
    spreads = [float(case.spread.max()) for case in cases if case.spread is not None]
    for row, case in zip(axes, cases, strict=True):
        mask = None if case.mask is None else case.mask[None]
        images = {0: _pixels(case.truth[None]), 1: _tinted(_pixels(case.observation[None]), mask)}
        for column, name in enumerate(names, 2):
            if name in case.samples:
                images[column] = _pixels(case.samples[name][None])
        for column, image in images.items():
            row[column].imshow(image[0].numpy(), interpolation="nearest")
        row[0].set_ylabel(case.label.replace("_", "\n"), fontsize=6.5)
        if case.spread is not None:
            heat = case.spread.detach().float().cpu().numpy()
            row[-1].imshow(heat, cmap="magma", vmin=0, vmax=max(spreads))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return save(figure, path)


def _check_images(
    truth: Tensor | None, observation: Tensor, samples: Tensor, mask: Tensor | None, shown: int
) -> None:
    if samples.dim() != 5 or samples.shape[0] < 2 or samples.shape[2] not in (1, 3) or shown < 1:
        raise ValueError(
            "posterior_figure needs samples (n >= 2, B, 1 or 3, H, W) and shown >= 1, got "
            f"{tuple(samples.shape)} and shown={shown}"
        )
    if truth is not None and truth.shape != samples.shape[1:]:
        raise ValueError(
            f"truth must be {tuple(samples.shape[1:])} like a sample, got {tuple(truth.shape)}"
        )
    batch = samples.shape[1]
    if observation.dim() != 4 or observation.shape[0] != batch:
        raise ValueError(
            f"observation must be images ({batch}, C, h, w), got {tuple(observation.shape)}"
        )
    expected = (batch, 1, *observation.shape[2:])
    if mask is not None and tuple(mask.shape) != expected:
        raise ValueError(f"mask must be {expected}, got {tuple(mask.shape)}")


def _pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, 3) in [0, 1]."""
    images = ((images.detach().float().cpu() + 1) / 2).clamp(0, 1)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _tinted(pixels: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return pixels
    seen = mask.detach().float().cpu().permute(0, 2, 3, 1)
    return seen * pixels + (1 - seen) * torch.tensor(TINT)
