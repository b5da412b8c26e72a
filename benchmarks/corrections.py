"""Corrections of an amortised sampler against long chains: C2ST of each observation, and costs.

    python -m benchmarks.corrections --run runs/inpaint --device cuda

For each kind of observation, chains run from draws of the sampler and from the prior; R-hat is that
of all of them. Then each correction draws --n samples of every observation, after 50 moves where it
makes moves, and a classifier tries to tell them from as many states of the chains. The floor is the
same for chains of the two kinds of starts. Chains lie in the run's folder, finished rows in the CSV
file, and the same command goes on.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.driver import (
    add_device,
    call,
    kept,
    parser,
    render,
    surroundings,
    told,
)
from benchmarks.gold import Gold, spaced, stored_gold
from benchmarks.merit import Cases, Effort, real, simulated
from benchmarks.tables import Column, markdown, read_csv, write_csv
from outsourced.build import Problem, code_version, held_out, load_run
from outsourced.metrics import c2st
from outsourced.solvers.amortized import Amortized

SECTION, KINDS = "corrections", ("simulated", "real")
QUICK = {"observations": 2, "n": 40, "moves": 100, "burn_in": 40}
WANTED = 0.6  # largest median C2ST of the best correction
CONVERGED = 1.05  # largest R-hat of a coordinate
MOVES = 50
FLOOR = "chains of the other start"
# Arguments of `Amortized`; candidates in multiples of the samples that are wanted.
CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "importance": {"correct": "importance", "candidates": 4},
    "smc": {"correct": "smc", "candidates": 4},
    "imh": {"correct": "imh", "moves": MOVES},
    "pcn": {"correct": "pcn", "moves": MOVES},
    "mala": {"correct": "mala", "moves": MOVES},
    "hmc": {"correct": "hmc", "moves": MOVES},
    "importance, mala": {"correct": "mala", "moves": MOVES, "candidates": 4},
    "importance, hmc": {"correct": "hmc", "moves": MOVES, "candidates": 4},
}
COLUMNS = (
    Column("kind", "y"),
    Column("correction", "correction"),
    Column("c2st", "C2ST, median", ".3f"),
    Column("c2st_converged", "of converged", ".3f"),
    Column("c2st_high", "90 %", ".3f"),
    Column("within", f"y <= {WANTED}", ".0%"),
    Column("calls", "prior calls / sample", ".0f"),
    Column("seconds", "s / sample", ".2g"),
    Column("gold_calls", "chains: calls / effective state", ".0f"),
    Column("rhat", "R-hat, median", ".3f"),
    Column("rhat_worst", "worst", ".3f"),
    Column("converged", f"<= {CONVERGED}", ".0%"),
)


def solver_of(name: str, problem: Problem, n: int) -> Amortized:
    """The amortised sampler with a correction."""
    settings = dict(CORRECTIONS[name])
    if "candidates" in settings:
        settings["candidates"] *= n
    return Amortized(problem.sampler, problem.posterior, **settings)


def scores(samples: Tensor, gold: Tensor, seed: int, jobs: int = 1) -> Tensor:
    """C2ST of each observation, of samples and chain states (n, B, d): (B,)."""
    from joblib import Parallel, delayed

    sides = (side.flatten(2).cpu().unbind(1) for side in (samples, gold))
    tests = (delayed(c2st)(a, b, seed, folds=2) for a, b in zip(*sides, strict=True))
    return torch.tensor(Parallel(n_jobs=jobs)(tests))


def summary(score: Tensor, gold: Gold) -> dict[str, float]:
    """Figures of a row: C2ST over observations, beside what the chains say about themselves."""
    settled = (gold.rhat <= CONVERGED).cpu()
    calls = float(gold.costs[0]) / len(gold.rhat)
    figures = {
        "c2st": float(score.quantile(0.5)),
        "c2st_high": float(score.quantile(0.9)),
        "within": float((score <= WANTED).double().mean()),
        "gold_calls": calls / float(gold.ess.median()),
        "rhat": float(gold.rhat.median()),
        "rhat_worst": float(gold.rhat.max()),
        "converged": float(settled.double().mean()),
    }
    if settled.any():
        figures["c2st_converged"] = float(score[settled].quantile(0.5))
    return figures


def measure(
    name: str, problem: Problem, cases: Cases, gold: Gold, args: argparse.Namespace
) -> dict[str, float]:
    """The figures of a correction, or of the floor."""
    test = partial(scores, seed=args.seed, jobs=args.jobs)
    if name == FLOOR:
        return summary(test(spaced(gold.own, args.n), spaced(gold.other, args.n)), gold)
    generator = torch.Generator(args.device).manual_seed(args.seed + 2)
    samples = solver_of(name, problem, args.n)(cases.obs, args.n, generator, progress=True)
    assert samples.z is not None
    count = args.n * len(cases.obs)
    return {
        **summary(test(samples.z, gold.draws(args.n)), gold),
        "calls": samples.prior_calls / count,
        "seconds": samples.seconds / count,
    }


def observed(kind: str, problem: Problem, args: argparse.Namespace) -> Cases:
    """Observations of a kind, on the device.

    Raises:
        ValueError: the run has no held-out images.
    """
    effort = Effort(args.observations, chain=0, seed=args.seed)
    if kind == "simulated":
        found = simulated(problem.posterior, effort)
    else:
        images = held_out(str(args.run))
        if images is None:
            raise ValueError(f"--kinds real needs held-out images, which {args.run} has none of")
        found = real(problem.posterior, images, effort)
    return Cases(kind, found.obs.to(args.device), found.x)


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it what its columns mean and how it was made."""
    first = records[0]
    best = {
        kind: min(
            (r for r in records if r["kind"] == kind and r["correction"] not in ("none", FLOOR)),
            key=lambda r: float(r["c2st"]),
            default=None,
        )
        for kind in dict.fromkeys(r["kind"] for r in records)
    }
    told_best = "; ".join(
        f"{kind}: {r['correction']}, {float(r['c2st']):.3f} with {float(r['calls']):.0f} calls a "
        f"sample, where chains take {float(r['gold_calls']):.0f} for an effective state"
        for kind, r in best.items()
        if r is not None
    )
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        f"Best (wanted: <= {WANTED}): {told_best}. C2ST: accuracy of a classifier in noise space, "
        f"two folds, {first['n']} samples against as many states of chains, each observation on "
        "its own; 0.5 is chance. Corrections that make moves make "
        f"{MOVES} of each sample; importance and smc take 4 proposals a sample. Chains: 4 from "
        "weighted draws of the sampler and 4 from the Laplace approximations at modes that prior "
        f"draws climb to, preconditioned MALA, {first['moves']} moves after {first['burn_in']}. "
        f"{first['observations']} observations of each kind, run {first['run']}, seed "
        f"{first['seed']}, {told(first)}."
    )


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    if args.quick:
        vars(args).update(QUICK)
    names = ("observations", "n", "moves", "burn_in", "seed")
    asked = {"run": args.run.resolve().name, **{name: getattr(args, name) for name in names}}
    asked |= surroundings(args.device)
    problem, records = load_run(str(args.run)), kept(args.out, asked)
    done = {(record["kind"], record["correction"]) for record in records}
    for kind in args.kinds:
        problem.posterior.to("cpu")  # where observations are drawn: the same on every device
        cases = observed(kind, problem, args)
        problem.posterior.to(args.device)
        problem.sampler.to(args.device)
        generator = torch.Generator(args.device).manual_seed(args.seed + 1)
        where, pair = args.run / f"gold-{kind}.safetensors", (problem.sampler, problem.posterior)
        gold = stored_gold(where, *pair, cases.obs, args.moves, args.burn_in, generator)
        for name in (FLOOR, *args.corrections):
            if (kind, name) in done:
                continue
            row = {"kind": kind, "correction": name, **measure(name, problem, cases, gold, args)}
            records.append({**row, **asked, "code": code_version()})
            write_csv(args.out, records)
            print(markdown(records[-1:], COLUMNS).splitlines()[-1], flush=True)
    render(args, SECTION, table(read_csv(args.out)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, 1, "two observations, short chains, for tests")
    add = arguments.add_argument
    add("--run", type=Path, required=True, help="a finished run folder")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of observations")
    add("--corrections", nargs="+", choices=CORRECTIONS, default=[*CORRECTIONS])
    add("--observations", type=int, default=64, help="of each kind")
    add("--n", type=int, default=500, help="samples of each")
    add("--moves", type=int, default=5000, help="of each chain after burn-in")
    add("--burn-in", type=int, default=1000, help="moves of each chain before")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="processes that train classifiers")
    add_device(arguments)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
