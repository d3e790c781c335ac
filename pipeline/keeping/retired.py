"""Rows that no manifest lists any more: dropping what a store holds of them.

A row of the registry keeps its number, since the others' numbers are places in every column; dropped, it belongs to no
data set. A shape that is listed again later gets another row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from recon.pipeline.keeping.layout import Layout, MissingColumn, read_layout
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.store.receipts import Entry, Receipt
from recon.pipeline.store.shards import Shard, write_shard


@dataclass(frozen=True)
class _Part:
    """A shard that holds some of the rows asked for."""

    layout: Layout
    shard: Shard
    receipt: Receipt
    rows: list[int]
    """Of those asked for, the ones that its receipt says something of."""


def bytes_of(store: FeatureStore, rows: Collection[int]) -> int:
    """About what rows take: of each shard's files, their share."""
    total = 0.0
    for part in _parts(store, rows):
        held = sum(part.receipt.ok)
        total += part.receipt.bytes * sum(part.receipt.entry(row).ok for row in part.rows) / held if held else 0
    return int(total)


def drop_rows(store: WritableStore, ref: str, when: str) -> None:
    """Drop the rows that a ref retired at a time: their data and receipts' entries, then their place in the data set.

    Cut off at any point, the next call goes on; a shard that was being written then is computed again by the next run.
    """
    rows = store.retired(ref)[when].tolist()
    for part in _parts(store, rows):
        path = store.receipt_path(part.layout.key, part.shard.lane, part.shard.number)
        entries = part.receipt.entries() | dict.fromkeys(part.rows, Entry())
        if all(entry == Entry() for entry in entries.values()):
            path.unlink()
            for file in part.layout.files(part.shard):
                (store.path / file).unlink(missing_ok=True)
            continue
        failed = {row: failure for row, failure in part.receipt.failed.items() if row not in part.rows}
        columns = store.columns(part.layout.kind, part.layout.key)
        size = write_shard(store, part.shard, columns, dict.fromkeys(part.rows))
        replace(part.receipt.with_entries(entries, failed), bytes=size).write(path)
    store.update_registry("dataset", dict.fromkeys(rows, ""))
    store.forget_retired(ref, when)


def _parts(store: FeatureStore, rows: Collection[int]) -> Iterator[_Part]:
    wanted = set(rows)
    for kind, key in store.list_keys():
        if kind == "text":  # its rows are prompts
            continue
        try:
            layout = read_layout(store, kind, key)
        except MissingColumn:  # making it was cut off: nothing is there yet
            continue
        for lane, number, receipt in store.receipts(key):
            mine = [row for row in range(*receipt.rows) if row in wanted and receipt.entry(row) != Entry()]
            if mine:
                yield _Part(layout, layout.shard(lane, number), receipt, mine)
