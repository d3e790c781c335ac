"""The worker's part: computes shards, writes them, signs their receipts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from recon.pipeline.base.digests import row_digest
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.faults import bare, lacks_device_memory
from recon.pipeline.base.provenance import forget_notes, peak_bytes, provenance
from recon.pipeline.base.watch import Watch, in_hand, unhurried
from recon.pipeline.execution.hazards import read_deaths, split_by
from recon.pipeline.execution.planning import Task, Together
from recon.pipeline.execution.stage import Row, failure_of, spare
from recon.pipeline.store.columns import open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Diagnosis, Entry, Failure, Receipt
from recon.pipeline.store.session import REFUSALS, cannot_write
from recon.pipeline.store.shards import Shard, read_rows, write_shard

MANY = 4  # rows that fail alike: as few as three may well be three bad shapes

Made = dict[int, "list[Any] | Failure"]  # row of the store -> a value a column, or why there is none
Copied = dict[int, tuple[list[Any], dict[str, Any] | None]]  # the same of copies, and where that was made


@dataclass(frozen=True)
class TaskResult:
    """What a worker reports of a finished task."""

    shard: Shard
    copied: bool
    """Whether its rows were copies: a shard may have a task of those, and one of the others."""
    rows: int
    bytes: int
    failed: dict[str, Failure]
    """By uid or prompt: a task's rows are of one data set."""
    pid: int
    peak_bytes: int
    seconds: float = 0.0
    """What it took this worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of shards that were given out together; `left` are to be done one by one."""

    done: tuple[TaskResult, ...]
    left: tuple[Task, ...] = ()


def run_tasks(together: Together) -> Outcome:
    """Compute, write and sign shards; see `run_task`. Of several, those that something went wrong with are left."""
    if len(together.tasks) == 1:
        return Outcome((run_task(together.tasks[0]),))
    forget_notes()
    done: list[TaskResult] = []
    try:
        _row_by_row(together, done)
    except UserError:
        raise
    except Exception:  # the shard that is at fault says so when it is done alone, and is tried again
        pass
    there = {result.shard for result in done}
    return Outcome(tuple(done), tuple(task for task in together.tasks if task.shard not in there))


def run_task(task: Task) -> TaskResult:
    """Compute, write and sign one shard. Runs in a worker; safe to run again after any interruption.

    UserError when the store cannot be written to, MachineError when something else than the shapes is at fault: then
    nothing of the shard is written.
    """
    started = time.monotonic()
    forget_notes()
    store = _opened(task.store)
    if (done := _done_before(store, task)) is not None:
        return done
    with _refusals(task.store):
        copied = _copied(store, task)
        made = _watched(store, task, [row for row in task.rows if row.ready and row.index not in copied])
        return _written(store, task, made, copied, started)


def _row_by_row(together: Together, done: list[TaskResult]) -> None:
    """Make each row of all shards before the next row, and write each shard after its last row.

    So what a reader remembers of the file it read last serves all stages. `done` gets the results one by one. A worker
    that died over these shards leaves them: one by one it shows which row it was.
    """
    first = together.tasks[0]
    store, notes = _opened(first.store), _notes(first).with_suffix(".together")
    if read_deaths(notes):
        return
    rows: dict[int, list[tuple[Task, Row]]] = {}
    for task in together.tasks:
        if (before := _done_before(store, task)) is not None:
            done.append(before)
            continue
        for row in task.rows:
            rows.setdefault(row.index, []).append((task, row))
    made: dict[Shard, Made] = {task.shard: {} for task in together.tasks}
    spent = dict.fromkeys(made, 0.0)
    with _refusals(first.store), nullcontext() if first.limit is None else Watch(notes, first.limit):
        for index in sorted(rows):
            for task, row in rows[index]:
                started = time.monotonic() - spent[task.shard]
                if row.ready:
                    made[task.shard] |= _computed(store, task, [row])
                if row is task.rows[-1]:
                    with unhurried():
                        done.append(_written(store, task, made.pop(task.shard), {}, started))
                    if first.limit is not None and not notes.exists():
                        return  # with its folder: the run is over, of which dask does not tell
                spent[task.shard] = time.monotonic() - started


def _opened(path: Path) -> FeatureStore:
    try:
        return FeatureStore.open(path, write=True)
    except UserError as error:  # whoever gave the task has it open
        raise MachineError(f"{path}: not a store on {socket.gethostname()}: mount it there ({error})") from error


