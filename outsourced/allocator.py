"""Let the C library keep freed memory on the CPU, instead of returning it after every operation.

glibc maps each large tensor afresh and unmaps it when it is freed, so that every operation pays the
page faults of its output.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST_MAPPED = 32 * 2**20  # glibc refuses more
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Reuse freed blocks of up to 32 MiB for the rest of the process.

    The process then holds its peak of small blocks until it ends.

    Returns:
        Whether the C library took the setting; others than glibc have none, and need none.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (M_MMAP_THRESHOLD, LARGEST_MAPPED), (M_TRIM_THRESHOLD, NEVER)
    return all(mallopt(name, value) == 1 for name, value in settings)
