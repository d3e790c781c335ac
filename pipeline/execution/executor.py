"""Runs shard tasks in this process or in worker processes of its own; cluster.py has dask's workers.

A worker may die: out of memory, a crash in a GL driver, a watchdog's exit. Its task is then given out again, to another
process; a function that is to get past the cause keeps notes of its own. Only a task that kills MAX_DEATHS workers ends
the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import connection
from typing import Any, Protocol, Self, TypeVar

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.faults import machine_fault
from recon.pipeline.base.interrupts import without_interrupts
from recon.pipeline.base.machine import cores, memory_bytes, set_thread_variables
from recon.pipeline.base.wording import one_line
from recon.pipeline.execution.jobs import RETRIES, Job, attempt

T = TypeVar("T")
R = TypeVar("R")

WORKER_BYTES = 1.5e9  # torch with a teacher, or a scene and its pictures
MAX_BARREN = 5  # workers in a row that die with no task in hand
GRACE_SECONDS = 5.0


def default_workers() -> int:
    """As many as there are cores this process may use and memory for, at least one."""
    return max(1, min(cores(), int(memory_bytes() // WORKER_BYTES)))


class Executor(Protocol):
    """Where tasks run. A context manager: leaving it closes it."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        ...

    @property
    def isolated(self) -> bool:
        """Whether tasks run in processes whose death, or suicide, does not end this one."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """A line on each machine that got no tasks, or no more, and why."""
        ...

    def run(self, function: Callable[[T], R], tasks: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """Yield `function(task)` for every task, in order of completion.

        `tasks` is read as workers come free, at most 2 * workers ahead of what was yielded. An exception is tried
        RETRIES times more; a UserError, the last trial's exception or the MAX_DEATHS-th death of a worker over one task
        is raised as a UserError at once, and what is in flight then is dropped, as it is when the iterator is closed.
        So is a fault of the machine, as a MachineError; where there are several machines, the others go on without it.
        One run at a time: a new one ends one that was left unfinished.

        Args:
            function: a module's function, picklable by name; its results are picklable too.
            tasks: picklable; `str(task)` is what errors call it.
            gpu: whether the tasks gain by a GPU, which a cluster may have on some workers only.
        """
        ...

    def close(self) -> None:
        """End the workers; what is in flight is dropped."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


class Closing:
    """Closed on leaving a `with`; this machine is the only one."""

    left_out: Sequence[str] = ()

    def close(self) -> None:
        """Nothing is held."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class InProcess(Closing):
    """Tasks run here, one after the other."""

    workers = 1
    isolated = False

    def run(self, function: Callable[[T], R], tasks: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Executor.run`."""
        set_thread_variables()
        for task in tasks:
            failures = 0
            while True:
                try:
                    result = function(task)
                    break
                except Exception as error:
                    known = machine_fault(error) or error
                    if known is not error:
                        raise known from error
                    if isinstance(known, UserError):
                        raise
                    failures += 1
                    if failures > RETRIES:
                        raise UserError(f"{task} failed {failures} times: {one_line(error)}") from error
            yield result


# ---- worker processes


class Processes(Closing):
    """Tasks run in spawned processes (a fork after a GL context or a thread pool hangs).

    They start on the first run, one by one as there is work, and stay for the next: importing torch takes seconds.
    """

    isolated = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._crew: list[_Worker] = []
        self._current: weakref.ref[Generator[Any, None, None]] | None = None

    def run(self, function: Callable[[T], R], tasks: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Executor.run`."""
        self._abandon()
        running = self._run(function, tasks)
        self._current = weakref.ref(running)
        return running

    def close(self) -> None:
        """See `Executor.close`."""
        self._abandon()
        for worker in self._crew:
            worker.dismiss()
        for worker in self._crew:
            worker.bury(GRACE_SECONDS)
        self._crew.clear()

    def _abandon(self) -> None:
        """End a run that nobody finished; an exception's traceback may keep it alive."""
        running = self._current() if self._current is not None else None
        if running is not None:
            running.close()

    def _run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R, None, None]:
        set_thread_variables()
        source = (Job.of(function, task) for task in tasks)
        waiting: deque[Job] = deque()
        done: deque[R] = deque()
        barren = 0
        try:
            while True:
                waiting.extend(islice(source, 2 * self.workers - len(waiting) - len(self._busy()) - len(done)))
                self._give_out(waiting)
                while done:  # after the workers have new tasks, for the caller may take its time
                    yield done.popleft()
                if not waiting and not self._busy():
                    return
                for worker, reply in self._listen():
                    job, worker.job = worker.job, None
                    if reply is None:
                        how = worker.bury(GRACE_SECONDS)
                        self._crew.remove(worker)
                        if job is not None:
                            job.died(how)
                            waiting.appendleft(job)
                        elif (barren := barren + 1) >= MAX_BARREN:
                            raise UserError(f"worker processes end before they begin a task ({how})")
                    elif job is not None:
                        barren = 0
                        result = job.settle(reply)
                        if result is None:
                            waiting.appendleft(job)
                        else:
                            done.append(result[0])
        finally:
            for worker in self._busy():  # its shard has no receipt, so nothing is lost
                worker.process.kill()
                worker.bury(GRACE_SECONDS)
                self._crew.remove(worker)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._crew if worker.job is not None]

    def _give_out(self, waiting: deque[Job]) -> None:
        """Put the waiting jobs into idle hands; start workers where there are not enough."""
        for worker in self._crew:
            if waiting and worker.ready and worker.job is None and worker.take(waiting[0]):
                waiting.popleft()
        for _ in range(min(self.workers, len(self._busy()) + len(waiting)) - len(self._crew)):
            self._crew.append(_Worker())

    def _listen(self) -> list[tuple[_Worker, bytes | None]]:
        """Wait for workers; the replies and, as None, the deaths."""
        whose: dict[Any, _Worker] = {
            handle: worker for worker in self._crew for handle in (worker.pipe, worker.process.sentinel)
        }
        heard = []
        for worker in {whose[handle] for handle in connection.wait(list(whose))}:
            reply = worker.read()
            if reply is None or worker.ready:
                heard.append((worker, reply))
            worker.ready = True
        return heard


class _Worker:
    """One spawned process and the job it has in hand."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.job: Job | None = None
        self.ready = False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
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


def _serve(pipe: connection.Connection) -> None:
    """A worker's life: until its parent closes the pipe or dies."""
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
