"""Speed and memory: training steps a second, sampling beside its parts, memory against K.

    python -m benchmarks.speed --threads 2 --out docs/speed.csv

Weights do not matter here, so the samplers are untrained. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import quiet
from benchmarks.driver import call, parser, render, surroundings, told
from benchmarks.tables import Column, Record, markdown, write_csv
from benchmarks.training_step import STEPS, WIDTH, Step
from outsourced.build import code_version
from outsourced.posterior import Posterior
from outsourced.priors.vae import VAE
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.tasks import Inpaint
from outsourced.tasks.base import Observation

SECTION = "speed"
IMAGES = 64
INFORMED = ("none", "gradient", "gauss_newton")
MEMORY_STEPS = (25, 200)
TARGETS = {"training": ">= 14", "sampling": "<= 3", "memory": "within 20 %"}
COLUMNS = (
    Column("what", "what"),
    Column("value", "value", ".3g"),
    Column("unit", "unit"),
    Column("target", "target"),
    Column("met", "met"),
)


@dataclass(frozen=True)
class Effort:
    """How long to measure: repetitions of each timing, training steps of each repetition."""

    repeats: int = 7
    steps: int = 30


def row(what: str, value: float, unit: str, target: str = "", met: bool | None = None) -> Record:
    """A line of the table; without a target it is for orientation."""
    answer = {None: "", True: "yes", False: "no"}[met]
    return {"what": what, "value": value, "unit": unit, "target": target, "met": answer}


def clocked(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after two that warm up."""
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])


# ---------------------------------------------------------------- training


def training(effort: Effort) -> list[Record]:
    """Trajectory-balance steps a second, and where the time of a step goes."""
    with tempfile.TemporaryDirectory() as folder:
        step = Step(Path(folder))
        whole = step.trained_seconds(effort.steps, effort.repeats)
        parts = {name: clocked(part, effort.repeats) for name, part in step.parts().items()}
    rate, target = 1 / whole, TARGETS["training"]
    name = f"trajectory balance, d=64, width {WIDTH}, K={STEPS}, batch 256"
    return [
        row(f"{name}: training", rate, "steps/s", target, rate >= 14),
        *[row(f"a step: {part}", 1000 * seconds, "ms") for part, seconds in parts.items()],
        row("a step: all, with data, clipping, averaging, logging", 1000 * whole, "ms"),
    ]


# ---------------------------------------------------------------- sampling


def inpainting(informed: str) -> tuple[NoiseSampler, Posterior]:
    """An untrained sampler of the default size for the default inpainting task, K = 25."""
    prior = VAE.from_weights("fashion_vae")
    posterior = Posterior(prior, Inpaint(prior.data_shape, sigma=0.2))
    shape = posterior.task.feature_shape
    sampler = NoiseSampler(
        prior.noise_shape,
        shape,  # type: ignore[arg-type]
        posterior,
        steps=STEPS,
        informed=informed,
        covariance="full",
    )
    return sampler.eval(), posterior


def network_passes(sampler: NoiseSampler, posterior: Posterior) -> Callable[[], None]:
    """The K forward passes of the control's network (and of that behind the gradient), alone."""
    width = sampler.encoder.size + (
        2 * sampler.noise_shape[0] if sampler.control.informed == "gauss_newton" else 0
    )
    context = torch.randn(IMAGES, width)
    z = posterior.draw_noise(IMAGES)[None]
    extra = {"none": 0, "gradient": 2 * z.shape[-1] + 1, "gauss_newton": 3 * z.shape[-1]}
    inputs = torch.cat([z, torch.randn(1, IMAGES, extra[sampler.control.informed])], 2)
    calls: list[tuple[Any, torch.Tensor]] = [(sampler.control.network, inputs)]
    if isinstance(sampler.control.guidance, torch.nn.Module):
        calls.append((sampler.control.guidance.network, z))

    @torch.no_grad()
    def passes() -> None:
        every = torch.arange(sampler.steps)
        modulations = [network.modulation(every, context) for network, _ in calls]
        for step in range(sampler.steps):
            k = torch.tensor([step])
            for (network, x), of_all in zip(calls, modulations, strict=True):
                network(x, k, context, of_all.at(k))

    return passes


