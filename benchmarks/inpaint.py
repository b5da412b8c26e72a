"""Inpainting with trained samplers: how far from the posterior, on simulated and on real images.

    python -m benchmarks.inpaint --runs runs/A runs/B --out docs/inpaint.csv

Each row is a run, a stage of its training and a kind of observation; finished rows are in the CSV
file, and the same command continues an interrupted one. The first run is the headline: figures are
drawn with it, and MALA chains start from its draws. Chains lie in its folder and serve all rows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.merit import (
    CORRECTED_RANKED,
    FEWEST,
    Cases,
    Effort,
    Findings,
    assess,
    averages,
    real,
    simulated,
)
from benchmarks.runs import Row, costs, described, rows_of
from benchmarks.tables import Column, Record, markdown, read_csv, write_csv
from benchmarks.yardstick import CONVERGED, against_chains, stored_chains
from outsourced.build import Problem, code_version, held_out, load_run
from outsourced.evaluation import figure
from outsourced.figures import rank_histograms
from outsourced.solvers.amortized import Amortized

SECTION = "inpaint"
QUICK = {"observations": 16, "n": 32, "chain": 2, "moves": 60, "burn_in": 20}
SHOWN, SHOWN_SAMPLES = 6, 64  # observations in the figure, and samples behind their spread
COLUMNS = (
    Column("run", "run"),
    Column("informed", "informed"),
    Column("steps", "K", ".0f"),
    Column("stage", "after"),
    Column("kind", "y"),
    Column("elbo", "ELBO", ".1f"),
    Column("gap", "gap", ".1f"),
    Column("gap_chain", "gap, chain", ".1f"),
    Column("log_z", "log Z", ".1f"),
    Column("ess_median", "ESS median", ".3f"),
    Column("ess", "mean", ".3f"),
    Column("residual", "residual", ".4f"),
    Column("residual_truth", "truth", ".4f"),
    Column("excess_truth", "over truth", "+.1%"),
    Column("excess_corrected", "over corrected", "+.1%"),
    Column("excess_chain", "over chain", "+.1%"),
    Column("psnr", "PSNR", ".2f"),
    Column("psnr_of_mean", "of mean", ".2f"),
    Column("std_hidden", "std hidden", ".3f"),
    Column("std_observed", "seen", ".3f"),
    Column("drawn_p_min", "SBC min p", ".1e"),
    Column("drawn_p_below", "p < .05", ".0f"),
    Column("corrected_p_min", "corrected min p", ".1e"),
    Column("corrected_p_below", "p < .05", ".0f"),
    Column("minutes", "training min", ".1f"),
    Column("train_prior_calls", "prior calls", ".2g"),
    Column("milliseconds", "ms / sample", ".2f"),
)


def conditions(effort: Effort) -> dict[str, object]:
    """What a figure depends on besides its row; all rows of one file must share it."""
    return {**asdict(effort), **surroundings()}


def cases_of(row: Row, problem: Problem, effort: Effort) -> Cases:
    """The observations of a row."""
    if row.kind == "simulated":
        return simulated(problem.posterior, effort)
    images = held_out(str(row.folder))
    assert images is not None  # `rows_of` asks for real ones only where there are images
    return real(problem.posterior, images, effort)


def measure(row: Row, headline: Row, effort: Effort, figures: Path) -> dict[str, Any]:
    """The record of a row; draws the figures if it is about the headline's sampler."""
    problem = load_run(str(row.folder), row.weights)
    cases = cases_of(row, problem, effort)
    findings = assess(problem.sampler, problem.posterior, cases, effort)
    record = described(row)
    if effort.chain:
        record |= _with_chains(findings, row, headline, problem, cases, effort)
    record |= averages(findings, effort)
    record |= costs(row)
    record["milliseconds"] = 1000 * record["seconds_per_sample"]
    if (row.folder, row.weights) == (headline.folder, headline.weights):
        draw(problem, cases, findings, effort, figures)
    return record | {**conditions(effort), "code": code_version()}


