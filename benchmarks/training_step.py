"""A trajectory-balance training step at d = 64: as training runs it, and part by part.

    python -m benchmarks.training_step K THREADS [keep]

prints the MiB that a step with K kernels takes at most, in a process that has done nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outsourced.allocator import keep_freed_memory
from outsourced.bank import PairBank
from outsourced.losses import Losses
from outsourced.objectives import TrajectoryBalance
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.tasks import LinearMeasurement

if TYPE_CHECKING:  # lightning takes seconds to import, and memory
    from outsourced.training import SamplerTraining

DIM, MEASUREMENTS, BATCH = 64, 32, 256
STEPS, WIDTH = 25, 256
BANK = 4096


class Step:
    """The training of a linear-Gaussian problem, one on-policy path for each of 256 observations.

    Args:
        folder: where the bank of pairs is written.
        steps: number of kernels K.
    """

    def __init__(self, folder: Path, steps: int = STEPS):
        torch.manual_seed(0)
        task = LinearMeasurement(measurements=MEASUREMENTS, dim=DIM, seed=0, sigma=0.3)
        self.posterior = Posterior(LinearGaussian(DIM), task)
        self.sampler = NoiseSampler(
            (DIM,), (MEASUREMENTS,), self.posterior, steps=steps, width=WIDTH
        )
        weights = {"on_policy": 1.0}
        self.mixture = PathMixture(self.sampler, self.posterior, ReplayBuffer(), weights, n=1)
        self.bank = PairBank.build(self.posterior, folder, BANK, progress=False)

    def settings(self, steps: int) -> Settings:
        """Balance steps on simulated observations, and nothing else."""
        return Settings(
            max_steps=steps, warm_steps=0, anchor_steps=0, groups=BATCH, observations="simulated"
        )

    def train(self, steps: int) -> SamplerTraining:
        """As `train.py` does it, without evaluation and checkpoints."""
        from benchmarks.training import train_quietly
        from outsourced.stepdata import PairData
        from outsourced.training import SamplerTraining

        settings = self.settings(steps)
        parts = self.sampler, self.posterior, TrajectoryBalance(), self.mixture, settings
        module = SamplerTraining(*parts)
        train_quietly(module, PairData(self.bank, None, settings), steps)
        return module

    def trained_seconds(self, steps: int, repeats: int) -> float:
        """Median seconds a step over trainings of `steps` steps, after one that warms up."""
        pace = [self.train(steps).seconds / steps for _ in range(1 + repeats)]
        return median(pace[1:])

    def parts(self) -> dict[str, Callable[[], Any]]:
        """The pieces of a step, each to be timed alone."""
        losses = Losses(self.sampler, self.posterior, TrajectoryBalance(), self.mixture, 8)
        optimizer = torch.optim.Adam(self.sampler.parameters(), lr=1e-4)
        z, x = self.bank.rows(torch.arange(BATCH))
        batch = {"z": z, "x": x}
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        obs = self.posterior.task.sample(x, generator=generators[0])  # type: ignore[operator]
        path = self.sampler.forward_path(obs, 1, generators[1])

        def balance() -> Tensor:
            return losses.balance(batch, BATCH, *generators)[0]

        def update() -> None:
            optimizer.zero_grad()
            balance().backward()
            optimizer.step()

        return {
            "drawing the paths": lambda: self.sampler.forward_path(obs, 1, generators[1]),
            "scoring them": lambda: self.sampler.log_ratio(path, obs),
            "Losses.balance: both": balance,
            "Losses.balance, backward pass, Adam": update,
        }


def peak_memory(steps: int) -> float:
    """MiB that training steps with K = `steps` add to the process that holds model and data.

    Raises:
        OSError: there is no /proc, which only Linux has.
    """
    with tempfile.TemporaryDirectory() as folder:
        step = Step(Path(folder), steps)
        update = step.parts()["Losses.balance, backward pass, Adam"]
        before = _resident("VmRSS")
        for _ in range(3):
            update()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """A line of this process's status in MiB: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if "keep" in sys.argv:  # as training does
        keep_freed_memory()
    torch.set_num_threads(int(sys.argv[2]))
    print(peak_memory(int(sys.argv[1])))
