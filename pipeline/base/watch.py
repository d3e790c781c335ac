"""A worker's notes of the rows it has in hand, and its end when they do not get on.

For processes made to be replaced: by the notes it is known what a dead one was about (`pipeline/execution/hazards.py`).
"""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

START, OVER = "\x01start ", "\x01over"  # control characters: no traceback holds them
PATIENCE = 10
"""How often the time of the last part the next may take, where that is more than the limit: some models are slow."""
LOAD_SECONDS = 3600.0
"""What a model may take to be read, moved and tried, which is no row's doing."""


class Watch:
    """Keeps a task's notes and ends the process when its rows do not get on for `limit` seconds.

    The end is `_exit`, which works while a library holds the interpreter's lock.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self.path, self.limit = path, limit

    def __enter__(self) -> Watch:
        global _watch
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab", buffering=0)
        self.file.write(f"{START}{socket.gethostname()} {os.getpid()}\n".encode())
        self._enabled = faulthandler.is_enabled()
        faulthandler.enable(self.file)
        _watch = self
        return self

    def note(self, rows: Sequence[int]) -> None:
        """The work on these rows begins, and with it their time."""
        self.file.write(f"rows {' '.join(map(str, rows))}\n".encode())
        self.allow(self.limit)

    def allow(self, seconds: float) -> None:
        """From now on."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """A task that ends, well or by an exception, was no death."""
        global _watch
        _watch = None
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if self._enabled:
            faulthandler.enable()
        self.file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)
        else:
            with self.path.open("ab") as file:
                file.write(f"{OVER}\n".encode())


_watch: Watch | None = None  # a process works on one task at a time


def in_hand(rows: Sequence[int]) -> None:
    """Note that the work on these rows begins; does nothing where no one watches."""
    if _watch is not None:
        _watch.note(rows)


def getting_on(last: float = 0.0) -> None:
    """A part of the rows in hand is done, and took `last` seconds: the time of the next one begins."""
    if _watch is not None:
        _watch.allow(max(_watch.limit, PATIENCE * last))


@contextmanager
def unhurried() -> Iterator[None]:
    """What is done within is no row's doing, such as loading a model: LOAD_SECONDS, then the rows' time begins anew."""
    if _watch is not None:
        _watch.allow(max(_watch.limit, LOAD_SECONDS))
    try:
        yield
    finally:
        getting_on()
