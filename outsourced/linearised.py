"""Posterior draws by least squares through a linearised map, each sample on its own."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from outsourced.least_squares import least_squares


@dataclass(frozen=True)
class Linearised:
    """Whitened residuals near B points: residual + J d at a distance d.

    Attributes:
        residual: at the points, (B, m); 0 where nothing is observed.
        push: J d of d (B, ...), (B, m); 0 there, too.
        pull: J^T u of u (B, m), (B, ...).
    """

    residual: Tensor
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


def perturbed_fit(at: Linearised, noise: Tensor, steps: int) -> Tensor:
    """Steps d towards the least |residual + noise + J d|^2, (B, ...).

    With fresh noise of the measurement in every sample, minimisers scatter as a posterior does in
    the directions that the data determine (Bardsley et al., 2014, doi 10.1137/140964023). The first
    conjugate gradients go along these directions and leave the others as they were.

    Args:
        at: the residual and its Jacobian.
        noise: standard normal, (B, m); J^T has none of it where nothing is observed.
        steps: conjugate gradients, at least 1; each takes a `push` and a `pull`.

    Raises:
        ValueError: steps < 1.
    """
    return least_squares(at.push, at.pull, -(at.residual + noise), steps)
