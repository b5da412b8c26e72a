"""Draw posterior samples: `python sample.py run=RUN n=16`, or any other solver without training."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from outsourced.allocator import keep_freed_memory
from outsourced.build import build_solver, problem_of
from outsourced.commands import launch, one_line_errors
from outsourced.observing import observe, observe_picture
from outsourced.posterior import Posterior
from outsourced.report import figures_of_merit, table, write_samples
from outsourced.tasks.base import Observation

CONFIGS = str(Path(__file__).resolve().parent / "configs")
# What priors choose for `train.py` beside themselves.
TRAINING = ("objective", "sampler", "trainer", "paths", "evaluate")


def observations(
    cfg: DictConfig, posterior: Posterior, images: torch.Tensor | None
) -> tuple[torch.Tensor | None, Observation]:
    """Truth, where there is one, and what is known of it."""
    generator = torch.Generator().manual_seed(cfg.seed)
    if cfg.image is not None:
        options = cfg.mask, cfg.observed, cfg.sigma
        return observe_picture(posterior, cfg.image, *options, generator, cfg.kernel)
    for name in ("mask", "kernel", "observed", "sigma"):
        if cfg[name]:
            raise ValueError(
                f"{name}=... goes with image=...; other images are measured by the task"
            )
    return observe(posterior, cfg.source, images, cfg.observations, generator)


def without_training(cfg: DictConfig, given: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration, without what a prior chooses for its training.

    Raises:
        ValueError: An argument of the command that would have no effect.
    """
    for text in given:
        if re.split("[.=/]", text.lstrip("+~"))[0] in TRAINING:
            raise ValueError(f"{text} is an argument of train.py; sample.py trains nothing")
    kept = [str(key) for key in cfg if key not in TRAINING]
    return OmegaConf.to_container(OmegaConf.masked_copy(cfg, kept), resolve=True)  # type: ignore[return-value]


def sample(cfg: DictConfig) -> None:
    """Observe, draw, measure, write, print."""
    config = without_training(cfg, HydraConfig.get().overrides.task)
    choices = HydraConfig.get().runtime.choices
    amortized = choices["solver"] == "amortized"
    posterior, sampler, images = problem_of(config, amortized)
    solver = build_solver(config["solver"], posterior, sampler)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    device = torch.device(name)
    posterior.to(device)  # before it simulates: f may be dear
    truth, obs = observations(cfg, posterior, images)
    if sampler is not None:
        sampler.to(device)
    obs, truth = obs.to(device), None if truth is None else truth.to(device)
    samples = solver(obs, cfg.n, torch.Generator(device).manual_seed(cfg.seed), progress=True)
    metrics = figures_of_merit(posterior, samples, obs, truth)
    own = "samples/{prior}-{task}-{solver}".format(**choices)
    beside = "samples" if amortized else "samples-{solver}".format(**choices)
    folder = Path(cfg.out or (own if cfg.run is None else Path(cfg.run) / beside))
    picture = Path(cfg.figure) if cfg.figure else None
    write_samples(folder, posterior, samples, obs, truth, metrics, picture)
    print(table(metrics))
    print(f"written to {folder}")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="sample")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """Entry point."""
    sample(cfg)


if __name__ == "__main__":
    keep_freed_memory()
    launch(main, CONFIGS)
