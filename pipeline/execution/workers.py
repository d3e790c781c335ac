"""Worker processes on this machine: each with one job in hand."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import TypeVar

from recon.pipeline.base.devices import Place
from recon.pipeline.base.interrupts import without_interrupts
from recon.pipeline.execution.jobs import Job, at_hand, attempt

T = TypeVar("T")
R = TypeVar("R")

GRACE_SECONDS = 5.0


class Crew:
    """Workers that are alike in what they may use of this machine, and the tasks they are given."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.members: list[Worker] = []
        self.waiting: deque[Job] = deque()
        self._places = places
        self._source: Iterator[Job | None] = iter(())

    @property
    def busy(self) -> bool:
        """Whether anything is in hand or waits."""
        return bool(self.waiting or self._in_hand())

    def begin(self, function: Callable[[T], R], tasks: Iterable[T | None]) -> None:
        """Have these tasks done."""
        self.waiting.clear()
        self._source = (None if task is None else Job.of(function, task) for task in tasks)

    def give_out(self, ahead: int) -> None:
        """Put jobs into idle hands; start workers where there are not enough.

        ahead: how many results were not taken yet.
        """
        most = 2 * len(self._places) - len(self.waiting) - len(self._in_hand()) - ahead
        self.waiting.extend(at_hand(self._source, most))
        for worker in self.members:
            if self.waiting and worker.ready and worker.job is None and worker.take(self.waiting[0]):
                self.waiting.popleft()
        wanted = min(len(self._places), len(self._in_hand()) + len(self.waiting))
        for _ in range(wanted - len(self.members)):
            taken = {worker.number for worker in self.members}
            number = next(number for number in range(len(self._places)) if number not in taken)
            self.members.append(Worker(number, self._places[number]))

    def end(self) -> None:
        """Drop what waits, and whoever has something in hand."""
        self.waiting.clear()
        self._source = iter(())
        for worker in self._in_hand():
            worker.process.kill()
            worker.bury(GRACE_SECONDS)
            self.members.remove(worker)

    def _in_hand(self) -> list[Worker]:
        return [worker for worker in self.members if worker.job is not None]


class Worker:
    """One spawned process and the job it has in hand."""

    def __init__(self, number: int, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.job: Job | None = None
        self.ready = False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, place), daemon=True)
        with without_interrupts():
            self.process.start()
        theirs.close()

    def take(self, job: Job) -> bool:
        """Whether it took the job; one that has just died did not."""
        try:
            self.pipe.send_bytes(job.payload)
        except OSError:
            return False
        self.job = job
        return True

    def read(self) -> bytes | None:
        """What it said; None when it is dead and has nothing more to say."""
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                return self.pipe.recv_bytes()
        return None

    def dismiss(self) -> None:
        """An idle worker leaves when its pipe closes; one that is still importing would take its time."""
        self.pipe.close()
        if not self.ready:
            self.process.kill()

    def bury(self, seconds: float) -> str:
        """Wait for its end, by force after `seconds`; says how it ended."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.pipe.close()
        self.process.close()
        if code >= 0:
            return f"exit status {code}"
        name = next((s.name for s in signal.Signals if s == -code), "unknown")
        return f"signal {-code} ({name})"


def _serve(pipe: connection.Connection, place: Place) -> None:
    """A worker's life: until its parent closes the pipe or dies."""
    place.enter()
    threading.Thread(target=_follow_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        pipe.send_bytes(b"ready")
        while True:
            pipe.send_bytes(attempt(pipe.recv_bytes()))


def _follow_parent() -> None:
    """End with the parent even in the middle of a task: another run may be about to write the same shard."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
