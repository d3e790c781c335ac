"""The worker's part: computes one shard, writes it, signs its receipt."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from recon.pipeline.base.digests import row_digest
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.provenance import peak_bytes, versions
from recon.pipeline.execution.hazards import Watch, in_hand, read_deaths, split_by
from recon.pipeline.execution.planning import Task
from recon.pipeline.execution.stage import MACHINE, Row
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Failure, Receipt
from recon.pipeline.store.session import REFUSALS, cannot_write
from recon.pipeline.store.shards import read_rows, write_shard

Values = dict[int, list[Any] | None]  # row of the store -> a value a column, or nothing
Made = dict[int, "list[Any] | Failure"]


@dataclass(frozen=True)
class TaskResult:
    """What a worker reports of a finished shard."""

    rows: int
    bytes: int
    failed: dict[str, Failure]
    """By uid or prompt: a task's rows are of one data set."""
    pid: int
    peak_bytes: int


def run_task(task: Task) -> TaskResult:
    """Compute, write and sign one shard. Runs in a worker; safe to run again after any interruption.

    UserError when the store cannot be written to.
    """
    started = time.monotonic()
    store = FeatureStore.open(task.store, write=True)
    shard = task.shard
    path = store.receipt_path(shard.key, shard.lane, shard.number)
    if (done := _done_before(task, Receipt.read(path))) is not None:
        return done
    try:
        made = _watched(store, task)
        failed = {index: value for index, value in made.items() if isinstance(value, Failure)}
        values = cast(Values, {row.index: None if row.index in failed else made.get(row.index) for row in task.rows})
        old = Receipt.read(path)
        size = write_shard(store, shard, task.stage.columns, values)
        signed = _sign(task, old, values, failed, size, time.monotonic() - started)
        signed.write(path)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise  # file systems hiccup: the executor tries again
        raise cannot_write(task.store, error) from error
    return _told(task, size, failed)


def _told(task: Task, size: int, failed: dict[int, Failure]) -> TaskResult:
    named = {row.name: failed[row.index] for row in task.rows if row.index in failed}
    return TaskResult(len(task.rows), size, named, os.getpid(), peak_bytes())


def _done_before(task: Task, receipt: Receipt | None) -> TaskResult | None:
    """The result of a task that a worker finished before it died, or that dask hands out twice."""
    if receipt is None:
        return None
    done = dict(zip(range(*receipt.rows), receipt.inputs, strict=True))
    if any(done.get(row.index) != row.inputs for row in task.rows):
        return None
    return _told(task, receipt.bytes, receipt.failed)


def _watched(store: FeatureStore, task: Task) -> Made:
    """The rows' values, stepping around what killed earlier workers on this task."""
    ready = [row for row in task.rows if row.ready]
    if task.limit is None:
        return _make(store, task, ready)
    shard = task.shard
    path = task.store / "running" / task.run / f"{shard.key}-{shard.lane}-{shard.number}"
    groups, blamed = split_by(read_deaths(path), [row.index for row in ready])
    made: Made = {index: death.failure(task.limit) for index, death in blamed.items()}
    of = {row.index: row for row in ready}
    with Watch(path, task.limit):
        for group in groups:
            made |= _make(store, task, [of[index] for index in group])
    return made


def _make(store: FeatureStore, task: Task, rows: Sequence[Row]) -> Made:
    """Values of ready rows: copied where another row has them, else computed; bad ones among them found by halving.

    An error that every row meets alike is the machine's or the recipe's: it is raised.
    """
    made: Made = _copied(store, task, rows) if task.copies else {}
    rest = [row for row in rows if row.index not in made]
    if not rest:
        return made
    in_hand([row.index for row in rest])
    try:
        return made | _computed(store, task, rest)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        halved = _halved(store, task, rest, error)
        reasons = {value.reason if isinstance(value, Failure) else "" for value in halved.values()}
        if len(rest) > 1 and len(reasons) == 1 and "" not in reasons:
            raise
        return made | halved


def _halved(store: FeatureStore, task: Task, rows: Sequence[Row], error: Exception) -> Made:
    """The values of rows whose computation together raised `error`."""
    if len(rows) == 1:
        return {rows[0].index: Failure(f"{type(error).__name__}: {error}", traceback.format_exc())}
    made: Made = {}
    middle = len(rows) // 2
    for half in (rows[:middle], rows[middle:]):
        try:
            made |= _computed(store, task, half)
        except UserError:
            raise
        except Exception as worse:
            made |= _halved(store, task, half, worse)
    return made


def _computed(store: FeatureStore, task: Task, rows: Sequence[Row]) -> Made:
    block = task.stage.compute(store, task.shard.key, rows, task.shard.lane)
    names = [column.name for column in task.stage.columns]
    return {
        row.index: block.failed[at] if at in block.failed else [block.columns[name][at] for name in names]
        for at, row in enumerate(rows)
    }


def _copied(store: FeatureStore, task: Task, rows: Sequence[Row]) -> Made:
    """Values that rows of equal inputs have by now; a row whose twin failed is left out, to fail on its own."""
    shard = task.shard
    group = store.kind_group(shard.kind, shard.key)
    columns = [cast(Any, group[column.name]) for column in task.stage.columns]
    lane = shard.lane if shard.lanes else None
    made: Made = {}
    for row in rows:
        source = task.copies[row.index]
        receipt = Receipt.read(store.receipt_path(shard.key, shard.lane, source // shard.shard_rows))
        at = source - receipt.rows[0] if receipt else 0
        if receipt and at < len(receipt.ok) and receipt.ok[at] and receipt.inputs[at] == row.inputs:
            made[row.index] = [read_rows(column, [source], lane)[0] for column in columns]
    return made


def _sign(
    task: Task, old: Receipt | None, values: Values, failed: dict[int, Failure], size: int, seconds: float
) -> Receipt:
    """The shard's new receipt: the task's rows anew, the others as the old receipt has them."""
    start = task.shard.start
    entries = {}
    kept = dict(old.failed) if old else {}
    if old:
        lines = zip(range(*old.rows), old.inputs, old.digests, old.ok, strict=True)
        entries = {index: (inputs, digest, ok) for index, inputs, digest, ok in lines}
    nonfinite = 0
    for row in task.rows:
        kept.pop(row.index, None)
        cells = values[row.index]
        entries[row.index] = (row.inputs, "" if cells is None else row_digest(cells), cells is not None)
        nonfinite += sum(int((~np.isfinite(v)).sum()) for v in map(np.asarray, cells or ()) if v.dtype.kind == "f")
    # Rows in between that no run has asked for yet belong to another manifest.
    ordered = [entries.get(index, ("", "", False)) for index in range(start, max(entries) + 1)]
    inputs, digests, ok = (tuple(column) for column in zip(*ordered, strict=True))
    seconds = round(seconds + (old.seconds if old else 0.0), 3)
    return Receipt(
        rows=(start, start + len(ordered)),
        inputs=inputs,
        digests=digests,
        ok=ok,
        failed=kept | failed,
        nonfinite=nonfinite,
        bytes=size,
        seconds=seconds,
        host=socket.gethostname(),
        versions=versions(),
    )
