"""Draw posterior samples with a trained sampler: `python sample.py run=RUN n=16`."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from outsourced.allocator import keep_freed_memory
from outsourced.build import Problem, held_out, load_run
from outsourced.commands import launch, one_line_errors
from outsourced.observing import observe, observe_picture
from outsourced.report import figures_of_merit, table, write_samples
from outsourced.solvers.amortized import Amortized
from outsourced.tasks.base import Observation

CONFIGS = str(Path(__file__).resolve().parent / "configs")


def observations(cfg: DictConfig, problem: Problem) -> tuple[torch.Tensor | None, Observation]:
    """Truth, where there is one, and what is known of it."""
    generator = torch.Generator().manual_seed(cfg.seed)
    if cfg.image is not None:
        options = cfg.mask, cfg.observed, cfg.sigma
        return observe_picture(problem.posterior, cfg.image, *options, generator)
    for name in ("mask", "observed", "sigma"):
        if cfg[name]:
            raise ValueError(
                f"{name}=... goes with image=...; other images are measured by the task"
            )
    images = held_out(cfg.run)
    return observe(problem.posterior, cfg.source, images, cfg.observations, generator)


def sample(cfg: DictConfig) -> None:
    """Observe, draw, measure, write, print."""
    problem = load_run(cfg.run)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    device = torch.device(name)
    solver = Amortized(problem.sampler, problem.posterior, cfg.correct, cfg.candidates)
    truth, obs = observations(cfg, problem)
    problem.posterior.to(device)
    problem.sampler.to(device)
    obs, truth = obs.to(device), None if truth is None else truth.to(device)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    samples = solver(obs, cfg.n, generator, progress=True)
    metrics = figures_of_merit(problem.posterior, samples, obs, truth)
    folder = Path(cfg.out or Path(cfg.run) / "samples")
    picture = Path(cfg.figure) if cfg.figure else None
    write_samples(folder, problem.posterior, samples, obs, truth, metrics, picture)
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
