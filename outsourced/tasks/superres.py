"""Super-resolution: the image is seen after an anti-aliased down-sampling."""

from __future__ import annotations

from collections.abc import Sequence

from .measurement import Measurement


class SuperResolution(Measurement):
    """y = every `factor`-th pixel of (filter * x) + n.

    Args:
        data_shape: (C, H, W), H and W divisible by factor.
        factor: integer down-sampling factor, at least 2.
        sigma: noise standard deviation on [-1, 1] images, or a pair (lo, hi).
        filter: anti-aliasing filter of `deepinv.physics.Downsampling`: "bicubic", "bilinear",
            "gaussian" or "sinc".
        padding: "circular", "reflect", "replicate" or "zeros".
        noise: "gaussian" or "poisson".

    Raises:
        ValueError: when the factor does not divide the image, a name is unknown, or sigma is
            not > 0.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        factor: int,
        sigma: float | Sequence[float],
        filter: str = "bicubic",
        padding: str = "reflect",
        noise: str = "gaussian",
    ) -> None:
        from deepinv.physics import Downsampling

        shape = tuple(int(s) for s in data_shape)
        if len(shape) != 3:
            raise ValueError(f"task.data_shape must be (C, H, W), got {shape}")
        if int(factor) != factor or factor < 2 or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"task.factor must be an integer >= 2 that divides {shape[1]}x{shape[2]}, "
                f"got {factor}"
            )
        filters = ("bicubic", "bilinear", "gaussian", "sinc")
        if filter not in filters:
            raise ValueError(f"task.filter must be one of {filters}, got {filter!r}")
        physics = Downsampling(img_size=shape, filter=filter, factor=int(factor), padding=padding)
        super().__init__(physics, shape, sigma, noise=noise)
