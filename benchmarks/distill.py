"""Samplers of 1 to 4 steps beside the ones that taught them: what they lose, what they save.

    python -m benchmarks.distill --problems linear,mixture,moons --runs runs/inpaint

Exact problems compare with exact draws; runs with the chains of `benchmarks.inpaint` (the files
yardstick-*.safetensors in the first run), where there are some. Students of runs are trained by
`python train.py distill=RUN` and lie beside it. Finished rows are in the CSV file, and the same
command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import merit
from benchmarks.cells import Effort, draw, evaluate, observe, quiet, two_sample
from benchmarks.driver import call, kept, parser, render, surroundings, told
from benchmarks.merit import Cases, assess, averages, real, simulated
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.speed import clocked
from benchmarks.students import TEACHER, Student, student_run, teach, teacher_of
from benchmarks.tables import Column, markdown, read_csv, write_csv
from benchmarks.yardstick import stored_chains
from outsourced.bank import PairBank
from outsourced.build import code_version, held_out, load_run
from outsourced.metrics import c2st
from outsourced.posterior import Posterior
from outsourced.run import METRICS
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.tasks.base import Observation

SECTION = "distill"
SAMPLES = 64  # whose seconds are told
QUICK_EXACT = {"observations": 4, "paths": 64, "upper_paths": 8, "tests": 1, "draws": 40}
QUICK_RUNS = {"observations": 4, "n": 8}
OF_CASES = 512  # observations of `benchmarks.inpaint`, the first of which the chains ran on
COLUMNS = (
    Column("problem", "problem"),
    Column("kind", "y"),
    Column("student", "sampler"),
    Column("steps", "K", ".0f"),
    Column("components", "parts", ".0f"),
    Column("gap", "gap", ".3f"),
    Column("elbo", "ELBO", ".2f"),
    Column("ess", "ESS", ".3f"),
    Column("residual", "residual", ".3f"),
    Column("c2st", "C2ST truth", ".3f"),
    Column("c2st_teacher", "C2ST teacher", ".3f"),
    Column("mode_error", "mode error", ".3f"),
    Column("ms_one", f"ms, {SAMPLES} of one y", ".1f"),
    Column("ms_many", f"ms, one of {SAMPLES} y", ".1f"),
    Column("prior_calls", "prior calls a sample", ".1f"),
    Column("train_seconds", "training s", ".0f"),
)


def costs(
    sampler: NoiseSampler, posterior: Posterior, obs: Observation, repeats: int
) -> dict[str, float]:
    """Milliseconds for 64 samples of one observation and of 64, prior calls for each of the latter.

    Args:
        sampler, posterior: the pair.
        obs: any observations.
        repeats: of each timing.
    """
    generator, solver = torch.Generator().manual_seed(0), Amortized(sampler, posterior)
    many = obs[torch.arange(SAMPLES) % len(obs)]
    samples = solver(many, 1, generator)
    return {
        "ms_one": 1000 * clocked(lambda: solver(obs[:1], SAMPLES, generator), repeats),
        "ms_many": 1000 * clocked(lambda: solver(many, 1, generator), repeats),
        "prior_calls": samples.prior_calls / SAMPLES,
        "steps": sampler.steps,
        "components": sampler.control.components,
    }


# ---------------------------------------------------------------- problems with a truth


def exact_row(
    problem: Problem, sampler: NoiseSampler, teacher: NoiseSampler, effort: Effort, repeats: int
) -> dict[str, float]:
    """Figures of a student, or of the teacher itself, against the truth and the teacher."""
    obs, figures = observe(problem, effort), evaluate(problem, sampler, effort)
    figures["gap"] = figures.pop("elbo_gap") + figures.pop("eubo_gap")
    some = obs[torch.arange(effort.tests)]
    own, other = (
        draw(each, problem, some, effort.draws, torch.Generator().manual_seed(seed))[0]
        for seed, each in ((effort.seed + 5, sampler), (effort.seed + 6, teacher))
    )
    figures["c2st_teacher"] = two_sample(own, other, effort.seed)
    names = ("gap", "ess", "c2st", "c2st_teacher", "mode_error")
    kept = {name: figures[name] for name in names if name in figures}
    return kept | costs(sampler, problem.posterior, obs, repeats)


def exact_rows(name: str, args: argparse.Namespace, effort: Effort, known: list[str]) -> Any:
    """Rows of a problem that are not known yet, one after the other."""
    missing = [student for student in (TEACHER, *args.students) if student.name not in known]
    if not missing:
        return
    problem = PROBLEMS[name]()
    with tempfile.TemporaryDirectory() as folder:
        bank = PairBank.build(problem.posterior, folder, effort.bank, chunk=16_384, progress=False)
        teacher = teacher_of(problem, bank, effort, args.teachers / f"{name}.safetensors")
        for student in missing:
            sampler, seconds = teacher, effort.seconds
            if student.steps:
                options = bank, args.steps, effort.seed
                sampler, seconds = teach(problem, teacher, student, *options)
            figures = exact_row(problem, sampler, teacher, effort, args.repeats)
            yield {"student": student.name, **figures, "train_seconds": seconds}


# ---------------------------------------------------------------- runs


def apart(a: Tensor, b: Tensor, seed: int) -> float:
    """C2ST of draws (n, B, ...) in noise space, for each observation apart; the mean over them."""
    n = min(len(a), len(b))
    pairs = [(a[:n, i].flatten(1), b[:n, i].flatten(1)) for i in range(a.shape[1])]
    return sum(c2st(one, other, seed, folds=2) for one, other in pairs) / len(pairs)


def noises(sampler: NoiseSampler, obs: Observation, n: int, seed: int) -> Tensor:
    """n draws of each observation, (n, B, ...)."""
    return sampler(obs, n, torch.Generator().manual_seed(seed))


def chains_of(folder: Path, kind: str, cases: Cases, args: argparse.Namespace) -> Any:
    """The chains of `benchmarks.inpaint`, if they are there for these observations."""
    path = folder / f"yardstick-{kind}.safetensors"
    if args.chain == 0 or not path.is_file():
        return None
    problem, effort = load_run(str(folder)), merit.Effort(OF_CASES, chain=args.chain)
    return stored_chains(path, problem.sampler, problem.posterior, cases, effort)


def run_row(folder: Path, student: Path, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a student run, or of the run itself, on observations of a kind."""
    teacher, problem = load_run(str(folder)), load_run(str(student))
    posterior, whole = problem.posterior, merit.Effort(OF_CASES, seed=args.seed)
    if kind == "simulated":
        every = simulated(posterior, whole)
    else:
        images = held_out(str(folder))
        assert images is not None
        every = real(posterior, images, whole)
    size = QUICK_RUNS if args.quick else {"observations": args.observations, "n": args.n}
    effort = merit.Effort(**size, chain=0, seed=args.seed)
    findings = assess(problem.sampler, posterior, every[: effort.observations], effort, False)
    figures = averages(findings, effort)
    names = ("gap", "elbo", "ess", "residual")
    record = {name: figures[name] for name in names if name in figures}
    obs, n = every.obs[: args.tests], effort.n if effort.n >= 20 else 20
    draws = noises(problem.sampler, obs, n, args.seed + 5)
    record["c2st_teacher"] = apart(draws, noises(teacher.sampler, obs, n, args.seed + 6), args.seed)
    chains = chains_of(folder, kind, every, args)
    if chains is not None and bool(chains.converged.any()):
        good = torch.nonzero(chains.converged)[:, 0]
        draws = noises(problem.sampler, every.obs[: args.chain][good], len(chains.z), args.seed + 5)
        record["c2st"] = apart(draws, chains.z[:, good], args.seed)
    told_by = json.loads((student / METRICS).read_text())
    record["train_seconds"] = float(told_by["train_seconds"])
    return record | costs(problem.sampler, posterior, every.obs, args.repeats)


