"""Fixed-point iteration with Anderson acceleration, each sample of a batch on its own.

Source: Walker & Ni, SIAM J. Numer. Anal. 49 (2011), section 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 3  # points that are combined


def fixed_point(
    update: Callable[[Tensor, Tensor], Tensor], start: Tensor, tolerance: float, most: int
) -> Tensor:
    """Solve y = update(y, rows) for every sample; those that have converged are left alone.

    Args:
        update: Maps the points of the samples `rows` (M,), (M, ...), to their next ones.
        start: First points, (B, ...).
        tolerance: A sample has converged where the root mean square of its step is below it.
        most: Updates of a sample, at most.
    """
    found, rows = start.clone(), torch.arange(len(start), device=start.device)
    points: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(most):
        image = update(found[rows], rows)
        step = (image - found[rows]).flatten(1).square().mean(1).sqrt()
        # Combined in single precision at least: there is no half-precision solver.
        points = [*points, found[rows].flatten(1).float()][-MEMORY:]
        images = [*images, image.flatten(1).float()][-MEMORY:]
        moving = ~(step < tolerance)  # not a number never converges
        mixed = _mix(points, images).view_as(image).to(image.dtype)
        found[rows] = torch.where(moving.reshape(-1, *[1] * (image.ndim - 1)), mixed, image)
        if not moving.any():
            break
        rows = rows[moving]
        points, images = ([value[moving] for value in kept] for kept in (points, images))
    return found


def _mix(points: list[Tensor], images: list[Tensor]) -> Tensor:
    """The combination of the images whose steps nearly cancel, (M, d)."""
    if len(points) == 1:
        return images[0]
    steps = torch.stack([image - point for point, image in zip(points, images, strict=True)], 2)
    older = torch.stack(images[:-1], 2)
    change = steps[..., -1:] - steps[..., :-1]
    # By normal equations, a little regular: some schedules end in steps that change nothing.
    matrix = change.mT @ change
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    size = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    matrix = matrix + (1e-6 * size + 1e-30) * eye
    share, _ = torch.linalg.solve_ex(matrix, change.mT @ steps[..., -1:])
    return images[-1] - ((images[-1][..., None] - older) @ share)[..., 0]
