"""Runs shard tasks in this process or in spawned worker processes, a bounded number at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

# One thread a worker: the cores are shared out between processes, and a matrix product split over another number of
# threads would round differently.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
MAX_ATTEMPTS = 2


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_thread_variables() -> None:
    """One thread a library, here and in spawned workers; to be called before numpy or torch is imported."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")


def _start_worker() -> None:
    """Workers leave Ctrl-C to the parent, which stops them after their results are in."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for every task, in order of completion.

    With one worker the tasks run here; with more, in spawned processes (a fork after a GL context or a thread pool
    hangs). A worker that dies (out of memory, a crash in the GL driver) loses the tasks in flight only: they run again
    in a fresh pool, and a task that was in flight at `MAX_ATTEMPTS` deaths raises UserError.
    """
    set_thread_variables()
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(task)
        return
    waiting = list(reversed(tasks))
    attempts: dict[int, int] = {}
    while waiting:
        waiting = yield from _run_pool(function, waiting, workers, attempts)


def _run_pool(
    function: Callable[[Task], Result], waiting: list[Task], workers: int, attempts: dict[int, int]
) -> Generator[Result, None, list[Task]]:
    """One pool's life; returns the tasks still to run (all of them done: none) after a worker's death."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_start_worker)
    running: dict[Future[Result], Task] = {}
    finished = False
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                task = waiting.pop()
                running[pool.submit(function, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                del running[future]
                yield result
        finished = True
        return []
    except BrokenProcessPool as error:
        for task in running.values():
            attempts[id(task)] = attempts.get(id(task), 0) + 1
            if attempts[id(task)] >= MAX_ATTEMPTS:
                raise UserError(
                    f"a worker died twice while it ran {task}; run it with --workers 1 to see why"
                ) from error
        return [*waiting, *running.values()]
    finally:
        if (
            not finished
        ):  # interrupted or broken: nothing in flight has a receipt, so nothing is lost by stopping it now
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=finished, cancel_futures=True)
