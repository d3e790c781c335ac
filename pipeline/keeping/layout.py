"""How a key's data lie on the disk, read from what is there, and whether a shard is what its receipt says."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from recon.pipeline.base.digests import row_digest
from recon.pipeline.base.wording import one_line
from recon.pipeline.store.columns import has_column, open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.shards import Shard, block_of, shard_file


@dataclass(frozen=True)
class Layout:
    """The arrays of a key, in its columns' order, and how all of them are cut into shards."""

    kind: str
    key: str
    arrays: tuple[zarr.Array[Any], ...]
    lanes: int
    """Length of the leading axis, 0 for none."""
    shard_rows: int
    rows: int

    def shard(self, lane: int, number: int) -> Shard:
        """One of the key's shards; lane 0 where its columns have no such axis."""
        return Shard(self.kind, self.key, lane, number, self.shard_rows, self.lanes)

    def files(self, shard: Shard) -> list[str]:
        """The shard's file of every column, relative to the store."""
        return [shard_file(array, shard) for array in self.arrays]


class MissingColumn(ValueError):
    """A key without one of its columns: making it was cut off, or the column was deleted."""


def read_layout(store: FeatureStore, kind: str, key: str) -> Layout:
    """MissingColumn, or ValueError for arrays that do not fit the key's columns; Zarr's own errors for damaged ones."""
    group = store.kind_group(kind, key)
    arrays, cuts = [], set()
    for column in store.columns(kind, key):
        if not has_column(group, column.name):
            raise MissingColumn(f"no column {column.name!r}")
        array = open_column(group, column.name)
        lead = array.ndim - 1 - len(column.shape)
        text = array.dtype.kind in "UOT"
        fits = text if column.dtype == "str" else array.dtype == np.dtype(column.dtype)
        if lead not in (0, 1) or array.shape[lead + 1 :] != column.shape or not fits:
            raise ValueError(f"column {column.name!r} is {array.dtype} {array.shape}")
        arrays.append(array)
        cuts.add((array.shape[0] if lead else 0, (array.shards or array.chunks)[lead]))
    if len(cuts) != 1:
        raise ValueError(f"its columns are cut into shards in {len(cuts)} ways")
    lanes, shard_rows = cuts.pop()
    rows = min(array.shape[1 if lanes else 0] for array in arrays)
    return Layout(kind, key, tuple(arrays), lanes, shard_rows, rows)


def misfit(layout: Layout, shard: Shard, receipt: Receipt) -> str:
    """Why a receipt cannot be this shard's; empty when it can."""
    start, stop = receipt.rows
    count = stop - start
    if start != shard.start or not 0 < count <= layout.shard_rows:
        return f"speaks of rows {start} to {stop} under the name of shard {shard.number}"
    if stop > layout.rows or shard.lane >= max(layout.lanes, 1):
        return f"speaks of rows {start} to {stop} of draw {shard.lane}, which the key's columns do not have"
    if any(bool(digest) != ok for digest, ok in zip(receipt.digests, receipt.ok, strict=True)):
        return "has a finished row without a digest, or a digest of another"
    return ""


def compare_rows(layout: Layout, shard: Shard, receipt: Receipt) -> list[tuple[str, str]]:
    """Decode a shard: (file or folder, what is wrong with it) where it is not what the receipt says."""
    stop = min(shard.start + layout.shard_rows, layout.rows)
    found, blocks = [], []
    for array, file in zip(layout.arrays, layout.files(shard), strict=True):
        try:
            blocks.append(np.asarray(array[block_of(shard, stop)]))
        except Exception as error:  # codecs raise what they like
            found.append((file, f"cannot be decoded: {one_line(error)}"))
    if found:
        return found
    rows = [
        receipt.rows[0] + i
        for i, (digest, ok) in enumerate(zip(receipt.digests, receipt.ok, strict=True))
        if ok and row_digest(block[i] for block in blocks) != digest
    ]
    if not rows:
        return []
    where = layout.files(shard)[0] if len(layout.arrays) == 1 else f"{layout.kind}/{layout.key}"
    some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return [(where, f"{len(rows)} rows of {shard} are not what their receipt says: {some}")]


def measure(path: Path, read: bool = False) -> tuple[int, float]:
    """Bytes of the files at or below `path`, and when the newest entry was written (or read, if that counts)."""
    size, newest = 0, 0.0
    waiting = [os.fspath(path)]
    while waiting:
        entry = waiting.pop()
        try:
            status = os.lstat(entry)
            if stat.S_ISDIR(status.st_mode):
                waiting += [found.path for found in os.scandir(entry)]
            else:
                size += status.st_size
                newest = max(newest, status.st_atime if read else 0.0)  # a folder is read by looking at it
        except FileNotFoundError:  # another process tidies up too
            continue
        newest = max(newest, status.st_mtime)
    return size, newest


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing when there is none."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, of folders with 100 000 of them
    except (FileNotFoundError, NotADirectoryError):
        return []
