"""Shapes of what a measurement is asked about."""

from __future__ import annotations

from torch import Tensor


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another event shape.

    Args:
        name: of the tensor.
        value: (B, ...).
        shape: expected after the batch dimension.

    Raises:
        ValueError: when the shapes differ.
    """
    if tuple(value.shape[1:]) != shape:
        raise ValueError(f"task.{name} must be (B, *{shape}), got {tuple(value.shape)}")


def check_params(n: int, params: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse operator parameters of other names or shapes.

    Args:
        n: number of samples.
        params: each (n, ...).
        shapes: event shape of each expected parameter.

    Raises:
        ValueError: when a parameter is missing, unknown or of a wrong shape.
    """
    got = {k: tuple(v.shape) for k, v in params.items()}
    expected = {k: (n, *shape) for k, shape in shapes.items()}
    if got != expected:
        raise ValueError(
            f"task.params must be {expected} for {n} samples, got {got}; draw them with "
            "task.sample_operator(n)"
        )


def check_pairs(data: int, observations: int) -> None:
    """Refuse a number of data that is not that of the observations.

    Raises:
        ValueError: when the numbers differ.
    """
    if data != observations:
        raise ValueError(
            f"task needs one observation per x, got {observations} observations for {data} x; use "
            "obs.repeat(n)"
        )
