"""Ctrl-C reaches every process of a terminal's group; those that are somebody's workers are ended by whose they are."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes and threads started within never see Ctrl-C, which reaches the whole process group.

    This process stops its workers itself; without this, one that is importing would print a traceback.
    """
    resource_tracker.ensure_running()  # which would clear the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
