"""The same command on every prior: what a few minutes of training make of each.

    python -m benchmarks.priors --priors fashion_vae fashion_gan --minutes 10 --out docs/priors.csv

Trains `train.py prior=P task=inpaint` on each for the same time, measures it on observations of
the prior's own images and of held-out ones, and draws one figure with a row per prior. The columns
are about log-weights, so `fashion_sd` has sampler=fashion_sd objective=reverse_kl
trainer=fashion_sd. Runs lie in --runs and are used again; finished rows are in the CSV file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.budget import trained
from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.merit import Cases, Effort, assess, averages, real, simulated
from benchmarks.tables import Column, Record, markdown, read_csv, write_csv
from outsourced.build import Problem, code_version, held_out, load_run
from outsourced.figures import posterior_figure
from outsourced.run import METRICS, Run
from outsourced.solvers.amortized import Amortized

SECTION = "priors"
# The figures of a run's own end are not read: `measure` takes its own.
TASK = (
    *("task=inpaint", "logger=csv", "trainer.evaluate_every=0"),
    *("evaluate.observations=4", "evaluate.n=8"),
)
# Where the default has no log-weights, what has.
WEIGHTED = {"fashion_sd": ("sampler=fashion_sd", "objective=reverse_kl", "trainer=fashion_sd")}
QUICK, QUICK_MINUTES = {"observations": 4, "n": 8}, 0.05
SHOWN = 64  # samples behind a row of the figure
COLUMNS = (
    Column("prior", "prior"),
    Column("noise", "noise"),
    Column("informed", "informed"),
    Column("kind", "y"),
    Column("minutes", "training min", ".1f"),
    Column("steps", "steps", ".0f"),
    Column("elbo", "ELBO", ".1f"),
    Column("gap", "gap", ".1f"),
    Column("ess", "ESS", ".3f"),
    Column("residual", "residual", ".3f"),
    Column("excess_truth", "over truth", "+.1%"),
    Column("psnr", "PSNR", ".2f"),
    Column("psnr_of_mean", "of mean", ".2f"),
    Column("std_hidden", "std hidden", ".3f"),
    Column("std_observed", "seen", ".3f"),
    Column("ms", "ms / sample", ".2f"),
)


def conditions(effort: Effort, minutes: float) -> dict[str, object]:
    """What a figure depends on besides its row; all rows of one file must share it."""
    return {
        "budget_minutes": minutes,
        "observations": effort.observations,
        "n": effort.n,
        "seed": effort.seed,
        **surroundings(),
    }


def run_of(prior: str, folder: Path, minutes: float) -> Path:
    """The run folder of a prior, trained for the given time unless it is finished already."""
    run = folder / prior
    trained(run, [f"prior={prior}", *WEIGHTED.get(prior, ()), *TASK], minutes)
    return run


def train_seconds(folder: Path) -> float:
    """What the training of a finished run took."""
    return float(json.loads((folder / METRICS).read_text())["train_seconds"])


def cases(problem: Problem, folder: Path, effort: Effort) -> list[Cases]:
    """Observations of the prior's own images, and of held-out ones where there are some."""
    images = held_out(str(folder))
    found = [simulated(problem.posterior, effort)]
    return found if images is None else [*found, real(problem.posterior, images, effort)]


def measure(prior: str, folder: Path, effort: Effort) -> list[Record]:
    """The rows of a prior."""
    problem, run = load_run(str(folder)), Run(folder)
    sampler = run.config["sampler"]
    about = {
        "prior": prior,
        "noise": " x ".join(map(str, problem.posterior.prior.noise_shape)),
        "informed": sampler["informed"],
        "steps": run.config["trainer"]["max_steps"],
        "minutes": train_seconds(folder) / 60,
        "code": code_version(),
    }
    rows: list[Record] = []
    for each in cases(problem, folder, effort):
        values = averages(assess(problem.sampler, problem.posterior, each, effort), effort)
        values["ms"] = 1000 * values["seconds_per_sample"]
        rows.append({**about, "kind": each.kind, **values})
    return rows


@torch.no_grad()
def picture_row(folder: Path, effort: Effort) -> dict[str, Tensor]:
    """Truth, observation, mask and samples of one observation, a held-out one if there is any."""
    problem = load_run(str(folder))
    case = cases(problem, folder, effort)[-1][3:4]
    generator = torch.Generator().manual_seed(effort.seed)
    samples = Amortized(problem.sampler, problem.posterior)(case.obs, SHOWN, generator)
    return {"x": case.x, "y": case.obs.y, "mask": case.obs.params["mask"], "samples": samples.x}


def draw_figure(folders: list[Path], effort: Effort, path: Path) -> None:
    """One row per prior; priors of other image shapes than the first get figures of their own."""
    rows = {folder.name: picture_row(folder, effort) for folder in folders}
    shape = next(iter(rows.values()))["x"].shape
    alike = [row for row in rows.values() if row["x"].shape == shape]
    _draw(alike, path)
    for name, row in rows.items():
        if row["x"].shape != shape:
            _draw([row], path.with_stem(f"{path.stem}-{name}"))


def _draw(rows: list[dict[str, Tensor]], path: Path) -> None:
    x, y, mask = (torch.cat([row[name] for row in rows]) for name in ("x", "y", "mask"))
    posterior_figure(x, y, torch.cat([row["samples"] for row in rows], 1), mask, path)


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it what its columns mean and how it was made."""
    first = records[0]
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        "Random boxes of 8 to 20 pixels a side, sigma = 0.2. Gap: EUBO - ELBO in nats; ESS: as a "
        "fraction, mean; residual in units of sigma, over truth: relative to that of the truth "
        "behind simulated y; std: pixelwise standard deviation of the samples inside and outside "
        f"the hidden box. {first['observations']} observations of each kind, {first['n']} samples "
        f"each, seed {first['seed']}, {first['budget_minutes']} minutes of training asked for, "
        f"{told(first)}."
    )


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    effort = Effort(args.observations, args.n, chain=0, seed=args.seed)
    if args.quick:
        effort, args.minutes = replace(effort, **QUICK), QUICK_MINUTES
    asked = conditions(effort, args.minutes)
    known = kept(args.out, asked)
    records = list(known)
    for prior in args.priors:
        if any(record["prior"] == prior for record in known):
            continue
        folder = run_of(prior, args.runs, args.minutes)
        records += [{**row, **asked} for row in measure(prior, folder, effort)]
        write_csv(args.out, records)
    render(args, SECTION, table(read_csv(args.out)))
    folders = [args.runs / prior for prior in args.priors]
    draw_figure(folders, effort, args.out.parent / "figures" / f"{SECTION}.png")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "seconds of training, for tests")
    arguments.add_argument("--priors", nargs="+", required=True, help="names in configs/prior")
    arguments.add_argument("--runs", type=Path, default=Path("runs/priors"), help="run folders")
    arguments.add_argument("--minutes", type=float, default=10.0, help="of training each")
    arguments.add_argument("--observations", type=int, default=128, help="of each kind")
    arguments.add_argument("--n", type=int, default=64, help="samples for each observation")
    arguments.add_argument("--seed", type=int, default=0)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
