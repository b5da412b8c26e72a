"""Ascent of log-densities in noise space, from given starts."""

from collections.abc import Callable

import torch
from torch import Tensor

BETAS = (0.8, 0.95)  # short memories: the whole climb is a few dozen steps


@torch.no_grad()
def climb(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    steps: int,
    rate: float = 0.1,
) -> Tensor:
    """Return the best point on the way of Adam up log r(z) - |z|^2 / 2, each sample on its own.

    Args:
        value_and_grad: Maps z (B, *noise_shape) to log r, (B,) nats, and its gradient in z.
        start: First points, (B, *noise_shape).
        steps: Gradients taken >= 1; the point after the last of them is not looked at.
        rate: Learning rate, in standard deviations of the noise.

    Raises:
        ValueError: steps < 1 or rate <= 0.

    Source: Kingma & Ba, 2015, arXiv 1412.6980, algorithm 1.
    """
    if steps < 1 or rate <= 0:
        raise ValueError(f"climb needs steps >= 1 and rate > 0, got {steps} and {rate}")
    z = best = start
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    score = torch.full_like(z.flatten(1)[:, 0], -torch.inf)
    for step in range(1, steps + 1):
        value, gradient = value_and_grad(z)
        value = value - 0.5 * z.flatten(1).square().sum(-1)
        better = value > score
        score = torch.where(better, value, score)
        best = torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), z, best)
        gradient = gradient - z
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        size = (second / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        z = z + rate * first / (1 - BETAS[0] ** step) / size
    return best
