"""A linear-Gaussian problem with a closed-form posterior, and the entry points in this process."""

import contextlib
import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outsourced.bank import PairBank
from outsourced.objectives import LogVariance
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.tasks.base import Observation
from outsourced.tasks.vectors import LinearMeasurement

EVERY_SOURCE = {"on_policy": 2, "reference": 1, "simulated": 1, "replay": 1, "refined": 1}
ROOT = Path(__file__).resolve().parents[2]
# A complete training in about 2 s: a likelihood phase, then a balance phase with every path source.
TINY = [
    *("~prior", "+prior._target_=outsourced.priors.LinearGaussian", "+prior.dim=3"),
    *("task=linear", "task.measurements=2", "task.dim=3", "run=r", "logger=none"),
    *("sampler.steps=5", "sampler.width=16", "sampler.depth=1", "sampler.embedding=8"),
    *("trainer.max_steps=16", "trainer.warm_steps=6", "trainer.batch=8", "trainer.groups=8"),
    *("trainer.anchor_steps=3", "trainer.anchor_batch=16"),
    *("trainer.save_every=5", "trainer.evaluate_every=0", "trainer.log_every=4"),
    *("data.bank_size=128", "evaluate.observations=4", "evaluate.n=8"),
    *("lightning.accelerator=cpu", "+lightning.enable_progress_bar=false"),
]


class Problem:
    """z ~ N(0, I) in d dimensions, x = z, y = M z + sigma n; everything about it is closed-form."""

    def __init__(self, dim: int = 2, measurements: int = 2, sigma: float = 0.5, **sampler: Any):
        torch.manual_seed(0)
        task = LinearMeasurement(measurements=measurements, dim=dim, seed=3, sigma=sigma)
        self.posterior = Posterior(LinearGaussian(dim), task)
        options = {"steps": 8, "width": 32, "depth": 1, "embedding": 16} | sampler
        self.sampler = NoiseSampler((dim,), (measurements,), self.posterior, **options)
        self.dim, self.sigma, self.matrix = dim, sigma, task.matrix

    def exact(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior means (B, d), covariance (d, d) and log Z (B,)."""
        eye = torch.eye(self.dim)
        covariance = torch.linalg.inv(eye + self.matrix.T @ self.matrix / self.sigma**2)
        mean = obs.y @ self.matrix @ covariance / self.sigma**2
        noise = self.matrix @ self.matrix.T + self.sigma**2 * torch.eye(len(self.matrix))
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(noise)), noise)
        return mean, covariance, normal.log_prob(obs.y)

    def mixture(
        self, n: int = 4, capacity: int = 64, slots: int = 2, **options: Any
    ) -> PathMixture:
        weights = options.pop("weights", {"on_policy": 1.0})
        buffer = ReplayBuffer(capacity, slots, options.pop("priority", "rank"))
        return PathMixture(self.sampler, self.posterior, buffer, weights, n, **options)

    def bank(self, folder: Path, size: int = 512) -> PairBank:
        return PairBank.build(self.posterior, folder, size, progress=False)


@pytest.fixture
def tiny() -> list[str]:
    return TINY


@pytest.fixture
def problem() -> type[Problem]:
    return Problem


def make_settings(**options) -> Settings:
    few = {
        "max_steps": 12,
        "warm_steps": 6,
        "batch": 8,
        "groups": 8,
        "observations": "simulated",
        "anchor_steps": 0,
    }
    return Settings(**{**few, "evaluate_every": 0, "log_every": 3, "ramp": 2, **options})


def make_module(p, objective=None, weights=None, evaluate=None, **options) -> Any:
    from outsourced.training import SamplerTraining  # with lightning, which takes seconds

    mixture = p.mixture(6, weights=weights or EVERY_SOURCE)
    parts = p.sampler, p.posterior, objective or LogVariance(), mixture, make_settings(**options)
    return SamplerTraining(*parts, evaluate)


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings of a short training."""
    return make_settings


@pytest.fixture
def module_of() -> Callable[..., Any]:
    """A training module of a problem, with paths from every source."""
    return make_module


@dataclass
class Outcome:
    code: int
    out: str
    error: str

    @property
    def line(self) -> str:
        """The error message; fails where there is more than one line of it."""
        lines = [t for t in self.error.splitlines() if t.strip() and "%|" not in t]
        assert len(lines) == 1, self.error
        return lines[0]


Command = Callable[..., Outcome]


def call(script: str, arguments: tuple[str, ...]) -> Outcome:
    """Run an entry point in this process, which saves the seconds that the imports take."""
    module = importlib.import_module(script)
    from outsourced.commands import launch

    out, error, code = io.StringIO(), io.StringIO(), 0
    saved = sys.argv
    sys.argv = [f"{script}.py", *arguments]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            launch(module.main, module.CONFIGS)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
        if isinstance(leaving.code, str):
            error.write(leaving.code)
    finally:
        sys.argv = saved
    return Outcome(code, out.getvalue(), error.getvalue())


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`python train.py` with `TINY` and further overrides, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning").setLevel(logging.ERROR)

    def run(*more: str, tiny: bool = True) -> Outcome:
        flags = [argument for argument in more if argument.startswith("-")]
        rest = [argument for argument in more if not argument.startswith("-")]
        return call("train", (*flags, *(TINY if tiny else ()), *rest))

    yield run
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`python sample.py` in the folder of `train`."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call("sample", arguments)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script of the repository in a process of its own, in the folder of `train`."""
    children: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, **threads, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def interrupt_at() -> Callable[[pytest.MonkeyPatch, int], None]:
    """Send SIGINT to this process in a training step."""
    from outsourced.training import SamplerTraining

    def install(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        original = SamplerTraining.training_step

        def training_step(self, batch, index):  # type: ignore[no-untyped-def]
            if batch["step"] == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, batch, index)

        monkeypatch.setattr(SamplerTraining, "training_step", training_step)

    return install
