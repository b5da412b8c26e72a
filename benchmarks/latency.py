"""Seconds until n samples of one observation are there, from a trained sampler and from PSLD.

    python -m benchmarks.latency --run runs/solvers/fashion_sd-inpaint

Both draw the same number of samples in one batch. What the trained sampler spends is split into
what an observation costs whatever n is, the sampler, and the images of what it drew (by f, or from
latents by the decoder); f alone, of as many noises, is beside it. PSLD takes 1000 steps of
the sizes that it has for the prior and task. Measured rows are in the CSV file; delete it to
measure again. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.posteriors import configured
from benchmarks.speed import clocked
from benchmarks.tables import Column, Record, markdown, write_csv
from outsourced.build import Problem, code_version, held_out, load_run
from outsourced.evaluation import residuals
from outsourced.guidance import Context
from outsourced.observing import observe
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples
from outsourced.tasks.base import Observation
from outsourced.transport import NoiseTransport

SECTION = "latency"
RIVAL, STEPS, QUICK_STEPS = "psld", 1000, 3
REPEATS = 3
COLUMNS = (
    Column("n", "samples", ".0f"),
    Column("seconds", "trained, s", ".3g"),
    Column("encode", "of that, the observation", ".3g"),
    Column("paths", "the sampler", ".3g"),
    Column("decode", "the images", ".3g"),
    Column("f", "f alone, s", ".3g"),
    Column("own", "beyond f", ".0%"),
    Column("rival_seconds", "PSLD, s", ".3g"),
    Column("ratio", "PSLD / trained", ".3g"),
    Column("residual", "residual / σ", ".2f"),
    Column("rival_residual", "PSLD's", ".2f"),
)


def seconds_of(problem: Problem, obs: Observation, n: int, seed: int) -> dict[str, float]:
    """Seconds of a whole call for n samples of one observation, and of its parts.

    Args:
        problem: a trained sampler and its posterior.
        obs: one observation.
        n: samples of it.
        seed: of the samples.

    Returns:
        `seconds` of the call, `encode`, `paths` and `decode` of its parts, and `f` of n noises,
        each the median of `REPEATS` calls after two that warm up; `own`: by how much the call
        exceeds f, as a share of it.
    """
    sampler, posterior = problem.sampler, problem.posterior
    solver = Amortized(sampler, posterior)
    noise = posterior.draw_noise(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        context = sampler.encode(obs, n)
        draw, decode = _parts(problem, obs, n, context)
        drawn = draw()
        parts = {
            "seconds": lambda: solver(obs, n, torch.Generator().manual_seed(seed)),
            "encode": lambda: sampler.encode(obs, n),
            "paths": draw,
            "decode": lambda: decode(drawn),
            "f": lambda: posterior.decode(noise),
        }
        found = {name: clocked(work, REPEATS) for name, work in parts.items()}
    return {**found, "own": found["seconds"] / found["f"] - 1}


def _parts(
    problem: Problem, obs: Observation, n: int, context: Context
) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """What draws n noises or latents of one observation, and what makes images of them."""
    sampler, posterior = problem.sampler, problem.posterior
    if isinstance(sampler, NoiseTransport):
        return lambda: sampler.draw(obs, n, context=context)[1][:, 0], posterior.decode_latents
    return lambda: sampler.forward_path(obs, n, context=context).end[:, 0], posterior.decode


def residual(problem: Problem, samples: Samples, obs: Observation) -> float:
    """Mean residual of samples, in units of sigma."""
    return float(residuals(problem.posterior, samples, obs).double().mean())


def measure(problem: Problem, obs: Observation, n: int, steps: int, seed: int) -> Record:
    """The row of a number of samples of one observation."""
    ours = seconds_of(problem, obs, n, seed)
    drawn = Amortized(problem.sampler, problem.posterior)(
        obs, n, torch.Generator().manual_seed(seed)
    )
    rival = configured(RIVAL, {"steps": steps}, problem.posterior)
    theirs = rival(obs, n, torch.Generator().manual_seed(seed))
    return {
        "n": n,
        **ours,
        "rival_seconds": theirs.seconds,
        "ratio": theirs.seconds / ours["seconds"],
        "residual": residual(problem, drawn, obs),
        "rival_residual": residual(problem, theirs, obs),
    }


def table(records: list[Record]) -> str:
    """The text between the markers."""
    first = records[0]
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        f"One held-out image of `{first['run']}` (sigma = {first['sigma']}), PSLD with "
        f"{first['rival_steps']} steps, equal batches. The observation: what it costs once, "
        f"whatever the number of samples. Medians of {REPEATS} calls after two; PSLD "
        f"once. {told(first)}."
    )


def run(args: argparse.Namespace) -> None:
    """Measure what the file does not hold yet, and write the table."""
    if args.quick:
        args.samples = args.samples[:2]
    steps = QUICK_STEPS if args.quick else STEPS
    if min(args.samples) < 1:
        raise ValueError(f"--samples must be >= 1, got {min(args.samples)}")
    problem = load_run(str(args.run))
    generator = torch.Generator().manual_seed(args.seed)
    images = held_out(str(args.run))
    _, obs = observe(problem.posterior, None, images, 1, generator)
    asked = {
        "run": args.run.resolve().name,
        "rival_steps": steps,
        "sigma": round(float(obs.sigma[0]), 6),
        "seed": args.seed,
        **surroundings(),
    }
    records = kept(args.out, asked)
    for n in args.samples:
        if any(int(str(record["n"])) == n for record in records):
            continue
        row = measure(problem, obs, n, steps, args.seed)
        records.append({**row, **asked, "code": code_version()})
        write_csv(args.out, records)
        print(markdown(records[-1:], COLUMNS).splitlines()[-1], flush=True)
    render(args, SECTION, table(kept(args.out, asked)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, 1, "two numbers of samples, PSLD of three steps")
    add = arguments.add_argument
    add("--run", type=Path, required=True, help="finished run of a latent diffusion prior")
    add("--samples", type=int, nargs="+", default=[1, 4, 16, 64], help="of the observation")
    add("--seed", type=int, default=0, help="of observation and samples")
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
