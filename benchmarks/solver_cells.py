"""Cells of the side-by-side table: a prior, a task and a solver, run and judged."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.calibrating import against_draws
from benchmarks.contenders import Contender, described
from benchmarks.counting import Peak, counted
from benchmarks.limits import lengthened
from benchmarks.pictures import SHOWN, store
from benchmarks.setting import Setting
from benchmarks.tables import Record
from outsourced.evaluation import residuals
from outsourced.solvers.base import Samples, Solver, clock
from outsourced.tasks.base import Observation

SPREAD = 32  # samples behind the standard deviation that the figure shows
TIMINGS = 3  # of what takes milliseconds, after a call that warms up


def begin(contender: Contender, setting: Setting) -> tuple[Any, dict[str, object]] | None:
    """A solver and what identifies its row; None where it does not apply."""
    trained = setting.trained.get(contender.run)
    if contender.limited and setting.seconds is None:
        return None
    try:
        solver = contender.build(*setting.problem(contender))
    except ValueError:
        return None
    told = described(contender, solver, setting.posterior)
    if contender.limited:
        told = "1 chain"
    if trained and (contender.amortised or contender.limited):
        told = f"{trained.told} {told}".strip()
    return solver, {**setting.name, "solver": contender.name, "settings": told}


def measure(
    contender: Contender,
    solver: Any,
    about: dict[str, object],
    setting: Setting,
    args: argparse.Namespace,
) -> Record:
    """The row of a cell; one with a note where the solver gives up."""
    posterior, obs = setting.problem(contender)[0], setting.seen(contender, setting.obs)
    n = contender.samples or args.n
    try:
        if contender.limited:
            assert setting.seconds is not None
            solver = lengthened(solver, obs, n, setting.seconds, generator_of(args))
        calls, count = posterior.prior_calls, n * len(obs)
        with counted(posterior.prior) as counts, Peak(args.device) as peak:
            samples = solver(obs, n, generator_of(args), progress=args.progress)
        calls = posterior.prior_calls - calls
    except ValueError as error:
        return {**about, "note": str(error)}
    record = {
        **about,
        "draws": n,
        "seconds": samples.seconds / count,
        "seconds_one": samples.seconds / (len(obs) if contender.shared else count),
        "f_calls": calls / count,
        **{name: value / count for name, value in counts.items()},
        "megabytes": peak.megabytes,
        **setting.judge(posterior, samples, obs),
        **converged(samples),
    }
    if contender.calibrated:
        record |= calibrated(contender, solver, n, setting, args)
    if contender.limited:
        record["moves"] = solver.burn_in + solver.steps
    if contender.amortised:
        record["minutes"] = setting.trained[contender.run].minutes
    if contender.plain:
        record |= timed(solver, setting, obs, contender.timing or n, args)
    draws = samples.x[:1, :SHOWN]
    if contender.plain and not contender.estimate:
        draws = solver(obs[:SHOWN], SPREAD, generator_of(args)).x
    store(args.runs, about, setting.obs, draws)
    return record


def calibrated(
    contender: Contender, solver: Any, n: int, setting: Setting, args: argparse.Namespace
) -> Record:
    """What samples of simulated observations say about the truth behind them, and how they fit.

    Where the solver gives up on them, a note instead.

    Raises:
        ValueError: there are no simulated observations.
    """
    cases = setting.simulated
    if cases is None:
        raise ValueError("calibration needs simulated observations; prepare(simulate=True)")
    posterior, obs = setting.problem(contender)[0], setting.seen(contender, cases.obs)
    try:
        samples = solver(obs, n, generator_of(args), progress=args.progress)
    except ValueError as error:
        return {"note": f"on simulated images: {error}"}
    residual = residuals(posterior, samples, obs).double().mean()
    spread = against_draws(samples.x, cases.x, torch.Generator().manual_seed(args.seed))
    return {**spread, "residual_simulated": float(residual)}


def generator_of(args: argparse.Namespace) -> torch.Generator:
    """The source of randomness of a cell."""
    return torch.Generator(args.device).manual_seed(args.seed)


def converged(samples: Samples) -> dict[str, float]:
    """The worst coordinate's R-hat, median over observations, where chains were long enough."""
    if "rhat" not in samples.diagnostics:
        return {}
    rhat = samples.diagnostics["rhat"].nan_to_num(nan=math.inf)  # of chains that never moved
    return {"rhat": float(rhat.flatten(1).amax(1).median())}


def timed(
    solver: Solver, setting: Setting, obs: Observation, n: int, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds a sample of a solver, and of f(z) alone, n of each observation at once, both warm."""
    posterior, count = setting.posterior, n * len(obs)
    z = posterior.draw_noise(count, torch.Generator().manual_seed(args.seed))

    def seconds(work: Callable[[], object]) -> float:
        clocks = []
        for _ in range(1 + TIMINGS):
            start = clock(args.device)
            work()
            clocks.append(clock(args.device) - start)
        return median(clocks[1:]) / count

    with torch.no_grad():
        own = seconds(lambda: solver(obs, n, generator_of(args)))
        return {
            "seconds": own,
            "seconds_one": own,
            "seconds_f": seconds(lambda: posterior.decode(z)),
        }