@contextmanager
def _refusals(store: Path) -> Iterator[None]:
    """MachineError where the disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise  # file systems hiccup: the executor tries again
        raise cannot_write(store, error) from error


def _written(store: FeatureStore, task: Task, made: Made, copied: Copied, started: float) -> TaskResult:
    """Write and sign a shard of which these rows were computed and those copied, since `started`."""
    _refuse_alike(task, made)
    made = made | {row: cells for row, (cells, _) in copied.items()}
    cells = {row.index: made.get(row.index) for row in task.rows}
    path = store.receipt_path(task.shard.key, task.shard.lane, task.shard.number)
    old = Receipt.read(path)
    values = {row: None if isinstance(found, Failure) else found for row, found in cells.items()}
    size = write_shard(store, task.shard, task.stage.columns, values)
    origins = {row: origin for row, (_, origin) in copied.items()}
    seconds = time.monotonic() - started
    _sign(task, old, made, origins, size, seconds).write(path)
    return _told(task, size, {row: found for row, found in made.items() if isinstance(found, Failure)}, seconds)


def _told(task: Task, size: int, failed: dict[int, Failure], seconds: float = 0.0) -> TaskResult:
    named = {row.name: failed[row.index] for row in task.rows if row.index in failed}
    return TaskResult(task.shard, bool(task.copies), len(task.rows), size, named, os.getpid(), peak_bytes(), seconds)


def _done_before(store: FeatureStore, task: Task) -> TaskResult | None:
    """The result of a task that a worker finished before it died, or that dask hands out twice."""
    receipt = Receipt.read(store.receipt_path(task.shard.key, task.shard.lane, task.shard.number))
    if receipt is None:
        return None
    done = dict(zip(range(*receipt.rows), receipt.inputs, strict=True))
    if any(done.get(row.index) != row.inputs for row in task.rows):
        return None
    return _told(task, receipt.bytes, receipt.failed)


def _watched(store: FeatureStore, task: Task, ready: Sequence[Row]) -> Made:
    """The rows' values, stepping around what killed earlier workers on this task."""
    if task.limit is None:
        return _make(store, task, ready)
    path = _notes(task)
    groups, blamed = split_by(read_deaths(path), [row.index for row in ready])
    made: Made = {index: death.failure(task.limit) for index, death in blamed.items()}
    of = {row.index: row for row in ready}
    with Watch(path, task.limit):
        for group in groups:
            made |= _make(store, task, [of[index] for index in group])
    return made


def _notes(task: Task) -> Path:
    """Where a worker notes what of a task it has in hand."""
    shard = task.shard
    return task.store / "running" / task.run / f"{shard.key}-{shard.lane}-{shard.number}"


def _make(store: FeatureStore, task: Task, rows: Sequence[Row]) -> Made:
    """Values of rows, computed together; where that fails, bad ones among them are found by halving.

    An error that every row meets alike is the machine's or the recipe's: it is raised, of many by `_refuse_alike`.
    """
    if not rows:
        return {}
    try:
        return _computed(store, task, rows)
    except UserError:
        raise
    except Exception as error:
        if not lacks_device_memory(error):
            spare(error)
        halved = _halved(store, task, rows, error)
        reasons = {value.reason if isinstance(value, Failure) else "" for value in halved.values()}
        if 1 < len(rows) < MANY and len(reasons) == 1 and "" not in reasons:
            raise
        return halved


def _halved(store: FeatureStore, task: Task, rows: Sequence[Row], error: Exception) -> Made:
    """The values of rows whose computation together raised `error`."""
    if len(rows) == 1:
        spare(error)
        return {rows[0].index: failure_of(error)}
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
    in_hand([row.index for row in rows])
    block = task.stage.compute(store, task.shard.key, rows, task.shard.lane)
    names = [column.name for column in task.stage.columns]
    return {
        row.index: block.failed[at] if at in block.failed else [block.columns[name][at] for name in names]
        for at, row in enumerate(rows)
    }


