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
    hangs). A worker that dies (out of memory, a crash in the GL driver) loses the tasks in flight only: each of them
    runs again in a process of its own, and the one that kills that too is named in a UserError.
    """
    set_thread_variables()
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(task)
        return
    waiting = list(tasks)
    while waiting:
        suspects, waiting = yield from _run_pool(function, waiting, workers, in_flight=2 * workers)
        for suspect in suspects:
            guilty, _ = yield from _run_pool(function, [suspect], workers=1, in_flight=1)
            if guilty:
                raise UserError(f"a worker died twice while it ran {suspect}; run it with --workers 1 to see why")


def _run_pool(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, in_flight: int
) -> Generator[Result, None, tuple[list[Task], list[Task]]]:
    """One pool's life; returns the tasks in flight when a worker died and those not begun (both empty: all done)."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_start_worker)
    waiting = list(reversed(tasks))
    running: dict[Future[Result], Task] = {}
    finished = False
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                task = waiting.pop()
                running[pool.submit(function, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                del running[future]
                yield result
        finished = True
        return [], []
    except BrokenProcessPool:
        return list(running.values()), waiting[::-1]
    finally:
        if not finished:  # nothing in flight has a receipt, so nothing is lost by stopping it now
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=finished, cancel_futures=True)