def _with_chains(
    findings: Findings, row: Row, headline: Row, problem: Problem, cases: Cases, effort: Effort
) -> dict[str, float]:
    """Add figures against the chains to the findings; what the chains say about themselves."""
    first = load_run(str(headline.folder), headline.weights)
    path = headline.folder / f"yardstick-{row.kind}.safetensors"
    chains = stored_chains(path, first.sampler, first.posterior, cases, effort)
    print(f"chains, {row.kind}: {chains.report()}", flush=True)
    pair, paths = (problem.sampler, problem.posterior), effort.upper_paths
    findings.figures |= against_chains(*pair, cases, chains, paths, effort.seed)
    return {"rhat_median": float(chains.rhat.median()), "rhat_max": float(chains.rhat.max())}


def draw(problem: Problem, cases: Cases, findings: Findings, effort: Effort, folder: Path) -> None:
    """Rank histograms on simulated observations, samples on held-out ones."""
    if cases.kind == "simulated":
        rank_histograms(findings.ranks["drawn"], effort.ranked, folder / f"{SECTION}-ranks.png")
        corrected = findings.ranks["corrected"]
        if len(corrected):
            path = folder / f"{SECTION}-ranks-corrected.png"
            rank_histograms(corrected, CORRECTED_RANKED, path)
        return
    obs, generator = cases.obs[:SHOWN], torch.Generator().manual_seed(effort.seed)
    samples = Amortized(problem.sampler, problem.posterior)(obs, SHOWN_SAMPLES, generator)
    figure(problem.posterior, samples, obs, cases.x[:SHOWN], folder / f"{SECTION}.png")


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it what its columns mean and how it was made."""
    first = records[0]
    corrected = f"observations with >= {FEWEST} effective samples"
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        "Nats per image; gap: EUBO - ELBO, on exact posterior draws or on states of MALA chains. "
        "Residuals in units of sigma, means over samples; `over`: relative to the posterior's, by "
        f"the truth behind simulated y, importance-corrected samples ({corrected}) or chains "
        f"(first {first['chain']} observations, those with R-hat <= {CONVERGED}). SBC: smallest "
        f"chi-square p-value, and number below 0.05, of {first.get('drawn_p_of') or 'd'} "
        f"coordinates; corrected: among {CORRECTED_RANKED} resampled draws, {corrected}. "
        f"{first['observations']} observations, {first['n']} samples each, seed {first['seed']}, "
        f"{told(first)}."
    )


def report(record: Record, done: int, total: int) -> None:
    """One line of progress."""
    names = ("gap", "gap_chain", "ess_median", "residual", "excess_truth", "excess_chain")
    shown = " ".join(f"{n}={float(str(record[n])):.3g}" for n in names if n in record)
    print(f"[{done}/{total}] {record['run']}, {record['stage']}, {record['kind']}: {shown}")


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    effort = Effort(args.observations, args.n, chain=args.chain, moves=args.moves, seed=args.seed)
    if args.quick:
        effort = replace(effort, **QUICK)
    rows, known = rows_of(args.runs), kept(args.out, conditions(effort))
    by_key = {(r["run"], r["stage"], r["kind"]): r for r in known}
    for done, row in enumerate(rows):
        if row.key not in by_key:
            by_key[row.key] = measure(row, rows[0], effort, args.out.parent / "figures")
            write_csv(args.out, list(by_key.values()))
            report(by_key[row.key], done + 1, len(rows))
    render(args, SECTION, table(read_csv(args.out)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, threads=1, quick="tiny evaluation, for tests")
    add = arguments.add_argument
    add("--runs", type=Path, nargs="+", required=True, help="finished run folders")
    add("--observations", type=int, default=512, help="of each kind")
    add("--n", type=int, default=256, help="samples for each observation")
    add("--chain", type=int, default=64, help="observations with chains; 0: none")
    add("--moves", type=int, default=3000, help="of each chain after burn-in")
    add("--seed", type=int, default=0)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
