"""Runs stages over the store's rows: plans their shards, has them computed, logs what that took.

One task computes and writes one whole shard. Its receipt lists, a row, a digest of what went in; a row whose digest
differs is computed again, and nothing else is.

Several stages can go side by side, one behind another: a shard of the second is given out once all shards of the first
that it reads are finished. Or together, where they read the same files: a worker gets all their shards of some rows.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from recon.pipeline.base.code import versions
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.execution.executor import Executor
from recon.pipeline.execution.planning import StagePlan, Task, Together, plan_stage
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.execution.work import TaskResult, run_tasks
from recon.pipeline.store.feature_store import WritableStore
from recon.pipeline.store.receipts import Failure

T = TypeVar("T")
R = TypeVar("R")

ROW_SECONDS = 120.0


@dataclass(frozen=True)
class StageResult:
    """What a run of a stage did; `failed` holds those of its rows that are set aside, now or before."""

    kind: str
    key: str
    total: int
    computed: int
    failed: dict[str, Failure]
    seconds: float


@dataclass(eq=False)
class Work:
    """A stage to be brought up to date, and how far that is.

    A stage that goes `behind` another is given its rows by that one, as `of_those` makes them. `progress` is told (rows
    done, rows to do, bytes written) after every shard, `begin` the plan before anything is written: it may refuse it by
    a UserError.
    """

    stage: Stage
    rows: Sequence[Row] = ()
    behind: Work | None = None
    of_those: Callable[[Sequence[Row]], list[Row]] = list
    progress: Callable[[int, int, int], None] = lambda done, total, written: None
    begin: Callable[[StagePlan], None] = lambda plan: None
    plan: StagePlan = field(init=False)
    failed: dict[str, Failure] = field(init=False)
    done: int = 0
    seconds: float = 0.0
    _written: int = 0
    _worked: float = 0.0

    def prepare(self, store: WritableStore, executor: Executor) -> None:
        """Plan it, and make room for it in the store where there is something to do."""
        if self.behind:
            self.rows = self.of_those(self.behind._handed_on(store))
        self.plan = plan_stage(store, self.stage, self.rows)
        self.failed = dict(self.plan.failed)
        self._peaks: dict[int, int] = {os.getpid(): peak_bytes()}
        self._copies = deque(task for task in self.plan.tasks if task.copies)
        fresh = [task for task in self.plan.tasks if not task.copies]
        if self.behind:  # in the order in which what they read comes to be there
            fresh.sort(key=lambda task: (task.shard.number, task.shard.lane))
        self._fresh = deque(fresh)
        self._open = Counter((task.shard.lane, task.shard.number) for task in self.plan.tasks)
        self._fresh_open = Counter((task.shard.lane, task.shard.number) for task in fresh)
        if not self.plan.tasks:
            return
        self.begin(self.plan)
        store.guard()
        attributes = attributes_of(self.stage, executor)
        group = store.require_key(self.stage.kind, self.plan.key, self.stage.recipe, self.stage.columns, attributes)
        for column in self.stage.columns:
            store.require_column(group, column, self.rows[-1].index + 1, self.stage.lanes, self.plan.shard_rows)
        self.progress(0, self.plan.todo, 0)

    def next(self) -> Task | None:
        """A task whose time has come; None where there is none now."""
        # Copies first: they cost little, and what is behind may wait for them.
        if self._copies and self._has_sources(self._copies[0]) and self._is_there(self._copies[0]):
            return self._settled(self._copies.popleft())
        if self._fresh and self._is_there(self._fresh[0]):
            return self._settled(self._fresh.popleft())
        return None

    def take(self, result: TaskResult) -> None:
        """A task has come home."""
        where = result.shard.lane, result.shard.number
        self._open[where] -= 1
        if not result.copied:
            self._fresh_open[where] -= 1
        self.done, self._written = self.done + result.rows, self._written + result.bytes
        self._peaks[result.pid] = max(self._peaks.get(result.pid, 0), result.peak_bytes)
        self.failed |= result.failed
        self._worked += result.seconds
        self.progress(self.done, self.plan.todo, self._written)

    def log(self, store: WritableStore, workers: int) -> None:
        """Note in the store what it took."""
        self._peaks[os.getpid()] = peak_bytes()
        store.log(
            {
                "stage": self.stage.kind,
                "key": self.plan.key,
                "rows": self.done,
                "failed": len(self.failed),
                "seconds": round(self.seconds, 3),
                "workers": workers,
                "peak_memory_gb": round(sum(self._peaks.values()) / 2**30, 3),
                "host": socket.gethostname(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": versions(),
            }
        )

    def result(self) -> StageResult:
        """What came of it."""
        plan = self.plan
        return StageResult(self.stage.kind, plan.key, plan.total, self.done, self.failed, self.seconds)

    def _handed_on(self, store: WritableStore) -> list[Row]:
        """Its rows as the stage behind gets them, if all that it has to do goes well."""
        if not self.rows:
            return []
        ok = store.ok(self.plan.key, self.rows[-1].index + 1)
        todo = {row.index for task in self.plan.tasks for row in task.rows if row.ready}
        return [r if r.index in todo or ok[r.index] else replace(r, inputs="", ready=False) for r in self.rows]

    def _has_sources(self, task: Task) -> bool:
        """Whether what it copies is there, and nobody else is at its shard."""
        lane, size = task.shard.lane, self.plan.shard_rows
        shards = {task.shard.number, *(source // size for source in task.copies.values())}
        return not any(self._fresh_open[lane, number] for number in shards)

    def _is_there(self, task: Task) -> bool:
        """Whether the shards of the stage before that hold its rows are finished."""
        if not self.behind:
            return True
        size = self.behind.plan.shard_rows
        return not any(self.behind._open[0, number] for number in {row.index // size for row in task.rows})

    def _settled(self, task: Task) -> Task:
        """The task without the rows that have failed in the stage before."""
        if not self.behind or not any(row.name in self.behind.failed for row in task.rows):
            return task
        failed = self.behind.failed
        rows = tuple(replace(r, inputs="", ready=False) if r.name in failed else r for r in task.rows)
        return replace(task, rows=rows)


def run_stage(
    store: WritableStore,
    stage: Stage,
    rows: Sequence[Row],
    executor: Executor,
    limit: float = ROW_SECONDS,
    progress: Callable[[int, int, int], None] = lambda done, total, written: None,
    begin: Callable[[StagePlan], None] = lambda plan: None,
) -> StageResult:
    """Bring a stage up to date; see `Work`. `limit`: how many seconds a row may take without getting on."""
    return run_side_by_side(store, [Work(stage, rows, progress=progress, begin=begin)], executor, limit)[0]


def run_side_by_side(
    store: WritableStore, works: Sequence[Work], executor: Executor, limit: float = ROW_SECONDS, *, join: bool = False
) -> list[StageResult]:
    """Bring stages of different keys up to date, each after the one that it is behind.

    join: they read the same files, row by row and without a GPU; one worker makes all their shards of some rows.
    """
    started = time.monotonic()
    for work in works:
        work.prepare(store, executor)
    by_key = {work.plan.key: work for work in works if work.plan.tasks}
    run, limit_there = uuid.uuid4().hex, limit if executor.isolated else None
    # Those that others are behind come first: a GPU waits for them.
    order = sorted(by_key.values(), key=lambda work: all(other.behind is not work for other in works))
    groups = _groups(order, executor.workers) if join else deque()

    def ready(gpu: bool) -> Iterator[Together | None]:
        while True:
            if groups and not gpu:
                found = groups.popleft()
            else:
                found = tuple(islice((task for work in order if work.stage.gpu is gpu and (task := work.next())), 1))
            yield Together(tuple(replace(task, run=run, limit=limit_there) for task in found)) if found else None

    try:
        for outcome in executor.run(run_tasks, ready(False), on_gpu=ready(True)) if by_key else ():
            for result in outcome.done:
                work = by_key[result.shard.key]
                work.take(result)
                work.seconds = time.monotonic() - started
            groups.extendleft((task,) for task in reversed(outcome.left))
            store.guard()
    finally:
        shutil.rmtree(store.path / "running" / run, ignore_errors=True)
    if join and (worked := sum(work._worked for work in order)):
        for work in order:
            work.seconds = (time.monotonic() - started) * work._worked / worked
    for work in by_key.values():
        work.log(store, executor.gpu_workers if work.stage.gpu else executor.workers)
    return [work.result() for work in works]


def _groups(works: Sequence[Work], workers: int) -> deque[tuple[Task, ...]]:
    """Take the works' tasks out of them, in groups of those that are about the same rows.

    A group spans the longest shard of a stage. A stage with fewer shards than there are workers keeps its own, or some
    workers would get nothing; what it reads again is then little enough for the page cache.
    """
    joined = [work for work in works if len(work._fresh) >= workers]
    span = max((work.plan.shard_rows for work in joined), default=1)
    found: dict[int, list[Task]] = {}
    for work in joined:
        for task in work._fresh:
            found.setdefault(task.shard.start // span, []).append(task)
        work._fresh.clear()
    groups: deque[tuple[Task, ...]] = deque()
    for _, tasks in sorted(found.items()):
        several = len({task.shard.key for task in tasks}) > 1
        groups.extend([tuple(tasks)] if several else ((task,) for task in tasks))
    return groups


def ask(executor: Executor, function: Callable[[T], R], about: T) -> R:
    """What `function`, a module's, says of something: in a worker where they have GPUs of their own, else here.

    So this process loads no model onto a GPU that workers fill.
    """
    return next(iter(executor.run(function, (), on_gpu=[about]))) if executor.gpus else function(about)


def attributes_of(stage: Stage, executor: Executor) -> dict[str, Any]:
    """A stage's attributes, of which some are what its model makes of fixed inputs."""
    return ask(executor, _attributes, stage) if stage.gpu else stage.attributes


def _attributes(stage: Stage) -> dict[str, Any]:
    return stage.attributes
