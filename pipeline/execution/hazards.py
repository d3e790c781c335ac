"""What a worker had in hand when it died, so that whoever gets its task next steps around the row that killed it.

A worker notes the rows it is about to work on in a file of their task (`pipeline/base/watch.py`). A crash (faulthandler
writes its traceback there too), a kill or rows that do not get on leave the note behind. A single row noted at two
deaths is set aside; of several rows in hand at once, each half is tried by itself next time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recon.pipeline.base.watch import OVER, START
from recon.pipeline.store.receipts import Failure

DEATHS = 2


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
    for attempt in text.split(START)[1:]:
        _, noted, last = attempt.rpartition("\nrows ")
        rows, _, report = last.partition("\n")
        if noted and report.strip() != OVER:
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
