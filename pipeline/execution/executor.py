"""Runs shard tasks in this process or in worker processes of its own; cluster.py has dask's workers.

A worker may die: out of memory, a crash in a GL driver, a watchdog's exit. Its task is then given out again, to another
process; a function that is to get past the cause keeps notes of its own. Only a task that kills MAX_DEATHS workers ends
the run.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, Protocol, Self, TypeVar

from recon.pipeline.base.devices import Place, places
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.faults import machine_fault
from recon.pipeline.base.machine import cores, memory_bytes, set_thread_variables
from recon.pipeline.base.wording import one_line
from recon.pipeline.execution.jobs import RETRIES
from recon.pipeline.execution.workers import GRACE_SECONDS, Crew, Worker

T = TypeVar("T")
R = TypeVar("R")

WORKER_BYTES = 1.5e9  # torch with a teacher, or a scene and its pictures
GPU_WORKER_BYTES = 4e9  # CUDA's libraries, a model on its way to the GPU, pictures prepared ahead
MAX_BARREN = 5  # workers in a row that die with no task in hand
_OVER = object()


def default_workers(gpu_workers: int = 0) -> int:
    """As many as there are cores this process may use and memory for beside those with a GPU, at least one."""
    return max(1, min(cores(), int((memory_bytes() - gpu_workers * GPU_WORKER_BYTES) // WORKER_BYTES)))


class Executor(Protocol):
    """Where tasks run. A context manager: leaving it closes it."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time, without those that get a GPU where that is others."""
        ...

    @property
    def gpu_workers(self) -> int:
        """How many tasks that want a GPU run at a time."""
        ...

    @property
    def gpus(self) -> Sequence[str]:
        """Those that workers of this machine are kept to, as CUDA_VISIBLE_DEVICES names them; none: all are alike."""
        ...

    @property
    def isolated(self) -> bool:
        """Whether tasks run in processes whose death, or suicide, does not end this one."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """A line on each machine that got no tasks, or no more, and why."""
        ...

    def run(
        self, function: Callable[[T], R], tasks: Iterable[T | None], *, on_gpu: Iterable[T | None] = ()
    ) -> Iterator[R]:
        """Yield `function(task)` for every task, in order of completion.

        Tasks are read as workers come free, at most 2 * workers ahead of what was yielded. A None among them says that
        there is none now: they are asked again once more is done, and given up where nothing runs any more. An
        exception is tried RETRIES times more; a UserError, the last trial's exception or the MAX_DEATHS-th death of a
        worker over one task is raised as a UserError at once, and what is in flight then is dropped, as it is when the
        iterator is closed. So is a fault of the machine, as a MachineError; where there are several machines, the
        others go on without it. One run at a time: a new one ends one that was left unfinished.

        Args:
            function: a module's function, picklable by name; its results are picklable too.
            tasks: picklable; `str(task)` is what errors call it.
            on_gpu: tasks that gain by a GPU, for the workers that have one; for any where none has.
        """
        ...

    def close(self) -> None:
        """End the workers; what is in flight is dropped."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


class Closing:
    """Closed on leaving a `with`; this machine is the only one, and its GPUs are dealt out to nobody."""

    left_out: Sequence[str] = ()
    gpus: Sequence[str] = ()

    def close(self) -> None:
        """Nothing is held."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def either(*sources: Iterable[T | None]) -> Iterator[T | None]:
    """What any of the sources has, the first ones' first; None where none has anything now."""
    left = [iter(source) for source in sources]
    while left:
        found: Any = None
        for source in list(left):
            found = next(source, _OVER)
            if found is _OVER:
                left.remove(source)
                found = None
            if found is not None:
                break
        if found is not None or left:
            yield found


