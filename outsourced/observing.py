"""What `sample.py` is asked about: held-out, simulated or the user's own images."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from outsourced.pictures import read_image, read_mask
from outsourced.posterior import Posterior
from outsourced.tasks.base import Observation
from outsourced.tasks.blur_kernels import FixedKernel
from outsourced.tasks.measurement import Measurement
from outsourced.tasks.mixture import Mixture

SOURCES = ("test", "simulated")


def observe(
    posterior: Posterior,
    source: str | None,
    images: Tensor | None,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Observation]:
    """Truth and observations of held-out images (`test`) or of the prior's own (`simulated`).

    Args:
        posterior: Prior and task.
        source: One of `SOURCES`, or None: `test` where there are held-out images.
        images: Held-out images (N, *data_shape), if there are any.
        count: Number of observations, at most N of `test`.
        generator: CPU generator.

    Raises:
        ValueError: Unknown source, no held-out images, or a count out of range.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if source == "test" and images is None:
        raise ValueError(
            "source=test needs held-out images, which this run has none of; use simulated"
        )
    most = len(images) if images is not None and source != "simulated" else None
    if count < 1 or (most is not None and count > most):
        limit = "" if most is None else f" and <= {most}, the number of held-out images"
        raise ValueError(f"observations must be >= 1{limit}, got {count}")
    if images is None or source == "simulated":
        _, x, obs = posterior.simulate(count, generator)
        return x, obs
    x = images[:count].to(posterior.device)
    return x, _measurement(posterior).sample(x, generator=generator)


def observe_picture(
    posterior: Posterior,
    image: str | Path,
    mask: str | Path | None,
    observed: bool,
    sigma: float | None,
    generator: torch.Generator,
    kernel: str | Path | None = None,
) -> tuple[Tensor | None, Observation]:
    """The user's picture, measured by the task, or taken as the measurement itself.

    Args:
        posterior: Prior and task.
        image: File of the picture.
        mask: File of a mask, white = observed, that replaces the task's own.
        observed: The picture is y, and there is no truth.
        sigma: Noise level of the observation; the task's by default.
        generator: CPU generator.
        kernel: File of a blur kernel, a picture or .npy, that replaces the task's own.

    Raises:
        FileNotFoundError, ValueError: Unreadable files, a mask or a kernel that does not fit, or an
            observed picture whose operator or noise level is not known.
    """
    task, shape = _measurement(posterior), posterior.prior.data_shape
    x = read_image(image, shape)[None].to(posterior.device)
    if mask is not None and kernel is not None:
        raise ValueError("give either mask=... or kernel=..., not both")
    if mask is not None:
        params = _operator_with(task, "mask", "mask", read_mask(mask, shape), generator)
    elif kernel is not None:
        own = FixedKernel(Path(kernel)).kernel[None]
        params = _operator_with(task, "kernel", "filter", own, generator)
    else:
        params = task.sample_operator(1, generator)
    if not observed:
        return x, task.sample(x, generator=generator, params=params, sigma=sigma)
    given = "mask" if mask is not None else "filter" if kernel is not None else None
    _require_known(task, params, given, sigma, generator)
    params = {name: value.to(x.device) for name, value in params.items()}
    level = torch.tensor([task.noise_level.lo if sigma is None else sigma], device=x.device)
    y = torch.where(task.observed(x, params), x, 0.0)
    obs = Observation(y, params, level)
    task.check(obs)
    return None, obs


def _operator_with(
    task: Measurement, option: str, name: str, value: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Operator parameters with the user's own (c, h, w) in the place of the task's; smaller kernels
    get a dark border."""
    shape = task.param_shapes.get(name)
    if shape is None:
        wanted = "random masks" if option == "mask" else "random kernels"
        raise ValueError(f"{option}=... needs a run with {wanted}, not of {type(task).__name__}")
    rows, columns = (
        (size - own) // 2 for size, own in zip(shape[1:], value.shape[1:], strict=True)
    )
    if rows < 0 or columns < 0:
        raise ValueError(
            f"{option}=... must be at most {shape[1]} x {shape[2]} pixels, as in training, got "
            f"{value.shape[1]} x {value.shape[2]}"
        )
    if isinstance(task, Mixture):
        drawn = task.sample_operator_with(name, generator)
    else:
        drawn = task.sample_operator(1, generator)
    return {**drawn, name: pad(value, (columns, columns, rows, rows))[None]}


def _require_known(
    task: Measurement,
    params: dict[str, Tensor],
    given: str | None,
    sigma: float | None,
    generator: torch.Generator,
) -> None:
    """What produced an observed picture must be given, since it cannot be drawn afterwards."""
    if tuple(task.measurement_shape) != tuple(task.data_shape):
        raise ValueError(
            f"observed=true needs measurements of the image's shape {tuple(task.data_shape)}, but "
            f"the task's are {tuple(task.measurement_shape)}"
        )
    if task.noise_level.varies and sigma is None:
        raise ValueError(
            f"observed=true needs sigma=..., the noise level of the picture in "
            f"[{task.noise_level.lo}, {task.noise_level.hi}]"
        )
    again = task.sample_operator(1, generator)
    for name, value in params.items():
        if name != given and not torch.equal(again[name], value):
            option = "kernel" if name == "filter" else name
            raise ValueError(f"observed=true needs {option}=..., which the task draws at random")


def _measurement(posterior: Posterior) -> Measurement:
    if not isinstance(posterior.task, Measurement):
        raise ValueError(
            f"{type(posterior.task).__name__} measures nothing; images need a Measurement task"
        )
    return posterior.task
