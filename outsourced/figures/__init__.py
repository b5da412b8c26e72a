"""Figures of tensors: posterior samples, calibration ranks, planar posteriors, training curves."""

from outsourced.figures.images import Case, comparison_figure, posterior_figure
from outsourced.figures.plots import curves, rank_histograms, samples_2d

__all__ = [
    "Case",
    "comparison_figure",
    "curves",
    "posterior_figure",
    "rank_histograms",
    "samples_2d",
]