class InProcess(Closing):
    """Tasks run here, one after the other."""

    workers = gpu_workers = 1
    isolated = False

    def run(
        self, function: Callable[[T], R], tasks: Iterable[T | None], *, on_gpu: Iterable[T | None] = ()
    ) -> Iterator[R]:
        """See `Executor.run`."""
        set_thread_variables()
        for task in either(tasks, on_gpu):
            if task is None:
                return
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


class Processes(Closing):
    """Tasks run in spawned processes (a fork after a GL context or a thread pool hangs).

    They start on the first run, one by one as there is work, and stay for the next: importing torch takes seconds.
    Where there are GPUs to deal out, tasks that want one have workers of their own, each kept to one GPU. The others
    see none.
    """

    isolated = True

    def __init__(self, workers: int, gpu_workers: int = 0, gpus: Sequence[str] = ()) -> None:
        """gpus: as CUDA_VISIBLE_DEVICES names them; with none, tasks that want a GPU go where the others go."""
        self.workers, self.gpus = workers, gpus if gpu_workers else ()
        self.gpu_workers = gpu_workers if self.gpus else workers
        self._crews = [Crew([Place("" if self.gpus else None)] * workers)]
        if self.gpus:
            self._crews.append(Crew(places(self.gpus, gpu_workers)))
        self._current: weakref.ref[Generator[Any, None, None]] | None = None

    def run(
        self, function: Callable[[T], R], tasks: Iterable[T | None], *, on_gpu: Iterable[T | None] = ()
    ) -> Iterator[R]:
        """See `Executor.run`."""
        self._abandon()
        running = self._run(function, [tasks, on_gpu] if self.gpus else [either(tasks, on_gpu)])
        self._current = weakref.ref(running)
        return running

    def close(self) -> None:
        """See `Executor.close`."""
        self._abandon()
        workers = [worker for crew in self._crews for worker in crew.members]
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.bury(GRACE_SECONDS)
        for crew in self._crews:
            crew.members.clear()

    def _abandon(self) -> None:
        """End a run that nobody finished; an exception's traceback may keep it alive."""
        running = self._current() if self._current is not None else None
        if running is not None:
            running.close()

    def _run(self, function: Callable[[T], R], sources: Sequence[Iterable[T | None]]) -> Generator[R, None, None]:
        set_thread_variables()
        for crew, source in zip(self._crews, sources, strict=True):
            crew.begin(function, source)
        done: deque[R] = deque()
        barren = 0
        try:
            while True:
                for crew in self._crews:
                    crew.give_out(len(done))
                if done:  # after the workers have new tasks, for the caller may take its time
                    yield from _drained(done)
                    continue
                if not any(crew.busy for crew in self._crews):
                    return
                for crew, worker, reply in self._listen():
                    job, worker.job = worker.job, None
                    if reply is None:
                        how = worker.bury(GRACE_SECONDS)
                        crew.members.remove(worker)
                        if job is not None:
                            job.died(how)
                            crew.waiting.appendleft(job)
                        elif (barren := barren + 1) >= MAX_BARREN:
                            raise UserError(f"worker processes end before they begin a task ({how})")
                    elif job is not None:
                        barren = 0
                        result = job.settle(reply)
                        if result is None:
                            crew.waiting.appendleft(job)
                        else:
                            done.append(result[0])
        finally:
            for crew in self._crews:  # a shard in hand has no receipt, so nothing is lost
                crew.end()

    def _listen(self) -> list[tuple[Crew, Worker, bytes | None]]:
        """Wait for workers; the replies and, as None, the deaths."""
        whose: dict[Any, tuple[Crew, Worker]] = {
            handle: (crew, worker)
            for crew in self._crews
            for worker in crew.members
            for handle in (worker.pipe, worker.process.sentinel)
        }
        heard = []
        for crew, worker in {whose[handle] for handle in connection.wait(list(whose))}:
            reply = worker.read()
            if reply is None or worker.ready:
                heard.append((crew, worker, reply))
            worker.ready = True
        return heard


def _drained(done: deque[R]) -> Iterator[R]:
    while done:
        yield done.popleft()
