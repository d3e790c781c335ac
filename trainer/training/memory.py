"""Memory that a step frees, kept for the next one."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**30


def keep_freed_memory() -> None:
    """Have the process's allocator keep large blocks that are freed. Does nothing where it is not glibc's.

    By itself it gives blocks of some megabytes back to the system, which clears every page of the next step's blocks
    anew: up to an eighth of a step's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