def run_rows(folder: Path, args: argparse.Namespace, known: list[tuple[str, str]]) -> Any:
    """Rows of a run and its students that are not known yet, one after the other."""
    kinds = ("simulated", "real") if held_out(str(folder)) is not None else ("simulated",)
    for student in (TEACHER, *args.students):
        for kind in kinds:
            if (student.name, kind) in known:
                continue
            place = folder
            if student.steps:
                place = student_run(folder, student, args.steps, args.more)
            yield {"student": student.name, "kind": kind, **run_row(folder, place, kind, args)}


# ---------------------------------------------------------------- command


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it what its columns mean and how it was made."""
    first = records[0]
    return (
        f"{markdown(records, COLUMNS)}\n\n"
        "Gap: EUBO - ELBO in nats, on exact posterior draws; parts: Gaussians that a kernel is a "
        "mixture of. C2ST, for each y apart: against exact draws (in x), or against the states of "
        "MALA chains (in z); and against draws of the teacher. Times with decoding, of the solver "
        f"as `sample.py` calls it. Students learn for {first['lesson']} steps, the teachers of "
        f"exact problems for {first['budget_seconds']} CPU s. Seed {first['seed']}, {told(first)}."
    )


def conditions(args: argparse.Namespace, effort: Effort) -> dict[str, object]:
    """What a figure depends on besides its row; all rows of one file must share it."""
    return {
        "budget_seconds": effort.seconds,
        "lesson": args.steps,
        "observations": args.observations,
        "n": args.n,
        "seed": args.seed,
        **surroundings(),
    }


def fill(args: argparse.Namespace, effort: Effort) -> None:
    """Append every row that the file does not hold yet."""
    asked = conditions(args, effort)
    known = kept(args.out, asked)
    records = list(known)

    def append(rows: Any, problem: str) -> None:
        for row in rows:
            about = {"problem": problem, "kind": "simulated", **row}
            records.append({**about, **asked, "code": code_version()})
            write_csv(args.out, records)
            print(markdown([records[-1]], COLUMNS).splitlines()[-1], flush=True)

    for name in args.problems:
        done = [str(r["student"]) for r in known if r["problem"] == name]
        append(exact_rows(name, args, effort, done), name)
    for folder in args.runs:
        found = [(str(r["student"]), str(r["kind"])) for r in known if r["problem"] == folder.name]
        append(run_rows(folder, args, found), folder.name)


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    quiet()
    unknown = [name for name in args.problems if name not in PROBLEMS]
    if unknown:
        raise ValueError(f"--problems must be of {', '.join(PROBLEMS)}, got {', '.join(unknown)}")
    args.students = [Student.parse(text) for text in args.students]
    effort = Effort(args.seconds, seed=args.seed, **(QUICK_EXACT if args.quick else {}))
    fill(args, effort)
    render(args, SECTION, table(read_csv(args.out)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, threads=1, quick="tiny evaluation, for tests")
    add = arguments.add_argument
    add("--problems", type=lambda text: text.split(","), default=[], help=", ".join(PROBLEMS))
    add("--runs", type=Path, nargs="*", default=[], help="finished run folders")
    add("--students", nargs="+", default=["4", "2", "1", "4x8", "1x8"], help="steps x components")
    add("--seconds", type=float, default=120.0, help="of training of the teachers of problems")
    add("--teachers", type=Path, default=Path("runs/distill"), help="where those are kept")
    add("--steps", type=int, default=400, help="of a student's training")
    add("--more", nargs="*", default=[], help="further arguments of train.py distill=RUN")
    add("--observations", type=int, default=64, help="of each kind, of runs")
    add("--n", type=int, default=256, help="samples for each, of runs")
    add("--tests", type=int, default=4, help="observations of a run behind C2ST to the teacher")
    add("--chain", type=int, default=16, help="observations with chains; 0: none")
    add("--repeats", type=int, default=5, help="of each timing")
    add("--seed", type=int, default=0)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