def _refuse_alike(task: Task, made: Made) -> None:
    """Raise MachineError where all rows that were computed failed for one reason, and no file is known to be at fault.

    What a mesh file itself is found to lack, many may well lack. Rows of equal inputs count once.
    """
    failed = {row: made[row.index] for row in task.rows if row.index in made}
    found = [failure for failure in failed.values() if isinstance(failure, Failure)]
    if len(found) < len(failed) or len({row.inputs for row in failed}) < MANY:
        return
    if any(isinstance(failure, Diagnosis) for failure in found):
        return
    if len({bare(failure.reason, _own_words(row)) for row, failure in zip(failed, found, strict=True)}) > 1:
        return
    frames = [line.strip() for line in found[0].traceback.splitlines() if line.strip().startswith("File ")]
    where = f" ({frames[-1]})" if frames else ""
    raise MachineError(
        f"{task}: all {len(found)} rows fail alike: {' '.join(found[0].reason.split())}{where}; taken for a fault of "
        "the machine or the model, so none is set aside: mend it and run the same again. If it is the shapes', leave "
        f"these out of the data set: {', '.join(row.name for row in list(failed)[:3])}, ..."
    )


def _own_words(row: Row) -> set[str]:
    """How a reason may name a row."""
    paths = [PurePath(row.name), PurePath(row.source)]
    return {row.name, row.source, *(path.name for path in paths), *(path.stem for path in paths)}


def _copied(store: FeatureStore, task: Task) -> Copied:
    """Values that rows of equal inputs have by now, and the provenance of those.

    A row whose twin failed is left out, to fail on its own.
    """
    if not task.copies:
        return {}
    shard = task.shard
    group = store.kind_group(shard.kind, shard.key)
    lane = shard.lane if shard.lanes else None
    wanted: dict[int, list[int]] = {}  # by the shard they are in, the sources
    for source in sorted({task.copies[row.index] for row in task.rows}):
        wanted.setdefault(source // shard.shard_rows, []).append(source)
    found: dict[int, tuple[list[Any], Entry]] = {}
    for number, sources in wanted.items():
        receipt = Receipt.read(store.receipt_path(shard.key, shard.lane, number))
        entries = {source: receipt.entry(source) for source in sources if receipt and source < receipt.rows[1]}
        there = [source for source in sources if source in entries and entries[source].ok]
        columns = [read_rows(open_column(group, c.name), there, lane) for c in task.stage.columns] if there else []
        found |= {s: ([column[at] for column in columns], entries[s]) for at, s in enumerate(there)}
    copied = {}
    for row in task.rows:
        cells, entry = found.get(task.copies[row.index], ([], Entry()))
        if entry.ok and entry.inputs == row.inputs:
            copied[row.index] = cells, entry.made
    return copied


def _sign(
    task: Task, old: Receipt | None, made: Made, origins: Mapping[int, dict[str, Any] | None], size: int, seconds: float
) -> Receipt:
    """The shard's new receipt: the task's rows anew, the others as the old receipt has them.

    origins: the provenance of rows that were copied.
    """
    entries = old.entries() if old else {}
    failed = dict(old.failed) if old else {}
    here = provenance()
    nonfinite = 0
    told: dict[int, tuple[str, int]] = {}  # many rows may be copies of one
    for row in task.rows:
        failed.pop(row.index, None)
        found = made.get(row.index)
        if found is None:  # it waits for a stage before
            entries[row.index] = Entry(row.inputs)
        elif isinstance(found, Failure):
            failed[row.index] = found
            entries[row.index] = Entry(row.inputs, made=here)
        else:
            digest, odd = told.get(id(found)) or told.setdefault(id(found), (row_digest(found), _nonfinite(found)))
            entries[row.index] = Entry(row.inputs, digest, True, origins.get(row.index, here))
            nonfinite += odd
    # Rows in between that no run has asked for yet belong to another manifest.
    seconds += old.seconds if old else 0.0
    return Receipt.of(task.shard.start, entries, failed, nonfinite=nonfinite, bytes=size, seconds=seconds)


def _nonfinite(values: Sequence[Any]) -> int:
    """How many numbers of a row's values are not finite."""
    count = 0
    for value in map(np.asarray, values):
        if value.dtype == np.float16:  # by its bits: asked as floats they take ten times as long
            count += int(np.count_nonzero((value.view(np.uint16) & 0x7C00) == 0x7C00))
        elif value.dtype.kind == "f":
            count += int(np.count_nonzero(~np.isfinite(value)))
    return count
