"""Step sizes of the per-instance diffusion samplers for a prior, by a search on validation images.

    python -m benchmarks.tune_solvers --prior fashion_sd --tasks inpaint superres \
        --solvers latent_dps gml_dps psld --steps 100 --set task.sigma=0.05

For each task and solver it climbs from the start in `SEARCHES` on a logarithmic grid: every size
times and divided by 10, the best is the new centre, and where none is better the factor shrinks to
its square root, until below 1.5. Better is a higher PSNR of single samples against the truth, or,
with --metric residual, a residual nearer to sigma. Validation images are the last of the held-out
ones, which the tables, that use the first, never see. Every setting that was tried is a row of the
CSV file, where the same command goes on; the best of each are in the table beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.driver import call, check_conditions, parser, render, surroundings, told
from benchmarks.tables import Column, Record, markdown, read_csv, write_csv
from outsourced.build import build_posterior, code_version
from outsourced.metrics import psnr
from outsourced.posterior import Posterior
from outsourced.solvers.diffusion_sampler import Diverged
from outsourced.tasks.base import Observation

SECTION = "tune_solvers"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RESERVED = 512  # held-out images that are left to the tables
FACTOR, FINEST = 10.0, 1.5
Sizes = dict[str, float]
# Where each search starts: a file of configs/solver, changed settings, step sizes.
SEARCHES: dict[str, tuple[str, dict[str, Any], Sizes]] = {
    "dps": ("dps", {}, {"omega": 0.5}),
    "latent_dps": ("latent_dps", {}, {"omega": 0.3}),
    "gml_dps": ("gml_dps", {}, {"omega": 0.3, "gamma": 0.03}),
    "psld": ("psld", {}, {"omega": 0.3, "gamma": 0.03}),
    "psld_paper": ("psld", {"variant": "paper"}, {"omega": 0.03, "gamma": 0.01}),
    "resample": ("resample", {}, {"omega": 0.3, "gamma": 40.0}),
    "daps": ("daps", {}, {"rate": 0.02}),
    "flow_dps": ("flow_dps", {}, {"omega": 1.0}),
}
METRICS = ("psnr", "residual")
COLUMNS = (
    Column("task", "task"),
    Column("solver", "solver"),
    Column("steps", "steps"),
    Column("omega", "omega", ".3g"),
    Column("gamma", "gamma", ".3g"),
    Column("rate", "rate", ".3g"),
    Column("psnr", "PSNR", ".2f"),
    Column("residual", "residual / sigma", ".3f"),
    Column("seconds", "s / image", ".2f"),
)


def load(prior: str, task: str, changes: list[str]) -> tuple[Posterior, Tensor]:
    """The posterior that `train.py prior=PRIOR task=TASK` gets, and its held-out images.

    Raises:
        ValueError: the prior's configuration has no held-out images.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", overrides=[f"prior={prior}", f"task={task}", *changes])
    if config.data.test is None:
        raise ValueError(f"--prior {prior} has no held-out images (data.test); use a fashion prior")
    parts = OmegaConf.to_container(config, resolve=False)
    assert isinstance(parts, dict)
    chosen: dict[str, Any] = {str(name): parts[name] for name in ("prior", "task", "posterior")}
    return build_posterior(chosen), instantiate(config.data.test)


def validation(posterior: Posterior, images: Tensor, count: int, seed: int) -> Any:
    """The last images, and one observation of each.

    Raises:
        ValueError: they would reach into those of the tables.
    """
    if not 1 <= count <= len(images) - RESERVED:
        raise ValueError(
            f"--images must be >= 1 and <= {len(images) - RESERVED}: the first {RESERVED} of the "
            f"{len(images)} held-out images are for the tables, got {count}"
        )
    x = images[-count:]
    return x, posterior.task.sample(x, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator]


