"""The system's limits on a process (`ulimit`): what commands need of them, and one around what may take too much."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import human

WITHOUT_TORCH, WITH_TORCH = 2**30, 4 * 2**30  # of address space; torch's libraries alone take 3 GB of it
STACK_BYTES = 2**20
OPEN_FILES = 256

STATM = "/proc/self/statm"  # its first number is the address space in pages

_lock = threading.Lock()
_inside = 0  # threads within a fence
_outside = 0  # the process's own limit, which the last one restores
_statm: tuple[int, int] | None = None  # whose, and the open file: a shape's reading is to open none but the shape's


def check_interpreter() -> None:
    """UserError where Python leaves assertions out: Zarr's do work, and any store would seem damaged."""
    if not __debug__:
        raise UserError("Python leaves assertions out (-O, or PYTHONOPTIMIZE), which Zarr needs: unset that")


def check_limits(address_space: int) -> None:
    """To be called as a command starts: short stacks and few open files are mended where the system lets this process.

    address_space: bytes of it that the command needs. UserError for limits below what is needed, which would end it
    anywhere, by a crash; and what `check_interpreter` raises.
    """
    check_interpreter()
    for kind, flag, what, least, mend in (
        (resource.RLIMIT_AS, "v", "address space", address_space, False),  # who sets it means it
        (resource.RLIMIT_STACK, "s", "stack", STACK_BYTES, True),
        (resource.RLIMIT_NOFILE, "n", "number of open files", OPEN_FILES, True),
    ):
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or soft >= least:
            continue
        if mend and (hard == resource.RLIM_INFINITY or hard >= least):
            resource.setrlimit(kind, (least, hard))
            if flag == "s":
                threading.stack_size(least)  # of threads to come, whose default was set before
            continue
        found, needed = (str(n) if flag == "n" else human(n) for n in (soft, least))
        raise UserError(f"the {what} is limited to {found}, and this command needs {needed}: raise `ulimit -{flag}`")


@contextmanager
def fenced(num_bytes: int) -> Iterator[bool]:
    """Within, this process may take `num_bytes` of address space beyond what it has; for more there is a MemoryError.

    Yields whether that is so: not where the system has no such limit, nor where the process's own is lower already. The
    limit is the whole process's. Fences in one another, or in several threads, end at the farthest one's limit.
    """
    closed = _close(num_bytes)
    try:
        yield closed
    finally:
        if closed:
            _open()


def _close(num_bytes: int) -> bool:
    global _inside, _outside
    size = _address_space()
    if size is None:
        return False
    with _lock:
        now, hard = resource.getrlimit(resource.RLIMIT_AS)
        own = _outside if _inside else now
        limit = max(size + num_bytes, now) if _inside else size + num_bytes
        if own != resource.RLIM_INFINITY and own <= limit:
            return False
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        _inside, _outside = _inside + 1, own
        return True


def _open() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (_outside, hard))


def _address_space() -> int | None:
    """Bytes of this process's; None where the system does not tell."""
    global _statm
    try:
        if _statm is None or _statm[0] != os.getpid():  # a child's would go on telling of its parent
            _statm = os.getpid(), os.open(STATM, os.O_RDONLY)
        return int(os.pread(_statm[1], 100, 0).split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
