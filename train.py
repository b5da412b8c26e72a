"""Train a noise-space sampler: `python train.py prior=fashion_vae task=inpaint`."""

from pathlib import Path
from typing import Any

import hydra
import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from outsourced.allocator import keep_freed_memory
from outsourced.bank import PairBank
from outsourced.build import build, code_version, resolve
from outsourced.commands import launch, one_line_errors
from outsourced.evaluation import Evaluator
from outsourced.fit import fit, training_device
from outsourced.loggers import begin, close, log_image
from outsourced.paths import PathMixture
from outsourced.replay import ReplayBuffer
from outsourced.run import Run
from outsourced.stepdata import PairData
from outsourced.training import SamplerTraining

CONFIGS = str(Path(__file__).resolve().parent / "configs")


def train(cfg: DictConfig) -> None:
    """Train the sampler of one resolved configuration; resume it where it was interrupted."""
    if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
        cfg.run = f"{cfg.run}/{HydraConfig.get().job.num}"
    settings, run = instantiate(cfg.trainer), Run(cfg.run)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    overwrite = config.pop("overwrite")
    lightning.seed_everything(settings.seed, verbose=False)
    problem = build(config)
    config["sampler"] = resolve(config, problem.posterior)
    images, test = instantiate(cfg.data.images), instantiate(cfg.data.test)
    paths = {name: value for name, value in config["paths"].items() if name != "buffer"}
    buffer = ReplayBuffer(**config["paths"]["buffer"])
    mixture = PathMixture(problem.sampler, problem.posterior, buffer, **paths)
    evaluator = Evaluator(problem.sampler, problem.posterior, test, **cfg.evaluate)
    loggers: list[Any] = []

    def evaluate(step: int) -> dict[str, float]:
        if evaluator.picture(run.figure(step)):
            log_image(loggers, "samples", run.figure(step), step)
        return evaluator()

    parts = problem.sampler, problem.posterior, instantiate(cfg.objective), mixture, settings
    module = SamplerTraining(*parts, evaluate)
    resumed = run.create(config, overwrite)
    problem.posterior.to(training_device(config["lightning"]))  # the bank is made there, too
    bank = PairBank.build(
        problem.posterior, cfg.data.bank_folder, cfg.data.bank_size, settings.seed
    )
    data = PairData(bank, images, settings, module.store(bank))
    metadata = {"prior": problem.posterior.prior.fingerprint(), "code": code_version()}
    if logger := instantiate(cfg.get("logger")):
        loggers.append(logger)
    begin(loggers, {**config, **metadata})
    done = fit(run, module, data, metadata, resumed, loggers, **cfg.lightning)
    if done and module.global_rank == 0:
        problem.sampler.to(problem.posterior.device)  # Lightning leaves it on the CPU
        problem.sampler.load_state_dict(module.average)
        figures = evaluate(settings.max_steps) | module.costs()
        run.finish(module.average, metadata, figures)
        print("\n".join(f"{name:28s} {value:.4g}" for name, value in figures.items()))
    close(loggers)


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    """Entry point."""
    train(cfg)


if __name__ == "__main__":
    keep_freed_memory()
    launch(main, CONFIGS)
