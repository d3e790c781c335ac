"""Plans a stage: which of its shards lack rows, which rows can be copied, what the shards there have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np

from recon.pipeline.base.digests import digest_of
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.store.columns import has_column, open_column, shard_rows
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Failure, Receipt
from recon.pipeline.store.shards import Shard


@dataclass(frozen=True)
class Task:
    """One shard of one stage. `copies` maps rows to the finished rows of equal inputs they are copied from."""

    stage: Stage
    store: Path
    shard: Shard
    rows: tuple[Row, ...]
    copies: dict[int, int] = field(default_factory=dict)
    run: str = ""
    limit: float | None = None
    """Seconds a row may take, in a process that may be ended for it."""

    def __str__(self) -> str:
        return str(self.shard)


@dataclass(frozen=True)
class Together:
    """Shards that one worker makes; those of several stages row by row, so that they share one reading of its file."""

    tasks: tuple[Task, ...]

    def __str__(self) -> str:
        more = len(self.tasks) - 1
        return str(self.tasks[0]) + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class StagePlan:
    """What a stage still has to do."""

    key: str
    shard_rows: int
    tasks: tuple[Task, ...]
    total: int
    todo: int
    stale: int
    """Rows of `todo` that were done from other inputs."""
    failed: dict[str, Failure]
    """Rows set aside that are not to be done again."""
    held_bytes: int
    held_rows: int
    held_seconds: float
    """What all shards there cost: bytes on disk, rows, seconds."""
    bytes_a_row: float
    """By the shards there are, else by what is usual."""


def plan_stage(store: FeatureStore, stage: Stage, rows: Sequence[Row]) -> StagePlan:
    """Compare the receipts with `rows` (ascending, not always all of the store's): the shards to compute.

    Reads every receipt of the key once and keeps none of them.
    """
    key = digest_of(stage.recipe)
    size = rows_a_shard(store, stage, key)
    tasks: list[Task] = []
    copying: list[Task] = []
    failed: dict[str, Failure] = {}
    todo = stale = held_bytes = held_rows = 0
    held_seconds = 0.0
    shards = [(number, list(group)) for number, group in groupby(rows, lambda row: row.index // size)]
    there = set(store.receipt_places(key))
    for lane in range(max(stage.lanes, 1)):
        made: dict[str, int] = {}  # inputs -> the row that has or gets their values
        missing_of: dict[int, list[Row]] = {}
        for number, wanted in shards:
            done: dict[int, str] = {}
            if (lane, number) in there:
                receipt = cast(Receipt, Receipt.read(store.receipt_path(key, lane, number)))
                done = dict(zip(range(*receipt.rows), receipt.inputs, strict=True))
                held_bytes, held_seconds = held_bytes + receipt.bytes, held_seconds + receipt.seconds
                held_rows += sum(receipt.ok)
                current = {row.index: row.name for row in wanted if done.get(row.index) == row.inputs}
                failed |= {current[row]: failure for row, failure in receipt.failed.items() if row in current}
            missing = [row for row in wanted if done.get(row.index) != row.inputs]
            if done and stage.by_content(lane):
                lost = {row.index for row in missing}  # done from other inputs, and computed again before any copy
                lines = zip(done.items(), receipt.ok, strict=True)
                made |= {inputs: index for (index, inputs), ok in lines if ok and index not in lost}
            if missing:
                missing_of[number] = missing
                stale += sum(bool(done.get(row.index)) for row in missing)
        for number, missing in missing_of.items():
            shard = Shard(stage.kind, key, lane, number, size, stage.lanes)
            todo += len(missing)
            copies = _copies(missing, made) if stage.by_content(lane) else {}
            first = tuple(row for row in missing if row.index not in copies)
            if first:
                tasks.append(Task(stage, store.path, shard, first))
            if copies:
                copied = tuple(row for row in missing if row.index in copies)
                copying.append(Task(stage, store.path, shard, copied, copies))
    total = len(rows) * max(stage.lanes, 1)
    return StagePlan(
        key=key,
        shard_rows=size,
        tasks=(*tasks, *copying),
        total=total,
        todo=todo,
        stale=stale,
        failed=failed,
        held_bytes=held_bytes,
        held_rows=held_rows,
        held_seconds=held_seconds,
        bytes_a_row=held_bytes / held_rows if held_rows else _usual_bytes(stage),
    )


def rows_a_shard(store: FeatureStore, stage: Stage, key: str) -> int:
    """Those of the key's shards where there are some; else as many as the stage asks for, within SHARD_BYTES."""
    if (store.path / stage.kind / key / "zarr.json").is_file():
        group, first = store.kind_group(stage.kind, key), stage.columns[0].name
        if has_column(group, first):
            return shard_rows(open_column(group, first), 0 if stage.lanes else None)
    rows, row_bytes = stage.shard_rows, _raw_bytes(stage)
    while rows > 1 and rows * row_bytes > SHARD_BYTES:
        rows //= 2
    return rows


SHARD_BYTES = 256 << 20
"""Of a new key's shards, uncompressed: a worker holds one, and once more while it writes it."""

# Stored bytes a byte of data, before a key has shards to go by: what the demo manifest's store comes to.
COMPRESSION = {"points": 0.7, "views": 0.1}


def _usual_bytes(stage: Stage) -> float:
    return _raw_bytes(stage) * COMPRESSION.get(stage.kind, 1.0)


def _raw_bytes(stage: Stage) -> int:
    """Of a row, uncompressed; texts are guessed."""
    sizes = (64 if c.dtype == "str" else np.dtype(c.dtype).itemsize for c in stage.columns)
    return sum(size * int(np.prod(c.shape)) for size, c in zip(sizes, stage.columns, strict=True))


def _copies(missing: Sequence[Row], made: dict[str, int]) -> dict[int, int]:
    """The rows whose values another row has or will have; those that come first are added to `made`."""
    copies = {}
    for row in missing:
        source = made.setdefault(row.inputs, row.index)
        if row.ready and source != row.index:
            copies[row.index] = source
    return copies
