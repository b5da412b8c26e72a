"""Freed memory is kept: a fresh process, because the setting lasts as long as the process."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from outsourced.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
x = torch.ones(2 * 2**20)
for step in range(13):  # the first three find their place
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    results = [x * 2 for _ in range(4)]
    del results
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> list[str]:
    call = [sys.executable, "-c", COUNT, mode]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_results_reuse_the_memory_of_freed_ones():
    """Forty results of 8 MiB cost no page faults, instead of 2048 each. Mutant: a threshold that glibc refuses
    (above 32 MiB), or only one of the two settings."""
    answer, kept = faults("keep")
    (fresh,) = faults("leave")
    assert answer == "True"
    assert int(kept) < 2048 < int(fresh), (kept, fresh)
