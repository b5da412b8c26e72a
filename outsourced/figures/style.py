"""The look that all figures share, and how they are written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2b6cb0", "#d9730d", "#9aa3ad"
STYLE = {
    **{"font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8, "figure.labelsize": 8},
    **{"figure.titlesize": 9, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7},
    **{"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6},
    "legend.frameon": False,
}
P = ParamSpec("P")


def styled(draw: Callable[P, Path]) -> Callable[P, Path]:
    """Draw under our style, and leave that of the caller as it was."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Path:
        from matplotlib import rc_context

        with rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no window, nothing kept alive

    return Figure((width, height), layout="constrained")


def panels(
    count: int, width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A grid of at most 4 columns with its unused cells removed."""
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = new_figure(width * columns + 0.3, height * rows + 0.5)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def save(figure: Figure, path: str | Path) -> Path:
    """Write under a temporary name, then rename: nothing half-written is left behind."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, dpi=200, bbox_inches="tight", pad_inches=0.04, facecolor="white")
    return partial.replace(path)
