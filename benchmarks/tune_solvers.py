"""Step sizes of the per-instance diffusion samplers for a prior, by a search on validation images.

    python -m benchmarks.tune_solvers --prior fashion_sd --tasks inpaint superres gaussian_deblur \
        --solvers latent_dps gml_dps psld psld_paper --steps 100 1000 --set task.sigma=0.05
    python -m benchmarks.tune_solvers --install docs/tune_solvers.csv

For each task, solver and number of steps it runs a full grid of step sizes, half a decade apart and
two decades to each side of the start in `SEARCHES`, moves it while the best setting lies on its
border, and ends with grids of a quarter of a decade. All images and settings of a grid run at once.
Another number of steps starts at the best of the first, scaled as the solvers do, half a decade
to each side. Better is a higher PSNR of single samples against the truth by more
than `TOLERANCE`, or, with --metric residual, a residual nearer to sigma. Validation images are the
last of the held-out ones, which the tables, that use the first, never see. Every setting that was
tried is a row of the CSV file, where the same command goes on; the best of each are in the table
beside it.
With --near the first grids are small ones about the sizes that are installed for a task, at the
nearest number of steps; with --together one factor for all sizes of a solver is searched, for
numbers of steps at which a grid is dear. The second command writes the best rows of a file into the
package, where the solvers find them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.driver import add_device, call, parser, render, surroundings, told
from benchmarks.posteriors import configured, load
from benchmarks.search import COLUMNS, Sizes, Trials, score, search
from benchmarks.tables import Record, markdown, read_csv
from outsourced.metrics import psnr
from outsourced.posterior import Posterior
from outsourced.run import write_text
from outsourced.solvers.base import tile
from outsourced.solvers.diffusion_sampler import DiffusionSampler
from outsourced.solvers.step_sizes import TUNED, scale, scaled, task_name
from outsourced.tasks.base import Observation

SECTION = "tune_solvers"
RESERVED = 512  # held-out images that are left to the tables
WIDE, NARROW = 4, 1  # settings to each side of the centre of a first grid
TOLERANCE = {"psnr": 0.01, "residual": 0.003}  # dB; and nats of the ratio to sigma
# Where each search starts: a file of configs/solver, changed settings, step sizes at 100 steps.
SEARCHES: dict[str, tuple[str, dict[str, Any], Sizes]] = {
    "dps": ("dps", {}, {"omega": 1.0}),
    "latent_dps": ("latent_dps", {}, {"omega": 1.0}),
    "gml_dps": ("gml_dps", {}, {"omega": 1.0, "gamma": 0.1}),
    "psld": ("psld", {}, {"omega": 1.0, "gamma": 0.1}),
    "psld_paper": ("psld", {"variant": "paper"}, {"omega": 0.1, "gamma": 0.03}),
    "resample": ("resample", {}, {"omega": 0.5, "gamma": 40.0}),
    "daps": ("daps", {}, {"rate": 0.02}),
    "flow_dps": ("flow_dps", {}, {"omega": 1.0}),
    "flow_chef": ("flow_chef", {}, {"omega": 100.0}),
}
METRICS = ("psnr", "residual")


def validation(posterior: Posterior, images: Tensor, count: int, seed: int) -> Any:
    """The last images, and one observation of each, both on the posterior's device.

    Raises:
        ValueError: they would reach into those of the tables.
    """
    if not 1 <= count <= len(images) - RESERVED:
        raise ValueError(
            f"--images must be >= 1 and <= {len(images) - RESERVED}: the first {RESERVED} of the "
            f"{len(images)} held-out images are for the tables, got {count}"
        )
    x = images[-count:].to(posterior.device)  # where the operator is
    obs = posterior.task.sample(x, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator]
    return x, obs


def build(name: str, steps: int, sizes: Sizes, posterior: Posterior) -> Any:
    """A solver as configured, with the given steps and step sizes; it carries diverged rows on."""
    file, changes, _ = SEARCHES[name]
    return configured(file, {**changes, "steps": steps, **sizes, "strict": False}, posterior)


@torch.no_grad()
def measure(
    solver: DiffusionSampler, settings: Sequence[Sizes], x: Tensor, obs: Observation, seed: int
) -> list[Record]:
    """Averages of each setting over single samples of each observation, all of them in one run.

    Every setting starts from the same noise. One that loses a sample has no figures.

    Args:
        solver: of any step sizes, not strict.
        settings: step sizes, S of them.
        x: truth, (B, C, H, W).
        obs: B observations.
        seed: of the samples.
    """
    count, each = len(settings), len(obs)
    for name in settings[0]:
        sizes = torch.tensor([s[name] for s in settings], device=x.device, dtype=x.dtype)
        setattr(solver, name, sizes.repeat_interleave(each))
    solver.posterior.chunk = count * each
    generator = torch.Generator(x.device).manual_seed(seed)
    z = solver.posterior.draw_noise(each, generator)
    rows = tile(obs, count)
    samples = solver.solve(z.repeat(count, *[1] * (z.ndim - 1)), rows, generator)
    lost = ~samples.isfinite().flatten(1).all(1).unflatten(0, (count, each)).all(1)
    figures = {
        "psnr": psnr(samples, x.repeat(count, 1, 1, 1)),
        "residual": solver.residual(samples, rows),
    }
    means = {k: v.unflatten(0, (count, each)).mean(1).tolist() for k, v in figures.items()}
    return [
        {"diverged": 1} if gone else {name: values[i] for name, values in means.items()}
        for i, gone in enumerate(lost.tolist())
    ]


def tune(
    name: str, task: str, steps: int, start: tuple[Sizes, int], data: Any, trials: Trials, args: Any
) -> Record:
    """The row of the best step sizes of a solver for a task, at a number of steps."""
    posterior, x, obs = data
    about = {"task": task, "known_as": task_name(posterior.task), "solver": name, "steps": steps}
    names, most = list(start[0]), max(1, args.rows // len(obs))

    def run(missing: Sequence[Record]) -> list[Record]:
        settings = [{k: float(str(one[k])) for k in names} for one in missing]
        solver = build(name, steps, settings[0], posterior)
        pieces = (settings[i : i + most] for i in range(0, len(settings), most))
        return [row for piece in pieces for row in measure(solver, piece, x, obs, args.seed)]

    def rows(settings: list[Sizes]) -> list[Record]:
        return trials.get([{**about, **sizes} for sizes in settings], run)

    def values(settings: list[Sizes]) -> list[float]:
        return [score(row, args.metric) for row in rows(settings)]

    return rows([search(values, *start, TOLERANCE[args.metric], args.together)])[0]


def installed(prior: str, name: str, task: str, steps: int) -> Sizes:
    """What an earlier search found for a task, at the nearest number of steps.

    Raises:
        ValueError: nothing is installed for it.
    """
    found = dict(
        scaled(json.loads(TUNED.read_text()).get(prior, {}).get(name, {}), name, task, steps)
    )
    if not found:
        raise ValueError(
            f"--near {task}: {TUNED.name} holds nothing for {name} on {prior}; search for it and "
            "--install it first"
        )
    return found


def tune_all(name: str, task: str, data: Any, trials: Trials, args: argparse.Namespace) -> Any:
    """The rows of the best step sizes of a solver for a task, at each number of steps."""
    start, best = (SEARCHES[name][2], WIDE), []
    if args.near is not None:
        start = installed(args.prior, name, args.near, args.steps[0]), NARROW
    for steps in args.steps:
        best.append(tune(name, task, steps, start, data, trials, args))
        following = args.steps[min(len(best), len(args.steps) - 1)]
        sizes = {k: float(str(best[-1][k])) for k in start[0]}
        factor = scale(name, steps, following)
        start = {k: v * factor for k, v in sizes.items()}, NARROW
    return best


def install(path: Path, metric: str) -> None:
    """Write the best rows of a CSV file into the package's table, in place of those it had."""
    table = json.loads(TUNED.read_text())
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read_csv(path):
        key = row["prior"], row["solver"], row["known_as"], row["steps"]
        if key not in best or score(row, metric) > score(best[key], metric):
            best[key] = row
    if not best:
        raise ValueError(f"--install {path} holds no rows; search first")
    for (prior, solver, task, steps), row in best.items():
        sizes = {k: float(str(row[k])) for k in SEARCHES[solver][2]}
        table.setdefault(prior, {}).setdefault(solver, {}).setdefault(task, {})[steps] = sizes
    write_text(TUNED, json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(f"{len(best)} settings written to {TUNED}")


def run(args: argparse.Namespace) -> None:
    """Search and write the table, or install one."""
    if args.install is not None:
        install(args.install, args.metric)
        return
    if not (args.prior and args.solvers):
        raise ValueError("--prior and --solvers are required, unless --install is given")
    for name in args.solvers:
        if name not in SEARCHES:
            raise ValueError(f"--solvers knows {', '.join(SEARCHES)}, got {name!r}")
    if args.quick:
        args.images, args.steps = 2, [3]
    asked = {
        "prior": args.prior,
        "set": " ".join(args.set),
        "images": args.images,
        "seed": args.seed,
        **surroundings(args.device),
    }
    trials, best = Trials(args.out, asked), []
    for task in args.tasks:
        posterior, images = load(args.prior, task, args.set)
        data = posterior, *validation(posterior.to(args.device), images, args.images, args.seed)
        for name in args.solvers:
            best += tune_all(name, task, data, trials, args)
    notes = (
        f"Best step sizes by {args.metric} for {args.prior} {asked['set']}: single samples of "
        f"{args.images} validation images, seed {args.seed}, {told(asked)}."
    )
    render(args, SECTION, f"{markdown(best, COLUMNS)}\n\n{notes}")
    print(markdown(best, COLUMNS))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "two images and three steps, for tests")
    arguments.add_argument("--prior", help="name in configs/prior")
    arguments.add_argument("--tasks", nargs="+", default=["inpaint"], help="in configs/task")
    arguments.add_argument("--solvers", nargs="+", help=", ".join(SEARCHES))
    arguments.add_argument("--steps", type=int, nargs="+", default=[100], help="of every solver")
    arguments.add_argument("--images", type=int, default=16, help="validation images")
    arguments.add_argument("--rows", type=int, default=2048, help="most samples at once")
    arguments.add_argument("--metric", choices=METRICS, default="psnr", help="what to raise")
    arguments.add_argument("--seed", type=int, default=0, help="of observations and samples")
    arguments.add_argument("--set", nargs="*", default=[], help="overrides, e.g. task.sigma=0.05")
    arguments.add_argument(
        "--near", help="begin with small grids about what is installed for this task (known_as)"
    )
    arguments.add_argument("--together", action="store_true", help="one factor for all sizes")
    arguments.add_argument("--install", type=Path, help="a CSV file of a search")
    add_device(arguments)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