def gradients(
    sampler: NoiseSampler, posterior: Posterior, obs: Observation, z: Tensor
) -> Callable[[], None]:
    """K gradients of log r at 64 points, which the informed drifts ask for."""

    def ask() -> None:
        for _ in range(sampler.steps):
            posterior.grad_log_reward(z, obs)

    return ask


def sampling(informed: str, effort: Effort) -> list[Record]:
    """Time of 64 posterior samples over that of the parts that cannot be avoided."""
    sampler, posterior = inpainting(informed)
    generator = torch.Generator().manual_seed(0)
    z, _, obs = posterior.simulate(IMAGES, generator)
    solver = Amortized(sampler, posterior)
    whole = clocked(lambda: solver(obs, 1, generator), effort.repeats)
    decode = clocked(torch.no_grad()(lambda: posterior.decode(z)), effort.repeats)
    network = clocked(network_passes(sampler, posterior), effort.repeats)
    ratio, target = whole / (decode + network), TARGETS["sampling"]
    name = f"64 samples, informed={informed}"
    rows = [
        row(f"{name}: all", 1000 * whole, "ms"),
        row(f"{name}: decode", 1000 * decode, "ms"),
        row(f"{name}: {STEPS} network passes", 1000 * network, "ms"),
        row(f"{name}: all / (decode + passes)", ratio, "", target, ratio <= 3),
    ]
    if informed == "none":
        return rows
    encode = clocked(torch.no_grad()(lambda: sampler.encode(obs)), effort.repeats)
    asked = clocked(gradients(sampler, posterior, obs, z), effort.repeats)
    full = whole / (decode + network + encode + asked)
    return [
        *rows,
        row(f"{name}: encoding, with its Laplace fit if any", 1000 * encode, "ms"),
        row(f"{name}: {STEPS} gradients of log r", 1000 * asked, "ms"),
        row(f"{name}: all / (decode + passes + encoding + gradients)", full, ""),
    ]


# ---------------------------------------------------------------- memory


def memory() -> list[Record]:
    """Peak memory of a training step at few and at many steps, each in a process of its own.

    Training keeps freed blocks (`outsourced.allocator`), whose fragments grow with the number of
    allocations. With a C library told to return them at once, what is resident is what the step
    holds.
    """
    rows = []
    for name, exact in (("held by", True), ("resident in", False)):
        peaks = {k: _measured(k, exact) for k in MEMORY_STEPS}
        ratio = peaks[MEMORY_STEPS[1]] / peaks[MEMORY_STEPS[0]]
        met, target = abs(ratio - 1) <= 0.2, TARGETS["memory"]
        rows += [
            row(f"peak memory {name} a training step, K={k}", v, "MiB") for k, v in peaks.items()
        ]
        name = f"peak memory {name} a training step: {MEMORY_STEPS[1]} over {MEMORY_STEPS[0]}"
        rows.append(row(name, ratio, "", target, met) if exact else row(name, ratio, ""))
    return rows


def _measured(steps: int, exact: bool) -> float:
    call = [sys.executable, "-m", "benchmarks.training_step", str(steps)]
    call.append(str(torch.get_num_threads()))
    root, environment = Path(__file__).resolve().parents[1], dict(os.environ)
    if exact:  # read by glibc
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    else:
        call.append("keep")
    done = subprocess.run(
        call, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"the memory measurement failed: {done.stderr.strip()}")
    return float(done.stdout.split()[-1])


# ---------------------------------------------------------------- command


def run(args: argparse.Namespace) -> None:
    """Measure everything and write the table."""
    quiet()
    effort = Effort(2, 4) if args.quick else Effort()
    jobs: list[Callable[[], list[Record]]] = [lambda: training(effort)]
    jobs += [lambda name=name: sampling(name, effort) for name in INFORMED]  # type: ignore[misc]
    records: list[Record] = []
    for job in [*jobs, memory]:
        for record in job():
            records.append(record)
            print(markdown([record], COLUMNS).splitlines()[-1], flush=True)
    around = surroundings()
    write_csv(args.out, [{**record, **around, "code": code_version()} for record in records])
    render(args, SECTION, f"{markdown(records, COLUMNS)}\n\n{told(around)}.")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    call(run, parser(SECTION, __doc__, threads=2, quick="few repetitions, for tests"), argv)


if __name__ == "__main__":
    main()
