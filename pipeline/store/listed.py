"""Which rows a data set has now: what a ref lists, kept as ranges, and what it listed before."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def as_ranges(rows: Iterable[int]) -> list[list[int]]:
    """[first, one after the last] of every run of consecutive rows, ascending; rows may come in any order, or twice."""
    numbers = np.unique(np.fromiter(rows, np.int64))
    if not len(numbers):
        return []
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [[int(run[0]), int(run[-1]) + 1] for run in runs]


def of_ranges(ranges: Iterable[Iterable[int]]) -> Rows:
    """The rows of ranges, ascending."""
    parts = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def relist(document: dict[str, Any], known: Rows, rows: Iterable[int], whole: bool) -> int:
    """Note in a ref's document that its manifest lists `rows`; how many are retired by that.

    Where the listing is not the `whole` one, what was listed stays so. `known` is what an earlier version's document,
    which does not say, means: all rows of the data set. Retired rows are kept by the time, for `gc`; those that are
    listed again are retired no more.
    """
    before = of_ranges(document["listed"]) if "listed" in document else known
    now = np.unique(np.fromiter(rows, np.int64))
    if not whole:
        now = np.union1d(before, now)
    gone = np.setdiff1d(before, now)
    document["listed"] = as_ranges(now.tolist())
    times = {when: np.setdiff1d(of_ranges(ranges), now) for when, ranges in document.get("retired", {}).items()}
    if len(gone):
        when = datetime.now(UTC).isoformat(timespec="seconds")
        times[when] = np.union1d(times.get(when, gone), gone)
    document["retired"] = {when: as_ranges(held.tolist()) for when, held in sorted(times.items()) if len(held)}
    return len(gone)
