"""Memory of a training step, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a training step needs beyond what was there before it, in kilobytes resident. Small blocks go
# back to the system at once, so that the allocator's reserve is not counted.
MEMORY = """
import sys, torch
torch.set_num_threads(1)
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.sampler import NoiseSampler
from outsourced.tasks.vectors import LinearMeasurement
p = Posterior(LinearGaussian(4), LinearMeasurement(measurements=2, dim=4, seed=0, sigma=0.5))
g = torch.Generator().manual_seed(0)
_, _, obs = p.simulate(16, g)
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
def step(steps, rows):
    s = NoiseSampler((4,), (2,), p, steps, width=256, depth=2, max_rows=rows)
    s.log_ratio(s.forward_path(obs, 8, g), obs).square().mean().backward()
step(2, 1600)
for steps, rows in ((25, 1600), (200, 1600), (200, 8000)):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    step(steps, rows)
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own figures")
def test_memory_of_a_step_does_not_grow_with_the_number_of_kernels() -> None:
    """The peak of a training step at K = 200 is within 20 % of that at K = 25.

    Mutant: scoring without checkpoints over steps; a bound of 5 times the rows is seen in the peak.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    short, long, loose = (int(line) for line in done.stdout.split())
    assert short > 10_000
    assert long < 1.2 * short
    assert loose > 3 * short
