"""What `sample.py` leaves behind: figure, single images, samples and figures of merit."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from outsourced.evaluation import against_truth, averages, figure, summary
from outsourced.metrics import verdict
from outsourced.pictures import write_image
from outsourced.posterior import Posterior
from outsourced.run import disk_errors, write_tensors, write_text
from outsourced.solvers.base import Samples
from outsourced.tasks.base import Observation


def figures_of_merit(
    posterior: Posterior, samples: Samples, obs: Observation, truth: Tensor | None
) -> dict[str, Any]:
    """Averages over the observations, a verdict on them, and the list of each figure's values."""
    figures = summary(posterior, samples, obs)
    if truth is not None and truth.ndim == 4:
        figures |= against_truth(samples, truth)
    values: dict[str, Any] = averages(figures)
    count = samples.x.shape[0] * samples.x.shape[1]
    values |= {
        "samples": samples.x.shape[0],
        "observations": len(obs),
        "seconds": samples.seconds,
        "seconds_per_sample": samples.seconds / count,
        "prior_calls": samples.prior_calls,
        "verdict": _verdict(posterior, samples, figures),
    }
    values["per_observation"] = {name: value.tolist() for name, value in figures.items()}
    return values


def _verdict(posterior: Posterior, samples: Samples, figures: dict[str, Tensor]) -> str:
    if samples.estimates:
        return (
            "unknown: estimates are no draws of the posterior, and are less spread; leave out "
            "solver.medoid and solver.temperature for draws"
        )
    weight = samples.proposal_log_weight
    candidates = 0 if weight is None else len(weight)
    corrected = samples.log_weight is None
    return verdict(figures, candidates, corrected, posterior.differentiable)


def write_samples(
    folder: Path,
    posterior: Posterior,
    samples: Samples,
    obs: Observation,
    truth: Tensor | None,
    metrics: dict[str, Any],
    picture: Path | None = None,
) -> None:
    """Write tensors, figures of merit and, for image data, a figure and single images.

    Args:
        folder: Where to; what an earlier call left there is replaced.
        posterior, samples, obs, truth: As given to `figures_of_merit`.
        metrics: As returned by it.
        picture: File of the figure; FOLDER/figure.png by default.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = {"x": samples.x}
    if samples.z is not None:
        tensors["z"] = samples.z
    tensors |= {f"observation.{name}": value for name, value in obs.state_dict().items()}
    if samples.log_weight is not None:
        tensors["log_weight"] = samples.log_weight
    if truth is not None:
        tensors["truth"] = truth
    write_tensors(folder / "samples.safetensors", tensors, {})
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2))
    if samples.x.ndim == 5 and samples.x.shape[2] in (1, 3):
        _write_singles(folder / "images", samples)
        with disk_errors(folder):
            figure(posterior, samples, obs, truth, picture or folder / "figure.png")


def _write_singles(folder: Path, samples: Samples) -> None:
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("observation*-sample*.png"):
            old.unlink()
    for b in range(samples.x.shape[1]):
        for i in range(samples.x.shape[0]):
            write_image(folder / f"observation{b:03d}-sample{i:03d}.png", samples.x[i, b])


def table(metrics: dict[str, Any]) -> str:
    """The figures of merit, a line each, and the verdict last."""
    rows = [f"{k:20s} {v:.4g}" for k, v in metrics.items() if isinstance(v, int | float)]
    return "\n".join([*rows, metrics["verdict"]])
