"""Rows of a store's array, whole shards at a time, with one line for a user where one is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError

if TYPE_CHECKING:
    import zarr
    from zarr.storage import LocalStore


def shard_rows(array: zarr.Array[Any], lane: int | None = None) -> int:
    """Rows of one shard file of a column; `lane` as in `read_rows`."""
    rows: int = (array.shards or array.chunks)[lane is not None]
    return rows


def read_rows(array: zarr.Array[Any], start: int, stop: int, lane: int | None = None) -> NDArray[Any]:
    """Rows start to stop of a column [rows, ...], or of one lane of [lanes, rows, ...]; stop may lie past the end.

    Costs least where both are multiples of `shard_rows`. UserError names the column and the rows when a shard is
    missing, or not what was written.
    """
    lead = () if lane is None else (lane,)
    stop = min(stop, array.shape[len(lead)])
    try:
        # Zarr reads a file that is not there as zeros.
        for path in _files(array, start, stop, lead):
            path.stat()
        return np.asarray(array[(*lead, slice(start, stop))])
    except Exception as error:  # zarr and its codecs raise what they like for damaged bytes
        told = " ".join(str(error).split()) or type(error).__name__
        root = _root(array)
        where = f"{root / array.path}: rows {start} to {stop - 1}" + ("" if lane is None else f" of draw {lane}")
        raise UserError(
            f"{where} cannot be read ({told}); `recon-pipeline verify --store {root}` finds what is damaged"
        ) from error


def iterate_rows(
    array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lane: int | None = None
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows (ascending, one at the least) of a column, or of one lane of it, a shard at a time: (their places in `rows`,
    their values).

    UserError where a shard is damaged, and for values that are not finite, which it calls by the name `what`.
    """
    block = shard_rows(array, lane)
    for begin, end in pairwise([0, *(np.flatnonzero(np.diff(rows // block)) + 1).tolist(), len(rows)]):
        start = int(rows[begin]) // block * block
        values = read_rows(array, start, start + block, lane)[rows[begin:end] - start]
        if not np.isfinite(values).all():
            raise UserError(f"{what}: not finite in the store's rows from {start} on; compute them again")
        yield slice(begin, end), values


def _files(array: zarr.Array[Any], start: int, stop: int, lead: tuple[int, ...]) -> list[Path]:
    rows = shard_rows(array, lead[0] if lead else None)
    tail = (0,) * (array.ndim - 1 - len(lead))
    numbers = range(start // rows, -(-stop // rows))
    return [_root(array).joinpath(array.path, "c", *map(str, (*lead, number, *tail))) for number in numbers]


def _root(array: zarr.Array[Any]) -> Path:
    return Path(cast("LocalStore", array.store).root)
