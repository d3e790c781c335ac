"""What a worker had in hand when it died, so that whoever gets its task next steps around the row that killed it.

A worker notes the rows it is about to work on in a file of their task. A crash (faulthandler writes its traceback
there too), a kill or a row that outlasts its time limit leaves the note behind. A single row noted at two deaths is set
aside; of several rows in hand at once, each half is tried by itself next time.
"""

from __future__ import annotations

import faulthandler
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from recon.pipeline.store.receipts import Failure

DEATHS = 2
_START, _OVER = "\x01start ", "\x01over"  # control characters: no traceback holds them


@dataclass(frozen=True)
class Death:
    """One worker's end: the rows it had in hand and what the interpreter could still say."""

    rows: tuple[int, ...]
    report: str

    def failure(self, limit: float) -> Failure:
        """The row's entry in the quarantine."""
        if "Timeout (" in self.report:
            return Failure(f"took longer than {limit:g} s, {DEATHS} times", self.report)
        if "Fatal Python error" in self.report:
            what = self.report.split("Fatal Python error: ", 1)[1].splitlines()[0]
            return Failure(f"crashed its worker {DEATHS} times: {what}", self.report)
        return Failure(f"its worker was killed {DEATHS} times (out of memory?)")


def read_deaths(path: Path) -> list[Death]:
    """The deaths a task's file tells of, oldest first."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    deaths = []
    for attempt in text.split(_START)[1:]:
        _, noted, last = attempt.rpartition("\nrows ")
        rows, _, report = last.partition("\n")
        if noted and report.strip() != _OVER:
            deaths.append(Death(tuple(map(int, rows.split())), report.strip()))
    return deaths


def split_by(deaths: Sequence[Death], rows: Sequence[int]) -> tuple[list[list[int]], dict[int, Death]]:
    """Groups of rows to work on one after the other, and the rows to leave out with the death to blame on each."""
    alone = Counter(death.rows[0] for death in deaths if len(death.rows) == 1)
    blamed = {death.rows[0]: death for death in deaths if len(death.rows) == 1 and alone[death.rows[0]] >= DEATHS}
    groups = [[row for row in rows if row not in blamed]]
    for death in deaths:
        halves = []
        for group in groups:
            fatal = len(group) > 1 and set(group) <= set(death.rows)
            middle = len(group) // 2
            halves += [group[:middle], group[middle:]] if fatal else [group]
        groups = halves
    return [group for group in groups if group], blamed


class Watch:
    """Keeps a task's notes and ends the process when a row takes longer than `limit` seconds.

    For processes made to be replaced: the end is `_exit`, which works while a library holds the interpreter's lock.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self.path, self.limit = path, limit

    def __enter__(self) -> Watch:
        global _watch
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab", buffering=0)
        self.file.write(f"{_START}{socket.gethostname()} {os.getpid()}\n".encode())
        self._enabled = faulthandler.is_enabled()
        faulthandler.enable(self.file)
        _watch = self
        return self

    def note(self, rows: Sequence[int]) -> None:
        """The work on these rows begins, and with it their time."""
        self.file.write(f"rows {' '.join(map(str, rows))}\n".encode())
        faulthandler.dump_traceback_later(self.limit * len(rows), exit=True, file=self.file)

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
                file.write(f"{_OVER}\n".encode())


_watch: Watch | None = None  # a process works on one task at a time


def in_hand(rows: Sequence[int]) -> None:
    """Note that the work on these rows begins; does nothing where no one watches."""
    if _watch is not None:
        _watch.note(rows)