def build(name: str, steps: int, sizes: Sizes, posterior: Posterior) -> Any:
    """A solver as configured, with the given steps and step sizes."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    file, changes, _ = SEARCHES[name]
    config = OmegaConf.load(CONFIGS / "solver" / f"{file}.yaml")
    return instantiate({**config, **changes, "steps": steps, **sizes}, posterior=posterior)


def measure(solver: Any, x: Tensor, obs: Observation, seed: int) -> dict[str, float]:
    """Averages over single samples of each observation; nothing but `diverged` where it did."""
    try:
        samples = solver(obs, 1, torch.Generator().manual_seed(seed))
    except Diverged:
        return {"diverged": 1.0}
    return {
        "psnr": psnr(samples.x[0], x).mean().item(),
        "residual": solver.residual(samples.x[0], obs).mean().item(),
        "seconds": samples.seconds / len(obs),
        "prior_calls": samples.prior_calls / len(obs),
    }


def score(record: Record, metric: str) -> float:
    """How good a setting is; diverged ones are worst."""
    if record.get("psnr") in (None, ""):
        return -math.inf
    if metric == "psnr":
        return float(str(record["psnr"]))
    return -abs(math.log(float(str(record["residual"]))))


def climb(value: Callable[[Sizes], float], start: Sizes) -> Sizes:
    """The best settings that a coordinate search on a shrinking logarithmic grid finds.

    Args:
        value: what to raise; called again with settings it has seen.
        start: positive step sizes, the first centre.
    """
    best, factor = dict(start), FACTOR
    while factor > FINEST:
        around = [{**best, k: v * f} for k, v in best.items() for f in (factor, 1 / factor)]
        candidate = max(around, key=value)
        if value(candidate) > value(best):
            best = candidate
        else:
            factor = math.sqrt(factor)
    return best


def rounded(sizes: Sizes) -> Sizes:
    """To four digits, so that the grid meets its points again and the file tells what was run."""
    return {name: float(f"{value:.4g}") for name, value in sizes.items()}


class Trials:
    """Settings that were tried, in a CSV file; a known one is not run again.

    Args:
        path: of the file.
        asked: the conditions that its rows share.

    Raises:
        ValueError: the file holds rows of other conditions.
    """

    def __init__(self, path: Path, asked: dict[str, object]) -> None:
        self.path, self.asked = path, asked
        self.records: list[Record] = [*read_csv(path)]
        check_conditions(path, read_csv(path), asked)

    def get(self, about: Record, run: Callable[[], Record]) -> Record:
        """The row of a setting, from the file or from a run."""
        for record in self.records:
            if all(str(record.get(name, "")) == str(value) for name, value in about.items()):
                return record
        record = {**about, **run(), **self.asked, "code": code_version()}
        self.records.append(record)
        write_csv(self.path, self.records)
        print(markdown([record], COLUMNS).splitlines()[-1], flush=True)
        return record


def search(name: str, task: str, data: Any, trials: Trials, args: argparse.Namespace) -> Record:
    """The row of the best step sizes of a solver for a task."""
    posterior, x, obs = data

    def record(sizes: Sizes) -> Record:
        sizes = rounded(sizes)
        about = {"task": task, "solver": name, "steps": args.steps, **sizes}
        solver = build(name, args.steps, sizes, posterior)
        return trials.get(about, lambda: measure(solver, x, obs, args.seed))

    start = SEARCHES[name][2]
    return record(climb(lambda sizes: score(record(sizes), args.metric), start))


def run(args: argparse.Namespace) -> None:
    """Search and write the table."""
    for name in args.solvers:
        if name not in SEARCHES:
            raise ValueError(f"--solvers knows {', '.join(SEARCHES)}, got {name!r}")
    if args.quick:
        args.images, args.steps = 2, 3
    asked = {
        "prior": args.prior,
        "set": " ".join(args.set),
        "images": args.images,
        "seed": args.seed,
        **surroundings(),
    }
    trials, best = Trials(args.out, asked), []
    for task in args.tasks:
        posterior, images = load(args.prior, task, args.set)
        data = (posterior, *validation(posterior, images, args.images, args.seed))
        best += [search(name, task, data, trials, args) for name in args.solvers]
    notes = (
        f"Best step sizes by {args.metric} for {args.prior} {asked['set']}: single samples of "
        f"{args.images} validation images, seed {args.seed}, {told(asked)}."
    )
    render(args, SECTION, f"{markdown(best, COLUMNS)}\n\n{notes}")
    print(markdown(best, COLUMNS))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "two images and three steps, for tests")
    arguments.add_argument("--prior", required=True, help="name in configs/prior")
    arguments.add_argument("--tasks", nargs="+", default=["inpaint"], help="in configs/task")
    arguments.add_argument("--solvers", nargs="+", required=True, help=", ".join(SEARCHES))
    arguments.add_argument("--steps", type=int, default=100, help="of every solver")
    arguments.add_argument("--images", type=int, default=16, help="validation images")
    arguments.add_argument("--metric", choices=METRICS, default="psnr", help="what to raise")
    arguments.add_argument("--seed", type=int, default=0, help="of observations and samples")
    arguments.add_argument("--set", nargs="*", default=[], help="overrides, e.g. task.sigma=0.05")
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
