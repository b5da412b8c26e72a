"""Best linear estimate of x from a linear measurement, under a Gaussian with the data's moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from outsourced.least_squares import least_squares

from .base import Observation
from .ridge import Linear


class DataGaussian(nn.Module):
    """N(mean, C) of data, C = V^T diag(variances - rest) V + rest I with principal axes V.

    Args:
        data_shape: Of one x, of D entries.
        axes: Number k of principal axes, from 0 to D - 1.

    Attributes:
        mean: (*data_shape); 0 before `fill`.
        axes, variances: Orthonormal rows (k, D), and the variances along them (k,).
        rest: Variance along all other axes; 1 before `fill`.

    Raises:
        ValueError: The number of axes is out of range.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, data_shape: Sequence[int], axes: int) -> None:
        super().__init__()
        mean = torch.zeros(tuple(data_shape))
        if not 0 <= axes < mean.numel():
            raise ValueError(f"sampler.axes must lie in 0 .. {mean.numel() - 1}, got {axes}")
        self.register_buffer("mean", mean)
        self.register_buffer("axes", torch.eye(axes, mean.numel()))
        self.register_buffer("variances", torch.ones(axes))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fill(self, x: Tensor) -> None:
        """Take the moments of data (N, *data_shape).

        Raises:
            ValueError: N is not above the number of axes.
        """
        count = len(self.axes)
        if len(x) <= max(count, 1):
            raise ValueError(
                f"{count} principal axes need more than {max(count, 1)} images, got {len(x)}"
            )
        mean = x.mean(0)
        flat = (x - mean).flatten(1)
        total = flat.square().sum() / len(x)
        self.mean.copy_(mean)
        if count:
            _, values, axes = torch.linalg.svd(flat, full_matrices=False)
            self.axes.copy_(axes[:count])
            self.variances.copy_(values[:count].square() / len(x))
        beside = (total - self.variances.sum()).clamp_min(0)  # rounding may go below
        self.rest.copy_(beside / (flat.shape[1] - count))


def linear_estimate(task: Linear, obs: Observation, about: DataGaussian, steps: int = 24) -> Tensor:
    """E[x | y] of x ~ N(mean, C) for each observation of a linear task, (B, *data_shape).

    Of all estimates that are linear in y it has the least mean squared error, whatever the
    distribution of x with these moments (Kay, 1993, section 12.3). The unknowns of the conjugate
    gradients are scaled so that all are alike where A^T A is about a projection.

    Args:
        task: Knows A and A^T of every observation.
        obs: B observations.
        about: The Gaussian.
        steps: Conjugate gradients.
    """
    count, size = len(about.axes), obs.y[0].numel()
    sigma = obs.sigma[:, None]
    # C = V^T diag(excess) V + rest I, which are two independent parts of x.
    excess = (about.variances - about.rest).clamp_min(0).expand(len(obs), -1)
    variances = torch.cat([excess, about.rest.expand(len(obs), about.mean.numel())], 1)
    precondition = (variances + sigma.square()).rsqrt()
    spread, damping = variances.sqrt() * precondition, sigma * precondition

    def image(w: Tensor) -> Tensor:
        along, beside = (spread * w).tensor_split([count], 1)
        return (along @ about.axes + beside).unflatten(1, about.mean.shape)

    def push(w: Tensor) -> Tensor:
        return torch.cat([task.apply(image(w), obs.params).flatten(1), damping * w], 1)

    def pull(u: Tensor) -> Tensor:
        y, rest = u.tensor_split([size], 1)
        back = task.adjoint(y.view(obs.y.shape), obs.params).flatten(1)
        return spread * torch.cat([back @ about.axes.T, back], 1) + damping * rest

    mean = about.mean.expand(len(obs), *about.mean.shape)
    away = (obs.y - task.apply(mean, obs.params)).flatten(1)
    right = torch.cat([away, torch.zeros_like(variances)], 1)
    return mean + image(least_squares(push, pull, right, steps))
