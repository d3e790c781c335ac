"""Plans and runs one stage over the store's rows: which shards lack rows, who computes them, what a receipt then says.

One task computes and writes one whole shard. Its receipt lists, a row, a digest of what went in; a row whose digest
differs is computed again, and nothing else is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.execution.executor import run_tasks
from pipeline.store import FeatureStore
from pipeline.store.receipts import Failure, Receipt, digest_of
from pipeline.store.records import Column

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One row of a stage's work.

    `inputs` digests all that its result depends on beside the recipe; a row that is not `ready` lacks something
    upstream, has no inputs ("") and stays empty.
    """

    index: int
    name: str  # the shape's uid, or the prompt
    inputs: str
    ready: bool = True
    source: str = ""


@dataclass
class Block:
    """What a stage made of some rows: per column one value a row, in the rows' order; None where the row failed."""

    columns: dict[str, list[Any]]
    failed: dict[int, Failure] = field(default_factory=dict)


class Stage(Protocol):
    """A column group of the store and how to fill it. Instances are small and picklable; models live in the worker."""

    @property
    def kind(self) -> str: ...
    @property
    def recipe(self) -> dict[str, Any]: ...
    @property
    def attributes(self) -> dict[str, Any]:
        """Kept beside the recipe for those who read it; never part of the key."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]: ...
    @property
    def lanes(self) -> int:
        """Length of a leading axis (augmentation draws), 0 for none."""
        ...

    @property
    def shard_rows(self) -> int: ...

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block: ...


@dataclass(frozen=True)
class Task:
    """One shard of one stage."""

    stage: Stage
    store: Path
    key: str
    lane: int
    shard: int
    shard_rows: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return f"{self.stage.kind} shard {self.shard}"


@dataclass(frozen=True)
class TaskResult:
    """What a worker reports of a finished shard."""

    rows: int
    failed: dict[str, Failure]
    pid: int
    peak_bytes: int


@dataclass(frozen=True)
class StagePlan:
    """What a stage still has to do."""

    key: str
    tasks: tuple[Task, ...]
    total: int
    todo: int
    stale: int
    """Rows of `todo` that were done from other inputs."""


@dataclass(frozen=True)
class StageResult:
    """What a run of a stage did; `failed` holds those of its rows that are set aside, now or before."""

    kind: str
    key: str
    total: int
    computed: int
    failed: dict[str, Failure]
    seconds: float


def plan_stage(store: FeatureStore, stage: Stage, rows: Sequence[Row]) -> StagePlan:
    """Compare the receipts with `rows` (ascending, not always all of the store's): the shards to compute."""
    key = digest_of(stage.recipe)
    tasks, todo, stale = [], 0, 0
    shards = [(shard, list(group)) for shard, group in groupby(rows, lambda row: row.index // stage.shard_rows)]
    for lane in range(max(stage.lanes, 1)):
        for shard, wanted in shards:
            receipt = Receipt.read(store.receipt_path(key, lane, shard))
            done = dict(zip(range(*receipt.rows), receipt.inputs, strict=True)) if receipt else {}
            missing = tuple(row for row in wanted if done.get(row.index) != row.inputs)
            if missing:
                tasks.append(Task(stage, store.path, key, lane, shard, stage.shard_rows, missing))
                todo += len(missing)
                stale += sum(bool(done.get(row.index)) for row in missing)
    return StagePlan(key, tuple(tasks), len(rows) * max(stage.lanes, 1), todo, stale)


def run_stage(
    store: FeatureStore,
    stage: Stage,
    rows: Sequence[Row],
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Bring a stage up to date. `progress` is told (rows done, rows to do) after every shard."""
    started = time.monotonic()
    plan = plan_stage(store, stage, rows)
    peaks: dict[int, int] = {}
    done = 0
    if plan.tasks:
        group = store.require_key(stage.kind, plan.key, stage.recipe, stage.attributes)
        for column in stage.columns:
            store.require_column(group, column, rows[-1].index + 1, stage.lanes, stage.shard_rows)
        progress(0, plan.todo)
        for result in run_tasks(run_task, plan.tasks, workers):
            done += result.rows
            peaks[result.pid] = max(peaks.get(result.pid, 0), result.peak_bytes)
            progress(done, plan.todo)
    seconds = time.monotonic() - started
    names = {row.name for row in rows}  # under the same key may lie another manifest's failures
    failed = {name: failure for name, failure in store.failures(plan.key).items() if name in names}
    if plan.tasks:
        peaks[os.getpid()] = peak_bytes()
        store.log(
            {
                "stage": stage.kind,
                "key": plan.key,
                "rows": done,
                "failed": len(failed),
                "seconds": round(seconds, 3),
                "workers": workers,
                "peak_memory_gb": round(sum(peaks.values()) / 2**30, 3),
                "host": socket.gethostname(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": versions(),
            }
        )
    return StageResult(stage.kind, plan.key, plan.total, done, failed, seconds)


def run_task(task: Task) -> TaskResult:
    """Compute, write and sign one shard. Runs in a worker; safe to run again after any interruption."""
    started = time.monotonic()
    store = FeatureStore.open(task.store, write=True)
    path = store.receipt_path(task.key, task.lane, task.shard)
    receipt = Receipt.read(path)
    ready = [row for row in task.rows if row.ready]
    block = task.stage.compute(store, task.key, ready, task.lane) if ready else Block({})
    kept = {row.index: position for position, row in enumerate(ready) if position not in block.failed}
    _write_rows(store, task, kept, block, path)
    merged = _sign(task, receipt, kept, block, time.monotonic() - started)
    merged.write(path)
    return TaskResult(len(task.rows), merged.failed, os.getpid(), peak_bytes())


def _write_rows(store: FeatureStore, task: Task, kept: dict[int, int], block: Block, receipt: Path) -> None:
    """Write the shard's block in one piece and flush it to the disk."""
    start = task.shard * task.shard_rows
    group = store.kind_group(task.stage.kind, task.key)
    receipt.unlink(missing_ok=True)  # from here to the new receipt the shard counts as not done
    for column in task.stage.columns:
        # Not a property of the array on disk: opened plainly, it would skip a shard of zeros, which is then no shard.
        array = cast(Any, group[column.name]).with_config({"write_empty_chunks": True})
        stop = min(start + task.shard_rows, array.shape[1 if task.stage.lanes else 0])
        where = (task.lane, slice(start, stop)) if task.stage.lanes else slice(start, stop)
        if len(task.rows) < stop - start:
            values = np.array(array[where])  # rows of an earlier run stay as they are
        else:  # nothing to keep, so a damaged shard is never read
            dtype = np.dtypes.StringDType() if column.dtype == "str" else np.dtype(column.dtype)
            values = np.zeros((stop - start, *column.shape), dtype)
        for row in task.rows:
            values[row.index - start] = "" if column.dtype == "str" else 0
        for index, position in kept.items():
            values[index - start] = block.columns[column.name][position]
        array[where] = values
        store.sync_shard(array, task.lane, task.shard, task.stage.lanes)


def _sign(task: Task, old: Receipt | None, kept: dict[int, int], block: Block, seconds: float) -> Receipt:
    """The shard's new receipt: the task's rows anew, the others as the old receipt has them."""
    start = task.shard * task.shard_rows
    entries = {}
    failed = dict(old.failed) if old else {}
    if old:
        lines = zip(range(*old.rows), old.inputs, old.digests, old.ok, strict=True)
        entries = {index: (inputs, digest, ok) for index, inputs, digest, ok in lines}
    nonfinite = 0
    for row in task.rows:
        failed.pop(row.name, None)
        digest = ""
        if row.index in kept:
            values = [block.columns[column.name][kept[row.index]] for column in task.stage.columns]
            digest = _row_digest(values)
            nonfinite += sum(int((~np.isfinite(v)).sum()) for v in map(np.asarray, values) if v.dtype.kind == "f")
        entries[row.index] = (row.inputs, digest, row.index in kept)
    ready = [row for row in task.rows if row.ready]
    failed |= {ready[position].name: failure for position, failure in block.failed.items()}
    # Rows in between that no run has asked for yet belong to another manifest.
    ordered = [entries.get(index, ("", "", False)) for index in range(start, max(entries) + 1)]
    inputs, digests, ok = (tuple(column) for column in zip(*ordered, strict=True))
    return Receipt(
        (start, start + len(ordered)),
        inputs,
        digests,
        ok,
        failed,
        nonfinite,
        round(seconds, 3),
        socket.gethostname(),
        versions(),
    )


def _row_digest(values: Iterable[Any]) -> str:
    """16 hex digits over a row's values, byte for byte."""
    digest = hashlib.sha256()
    for value in values:
        array = np.asarray(value)
        texts = array.dtype.kind in "UOT"
        digest.update(
            "\0".join(map(str, array.ravel().tolist())).encode() if texts else np.ascontiguousarray(array).tobytes()
        )
    return digest.hexdigest()[:16]


def each_row(rows: Sequence[Row], names: Sequence[str], compute: Callable[[Row], Sequence[Any]]) -> Block:
    """A block from a function of one row: a row that raises is set aside, the others go on."""
    block = Block({name: [] for name in names})
    for position, row in enumerate(rows):
        try:
            values = compute(row)
        except UserError as error:
            block.failed[position] = Failure(str(error))
        except Exception as error:  # one bad mesh must not stop the others, whatever it does to a library
            block.failed[position] = Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        else:
            for name, value in zip(names, values, strict=True):
                block.columns[name].append(value)
            continue
        for name in names:
            block.columns[name].append(None)
    return block


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Recorded beside every result, never part of a key."""
    names = ("recon", "torch", "numpy", "zarr", "trimesh", "pyrender", "open_clip_torch", "timm")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found
