"""Reads and writes shards of a key.

A shard is written after its old receipt is withdrawn, every column's block in one piece, and flushed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from recon.pipeline.base.files import replace_file, sync_directory
from recon.pipeline.store.columns import block_file, open_column
from recon.pipeline.store.columns import read_rows as read_rows
from recon.pipeline.store.columns import shard_rows as shard_rows
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.packing import packed
from recon.pipeline.store.records import Column


@dataclass(frozen=True)
class Shard:
    """Where a shard lies: `shard_rows` rows of one lane of a key (`lanes` 0: the key's columns have no such axis)."""

    kind: str
    key: str
    lane: int
    number: int
    shard_rows: int
    lanes: int

    @property
    def start(self) -> int:
        """The first row."""
        return self.number * self.shard_rows

    def __str__(self) -> str:
        lane = f" of draw {self.lane}" if self.lanes else ""
        return f"{self.kind} shard {self.number}{lane}"


def write_shard(
    store: FeatureStore, shard: Shard, columns: Sequence[Column], rows: Mapping[int, Sequence[Any] | None]
) -> int:
    """Write rows of a shard and flush them to the disk; the bytes of its files.

    `rows` maps a row of the store to its values, one a column, or to None: left empty. The shard's other rows stay as
    they are. From here to its next receipt the shard counts as not done.
    """
    receipt = store.receipt_path(shard.key, shard.lane, shard.number)
    partial = receipt.exists()  # without one there is nothing to keep, so a damaged shard is never read
    receipt.unlink(missing_ok=True)
    group = store.kind_group(shard.kind, shard.key)
    written = 0
    for position, column in enumerate(columns):
        array = open_column(group, column.name)
        stop = min(shard.start + shard.shard_rows, array.shape[1 if shard.lanes else 0])
        cells: list[Any] = [None] * (stop - shard.start)
        if partial and len(rows) < len(cells):
            mend = "its receipt is withdrawn: the same command makes it anew"
            cells = list(read_rows(array, range(shard.start, stop), shard.lane if shard.lanes else None, mend))
        for row, values in rows.items():
            cells[row - shard.start] = None if values is None else values[position]
        _write(store, array, shard, column, cells)
        written += _flush(store, array, shard)
    return written


def block_of(shard: Shard, stop: int) -> Any:
    """The index of a shard's rows in a column, up to row `stop`."""
    rows = slice(shard.start, stop)
    return (shard.lane, rows) if shard.lanes else rows


def shard_file(array: zarr.Array[Any], shard: Shard) -> str:
    """The one file a shard's block of a column lies in, relative to the store."""
    return block_file(array, shard.lane if shard.lanes else None, shard.number)


def _write(store: FeatureStore, array: zarr.Array[Any], shard: Shard, column: Column, cells: Sequence[Any]) -> None:
    """A column's block, a value a row, None for an empty one; whatever of it was there before."""
    content = packed(array, cells, 1 if shard.lanes else 0)
    if content is not None:
        replace_file(store.path / shard_file(array, shard), content)
        return
    dtype = np.dtypes.StringDType() if column.dtype == "str" else np.dtype(column.dtype)
    block = np.zeros((len(cells), *column.shape), dtype)
    for at, value in enumerate(cells):
        if value is not None:
            block[at] = value
    # Not a property of the array on disk: opened plainly, it would skip a shard of zeros, which is then no shard.
    array.with_config({"write_empty_chunks": True})[block_of(shard, shard.start + len(cells))] = block


def _flush(store: FeatureStore, array: zarr.Array[Any], shard: Shard) -> int:
    """fsync the shard's file and the folders on the way to it, which Zarr makes as it needs them; the file's size."""
    path: Path = store.path / shard_file(array, shard)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    sync_directory(path.parent)
    shared = store.path / array.path / "c"
    for folder in path.parents:
        if folder == store.path or folder in _synced:
            break
        sync_directory(folder.parent)
        if not folder.is_relative_to(shared) or folder == shared:
            _synced.add(folder)
    return size


# Folders of many shards whose names this process has seen onto the disk.
_synced: set[Path] = set()
