"""Several perturbed fits one after the other, and how a setting names them."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from outsourced.linearised import Linearised, perturbed_fit
from outsourced.tasks.base import Observation


def refined(
    linearise: Callable[[Tensor, Observation], Linearised],
    h: Tensor,
    obs: Observation,
    noise: Tensor,
    rounds: Sequence[int],
    rows: int,
) -> Tensor:
    """Points (B, ...) after several perturbed fits, each about the end of the one before.

    Args:
        linearise: the map about points.
        h: points to begin at, (B, ...).
        obs: B observations.
        noise: standard normal, (B, m), the same in all fits.
        rounds: conjugate gradients of each fit.
        rows: points fitted at once.
    """
    ends = []
    for piece in torch.arange(len(h), device=h.device).split(rows):
        end, part = h[piece], obs[piece]
        for steps in rounds:
            end = end + perturbed_fit(linearise(end, part), noise[piece], steps)
        ends.append(end)
    return torch.cat(ends)


def fits(
    refine: int | Sequence[int], black_box: str | None, name: str = "sampler.refine"
) -> tuple[int, ...]:
    """Conjugate gradients of each fit of a refinement.

    Args:
        refine: Of one fit, 0 for none; or of each.
        black_box: Of the problem that is fitted.
        name: Of the setting.

    Raises:
        ValueError: Negative numbers, fits without steps in a list, or a black box.
    """
    found = tuple(refine) if isinstance(refine, Iterable) else (refine,) * (refine != 0)
    if not all(isinstance(steps, int) and steps >= 1 for steps in found):
        raise ValueError(f"{name} must be >= 0 steps or a list of numbers >= 1, got {refine}")
    if found and black_box is not None:
        raise ValueError(
            f"{name}={refine} needs the gradient of log r, but {black_box} is a black box; use "
            f"{name}=0"
        )
    return found
