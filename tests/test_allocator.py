"""Freed memory is kept: asked of glibc in a fresh process, since the setting lasts as long."""

import subprocess
import sys

import pytest

ASK = """
import ctypes, sys
from outsourced.allocator import keep_freed_memory
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
mapped = libc.mallinfo2().hblks
block = libc.malloc(31 * 2**20)
print(libc.mallinfo2().hblks - mapped)
heap = libc.mallinfo2().arena
libc.free(block)
print((heap - libc.mallinfo2().arena) // 2**20)
"""


def answers(mode: str) -> list[str]:
    call = [sys.executable, "-c", ASK, mode]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_a_freed_block_stays_with_the_process():
    """A block of 31 MiB lies on the heap, which does not shrink when it is freed. Mutant: a
    threshold that glibc refuses (above 32 MiB), or the threshold of mapping without that of
    trimming."""
    assert answers("keep") == ["True", "0", "0"]
    assert answers("leave")[:2] == ["None", "1"]
