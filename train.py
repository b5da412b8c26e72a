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
from outsourced.build import build, code_version, resolve, with_teacher
from outsourced.collapse import COLLAPSED
from outsourced.commands import launch, one_line_errors, overridden
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
    given: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config, teacher = with_teacher(given, overridden())
    if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
        config["run"] = f"{config['run']}/{HydraConfig.get().job.num}"
    settings, run = instantiate(config["trainer"]), Run(config["run"])
    overwrite, options = config.pop("overwrite"), config["lightning"]
    lightning.seed_everything(settings.seed, verbose=False)
    problem = build(config, teacher)
    problem.posterior.to(training_device(options))  # it makes the bank, too
    config["sampler"] = resolve(config, problem.posterior)
    images, test = (instantiate(config["data"][name]) for name in ("images", "test"))
    paths = {name: value for name, value in config["paths"].items() if name != "buffer"}
    buffer = ReplayBuffer(**config["paths"]["buffer"])
    mixture = PathMixture(problem.sampler, problem.posterior, buffer, **paths)
    evaluator = Evaluator(problem.sampler, problem.posterior, test, **config["evaluate"])
    loggers: list[Any] = []

    def evaluate(step: int) -> dict[str, float]:
        if evaluator.picture(run.figure(step)):
            log_image(loggers, "samples", run.figure(step), step)
        return evaluator()

    parts = problem.sampler, problem.posterior, instantiate(config["objective"]), mixture, settings
    module = SamplerTraining(*parts, evaluate, teacher.sampler if teacher else None)
    resumed = run.create(config, overwrite)
    where, size, chunk = (config["data"][f"bank_{name}"] for name in ("folder", "size", "chunk"))
    bank = PairBank.build(problem.posterior, where, size, settings.seed, chunk)
    data = PairData(bank, images, settings, module.store(bank))
    problem.posterior.prior_calls = 0  # a bank that was there costs no less: told apart
    metadata = {"prior": problem.posterior.prior.fingerprint(), "code": code_version()}
    loggers += filter(None, [instantiate(config["logger"])])
    begin(loggers, {**config, **metadata})
    if fit(run, module, data, metadata, resumed, loggers, **options) and module.global_rank == 0:
        problem.sampler.load_state_dict(module.average)
        figures = module.guard.evaluate(evaluate, settings.max_steps)
        if module.judge(figures) == COLLAPSED:
            module.go_back()
            problem.sampler.load_state_dict(module.average)
            figures = evaluate(settings.max_steps)
        figures |= module.costs() | {"bank_pairs": float(bank.size)}
        if teacher is not None:
            figures |= {f"teacher/{k}": v for k, v in evaluator.of(teacher.sampler)().items()}
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
