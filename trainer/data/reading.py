"""Rows of a store's array a shard at a time, refused where they are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.shards import read_rows, shard_rows

if TYPE_CHECKING:
    import zarr

    from recon.pipeline.store import FeatureStore


def iterate_rows(
    array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lane: int | None = None
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows (ascending, one at the least) of a column, or of one lane of it, a shard at a time: (their places in `rows`,
    their values).

    UserError where a shard is damaged, and for values that are not finite, which it calls by the name `what`.
    """
    shard = rows // shard_rows(array, lane)
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(shard)) + 1):
        values = read_rows(array, rows[part], lane)
        if not np.isfinite(values).all():
            raise UserError(f"{what}: not finite in the store's rows from {rows[part[0]]} on; compute them again")
        yield slice(int(part[0]), int(part[-1]) + 1), values


def check_finite(
    store: FeatureStore, key: str, array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lanes: bool
) -> None:
    """UserError where rows hold values that are not finite, as far as the store's receipts count such: those shards
    alone are read. `lanes` says whether the array has that axis.
    """
    for lane, _, receipt in store.receipts(key):
        mine = rows[(rows >= receipt.rows[0]) & (rows < receipt.rows[1])]
        if receipt.nonfinite and len(mine):
            for _ in iterate_rows(array, mine, what, lane if lanes else None):
                pass
