"""One task on its way to a worker and back, and what may go wrong with it."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from recon.pipeline.base.errors import MachineError, NotFetched, UserError
from recon.pipeline.base.faults import machine_fault
from recon.pipeline.base.wording import one_line

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 2  # file systems hiccup
MAX_DEATHS = 24  # room for a function to halve a shard down to its worst rows


@dataclass(frozen=True)
class Trouble:
    """An exception on its way home, as text: not every exception can be pickled, or be unpickled again."""

    kind: type[UserError] | None
    """What it is raised as at home; None: of no such kind, so the task is tried again."""
    text: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        """Of an exception that is being handled."""
        known = machine_fault(error) or error
        kind = next((kind for kind in (MachineError, NotFetched, UserError) if isinstance(known, kind)), None)
        return cls(kind, one_line(known), traceback.format_exc())


@dataclass(eq=False)
class Job:
    """One task on its way through workers, and how often it has gone wrong."""

    name: str
    payload: bytes
    failures: int = 0
    deaths: int = 0

    @classmethod
    def of(cls, function: Callable[[T], R], task: T) -> Job:
        """To be called where both can be pickled."""
        return cls(str(task), pickle.dumps((function, task)))

    def settle(self, reply: bytes) -> tuple[Any] | None:
        """A worker's reply: the result, in a tuple, or None where the task has to be given out again."""
        value, trouble = pickle.loads(reply)  # noqa: S301 - from a process that this one started or was told to trust
        if trouble is None:
            return (value,)
        if trouble.kind:
            raise trouble.kind(trouble.text)
        self.failures += 1
        if self.failures <= RETRIES:
            return None
        error = UserError(f"{self.name} failed {self.failures} times: {trouble.text}")
        error.add_note(trouble.traceback)
        raise error

    def died(self, how: str, times: int = 1) -> None:
        """Note that a worker ended over it; UserError at the MAX_DEATHS-th time."""
        self.deaths += times
        if self.deaths >= MAX_DEATHS:
            raise UserError(
                f"{self.name} killed {self.deaths} workers ({how}); run it with --workers 0 to see why, "
                "with more memory or without the shapes that cause it"
            )


def at_hand(jobs: Iterator[Job | None], most: int) -> Iterator[Job]:
    """The next ones, up to the first None: there is none now."""
    for job in islice(jobs, max(0, most)):
        if job is None:
            return
        yield job


def fault_in(reply: bytes) -> str:
    """What a worker's reply says is wrong with its machine; "" where it says no such thing."""
    trouble = pickle.loads(reply)[1]  # noqa: S301 - as in `Job.settle`
    return trouble.text if trouble and trouble.kind is MachineError else ""


def attempt(payload: bytes) -> bytes:
    """The worker's side of a job: its reply, whatever the function does short of ending the process."""
    try:
        function, task = pickle.loads(payload)  # noqa: S301 - from the process that started this one, or dask's client
        return pickle.dumps((function(task), None))
    except Exception as error:
        return pickle.dumps((None, Trouble.of(error)))
