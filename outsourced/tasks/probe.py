"""Find out at construction, not in hour three, whether an operator keeps its promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Apply = Callable[[Tensor, dict[str, Tensor]], Tensor]


def check_physics(physics: nn.Module) -> None:
    """Refuse what is not a deepinv Physics with additive Gaussian noise.

    Args:
        physics: the candidate operator.

    Raises:
        ValueError: when it is no `deepinv.physics.Physics`, carries another noise model than
            Gaussian, or a sensor non-linearity after the noise.
    """
    from deepinv.physics import GaussianNoise, Physics, ZeroNoise

    name = type(physics).__name__
    if not isinstance(physics, Physics):
        raise ValueError(
            f"task.physics must be a deepinv.physics.Physics, got {name}; wrap a function with "
            "deepinv.physics.Physics(A=function) or use NonlinearMeasurement"
        )
    if not isinstance(physics.noise_model, (ZeroNoise, GaussianNoise)):
        raise ValueError(
            f"task.physics ({name}) must have Gaussian noise, whose level is task.sigma, got "
            f"{type(physics.noise_model).__name__}; pass a physics without a noise model"
        )
    ramp = torch.linspace(-3, 3, 13)
    if not torch.equal(torch.as_tensor(physics.sensor_model(ramp)), ramp):
        raise ValueError(
            f"task.physics ({name}) has a sensor_model after the noise, so y is not Gaussian given "
            "x; remove it or move it into A"
        )


def probe_forward(name: str, apply: Apply, x: Tensor, params: dict[str, Tensor]) -> Tensor:
    """Run A on two random inputs and return A(x), (2, *measurement_shape).

    Args:
        name: what to call the operator in messages.
        apply: the noiseless operator.
        x: two inputs, (2, *data_shape).
        params: their operator parameters, each (2, ...).

    Raises:
        ValueError: when A fails, returns something else than a finite real tensor with the batch
            dimension of x, is random, or mixes the items of a batch.
    """
    try:
        y = apply(x, params)
    except Exception as error:
        raise ValueError(
            f"task.physics ({name}) failed on x of shape {tuple(x.shape)} with parameters "
            f"{ {k: tuple(v.shape) for k, v in params.items()} }: {error}"
        ) from error
    if not isinstance(y, Tensor) or not y.is_floating_point() or y.dim() < 2 or len(y) != 2:
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"task.physics ({name}) must map (2, *data_shape) to one real tensor "
            f"(2, *measurement_shape), got {got}; concatenate several outputs and split complex "
            "ones into real and imaginary part inside A"
        )
    if not torch.isfinite(y).all():
        raise ValueError(f"task.physics ({name}) returned non-finite values on finite x")
    if not torch.equal(y, apply(x, params)):
        raise ValueError(f"task.physics ({name}) must be deterministic, got two different A(x)")
    first = apply(x[:1], {k: v[:1] for k, v in params.items()})
    if not torch.allclose(y[:1], first, rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"task.physics ({name}) must treat a batch item by item, but A(x)[0] changes when x[0] "
            "is alone in the batch; remove statistics over the batch"
        )
    return y


def probe_adjoint(
    name: str, adjoint: Apply, x: Tensor, y: Tensor, params: dict[str, Tensor], v: Tensor
) -> None:
    """Check <A x, v> = <x, A^T v>.

    Args:
        name: what to call the operator in messages.
        adjoint: the adjoint operator.
        x: random inputs, (2, *data_shape).
        y: A(x), (2, *measurement_shape).
        params: their operator parameters.
        v: random measurements of the shape of y.

    Raises:
        ValueError: when the relative adjointness error exceeds 1e-4 or A^T y has a wrong shape.
    """
    back = adjoint(v, params)
    if back.shape != x.shape:
        raise ValueError(
            f"task.physics ({name}).A_adjoint must return the shape of x {tuple(x.shape)}, "
            f"got {tuple(back.shape)}"
        )
    left, right = (y.double() * v).flatten(1).sum(1), (x.double() * back).flatten(1).sum(1)
    scale = torch.linalg.vector_norm(y.double().flatten(1), dim=1) * torch.linalg.vector_norm(
        v.double().flatten(1), dim=1
    )
    error = ((left - right).abs() / scale.clamp_min(1e-30)).max().item()
    if not error <= 1e-4:
        raise ValueError(
            f"task.physics ({name}).A_adjoint is not the adjoint of A: <Ax, v> and <x, A^T v> "
            f"differ by {error:.1e} relative, expected <= 1e-4; fix A_adjoint, or subclass "
            "deepinv.physics.Physics if A is not linear"
        )


def probe_gain(apply: Apply, adjoint: Apply, x: Tensor, params: dict[str, Tensor]) -> float:
    """Return the factor that brings A^T A x closest to x, in least squares; 1 where A x is 0.

    Args:
        apply: the noiseless operator.
        adjoint: its adjoint.
        x: inputs, (B, *data_shape), for their shape: the factor is that of a constant, since images
            live at low frequencies.
        params: their operator parameters.
    """
    x = torch.ones_like(x)
    image = adjoint(apply(x, params), params).double()
    power = image.square().sum()
    return float((x * image).sum() / power) if power > 0 else 1.0


def probe_intensity(name: str, apply: Apply, x: Tensor, params: dict[str, Tensor]) -> None:
    """Refuse measurements that no photons could count: those of images must be images.

    Args:
        name: what to call the operator in messages.
        apply: the noiseless operator.
        x: two inputs, (2, *data_shape).
        params: their operator parameters.

    Raises:
        ValueError: when black or white images leave [-1, 1].
    """
    largest = max(float(apply(torch.full_like(x, v), params).abs().max()) for v in (-1.0, 1.0))
    if largest > 1.001:
        raise ValueError(
            f"task.noise=poisson needs measurements in [-1, 1] of images in [-1, 1], but those of "
            f"task.physics ({name}) reach {largest:.3g}; use task.noise=gaussian"
        )
