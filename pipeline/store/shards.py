"""Reads and writes shards of a key.

A shard is written after its old receipt is withdrawn, every column's block in one piece, and flushed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.files import sync_directory
from recon.pipeline.base.wording import one_line
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import MEND, DamagedStore
from recon.pipeline.store.records import Column

if TYPE_CHECKING:
    from zarr.storage import LocalStore

NEAR_CHUNKS = 4


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
        # Not a property of the array on disk: opened plainly, it would skip a shard of zeros, which is then no shard.
        array = cast(Any, group[column.name]).with_config({"write_empty_chunks": True})
        stop = min(shard.start + shard.shard_rows, array.shape[1 if shard.lanes else 0])
        where = block_of(shard, stop)
        values = _empty(column, stop - shard.start)
        if partial and len(rows) < len(values):
            mend = "its receipt is withdrawn: the same command makes it anew"
            values = read_rows(array, range(shard.start, stop), shard.lane if shard.lanes else None, mend)
        for row, cells in rows.items():
            blank = "" if column.dtype == "str" else 0
            values[row - shard.start] = blank if cells is None else cells[position]
        array[where] = values
        written += _flush(store, array, shard)
    return written


def block_of(shard: Shard, stop: int) -> Any:
    """The index of a shard's rows in a column, up to row `stop`."""
    rows = slice(shard.start, stop)
    return (shard.lane, rows) if shard.lanes else rows


def shard_file(array: zarr.Array[Any], shard: Shard) -> str:
    """The one file a shard's block of a column lies in, relative to the store."""
    return _file(array, shard.lane if shard.lanes else None, shard.number)


def shard_rows(array: zarr.Array[Any], lane: int | None = None) -> int:
    """Rows of one shard of a column; `lane` as in `read_rows`."""
    rows: int = (array.shards or array.chunks)[lane is not None]
    return rows


def read_rows(
    array: zarr.Array[Any], rows: Sequence[int] | NDArray[np.int64], lane: int | None = None, mend: str = MEND
) -> NDArray[Any]:
    """[len(rows), ...] finished rows of a column, ascending; of one lane where it has that axis.

    DamagedStore names the first file that is missing or cannot be decoded, and says to `mend` it.
    """
    rows = np.asarray(rows, np.int64)
    # Rows between two wanted ones are read along with them where that costs less than another call; a shard of which
    # none is wanted may not be there.
    far = np.diff(rows) > NEAR_CHUNKS * array.chunks[lane is not None]
    far |= np.diff(rows // shard_rows(array, lane)) > 1
    runs = np.split(rows, np.flatnonzero(far) + 1) if len(rows) else []
    blocks: list[NDArray[Any]] = [
        _read_run(array, int(run[0]), int(run[-1]) + 1, lane, mend)[run - run[0]] for run in runs
    ]
    if len(blocks) == 1:
        return np.asarray(blocks[0])
    return np.concatenate(blocks) if blocks else np.zeros((0, *array.shape[1 + (lane is not None) :]), array.dtype)


def _read_run(array: zarr.Array[Any], start: int, stop: int, lane: int | None, mend: str) -> NDArray[Any]:
    lead = () if lane is None else (lane,)
    block = shard_rows(array, lane)
    root = Path(cast("LocalStore", array.store).root)
    shards = range(start // block, -(-stop // block))
    for number in shards:
        path = root / _file(array, lane, number)
        if not path.is_file():  # which Zarr would pass off as zeros
            raise DamagedStore(f"{path}: missing, though its receipt says that it was written; {mend}")
    try:
        return np.asarray(array[(*lead, slice(start, stop))])
    except Exception as error:  # codecs raise what they like
        if len(shards) > 1:  # one after the other, so that the damaged one is named
            parts = [_read_run(array, max(start, n * block), min(stop, (n + 1) * block), lane, mend) for n in shards]
            return np.concatenate(parts)
        raise DamagedStore(f"{path}: cannot be read ({one_line(error)}); {mend}") from error


def _file(array: zarr.Array[Any], lane: int | None, number: int) -> str:
    grid = (() if lane is None else (lane,)) + (number,)
    return f"{array.path}/c/" + "/".join(map(str, grid + (0,) * (array.ndim - len(grid))))


def _empty(column: Column, rows: int) -> NDArray[Any]:
    dtype = np.dtypes.StringDType() if column.dtype == "str" else np.dtype(column.dtype)
    return np.zeros((rows, *column.shape), dtype)


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
