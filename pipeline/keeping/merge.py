"""Puts stores that `--shard i/n` filled together into a new one: equal recipes, disjoint shapes, every row checked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of, row_digest
from recon.pipeline.base.documents import ANY, bounded_lines, parse_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import sync_directory
from recon.pipeline.keeping.recipes import explain
from recon.pipeline.store import twins
from recon.pipeline.store.columns import VERIFY, has_column, open_column
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.store.names import list_refs, named_keys
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from recon.pipeline.store.receipts import Entry, Failure, Receipt
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import Shard, read_rows, write_shard

HELD_BYTES = 1 << 28  # of one column's decoded shards, one a part; where that is not enough, only rows in use are read

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MergeResult:
    """What came together. Rows count once a draw."""

    shapes: int
    keys: int
    shards: int
    rows: int
    """Rows with data."""
    failed: int
    """Rows set aside."""
    seconds: float


@dataclass(frozen=True)
class _Origin:
    """Where each row of the merged store comes from."""

    part: NDArray[np.int64]
    row: NDArray[np.int64]

    def places(self, part: int) -> NDArray[np.int64]:
        """[rows of the part] their numbers in the merged store, -1 for those that it takes from another part."""
        mine = np.flatnonzero(self.part == part)
        places = np.full(int(self.row[mine].max(initial=-1)) + 1, -1, np.int64)
        places[self.row[mine]] = mine
        return places


@dataclass(frozen=True)
class _Plan:
    """One key of the merged store: how its columns are cut up (alike in all parts) and where its rows come from."""

    kind: str
    key: str
    columns: tuple[Column, ...]
    shard_rows: int
    lanes: int
    names: list[str]
    """Uids or prompts."""
    origin: _Origin
    rows: int
    """As many as the parts' columns have room for."""

    @property
    def num_shards(self) -> int:
        return max(self.lanes, 1) * -(-self.rows // self.shard_rows)


def merge(out: Path, parts: Sequence[Path], progress: Progress = lambda done, total: None) -> MergeResult:
    """Write the union of `parts` to `out`, which must not exist or be an empty folder; the parts are only read.

    Row k of the first part, row k of the second, and so on: parts that are every n-th shape of a manifest come out in
    the manifest's order. Any key's digest is that of a single run. Every row keeps its provenance, and a receipt of
    `out` bears as large a share of the seconds of each part's receipt as it holds of its rows. `progress` is told
    (shards done, of all). UserError, with nothing left at `out`, for a shape that two parts hold, for a ref whose keys
    differ between parts, for prompts of different features, and for a row that does not match its receipt.
    """
    started = time.monotonic()
    out, building = _places(out, parts)
    stores = [_open(path) for path in parts]
    refs, templates = _merge_refs(stores), _merge_templates(stores)
    registry, origin = _merge_registry(stores)
    keys = list(dict.fromkeys(pair for store in stores for pair in store.list_keys()))
    plans = [_plan_key(stores, kind, key, registry["uid"], origin) for kind, key in keys]
    total = sum(plan.num_shards for plan in plans)
    counts: list[tuple[int, int] | None] = []  # a shard: rows finished and set aside; None where no part has any
    try:
        merged = FeatureStore.create(building)
        if registry["uid"]:
            merged.append_registry(registry)
        for plan in plans:
            for receipt in _copy_key(merged, stores, plan):
                counts.append((sum(receipt.ok), len(receipt.failed)) if receipt else None)
                progress(len(counts), total)
        for name, rows in _merge_listed(stores, origin).items():
            merged.list_rows(name, rows, whole=True)
        for name, kind, key, teacher in refs:
            merged.write_ref(name, kind, key, teacher)
        for name, several in templates.items():
            merged.settle_ref(name, list(merged.ref(name).captions), several)
        _carry_log(merged, stores)
        twins.save(building, twins.sources(building))
        os.sync()  # Zarr's own small files; the shards are flushed already
        building.rename(out)
        sync_directory(out.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write the merged store: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    written = [count for count in counts if count]
    return MergeResult(
        shapes=len(registry["uid"]),
        keys=len(keys),
        shards=len(written),
        rows=sum(rows for rows, _ in written),
        failed=sum(failed for _, failed in written),
        seconds=round(time.monotonic() - started, 3),
    )


def _places(out: Path, parts: Sequence[Path]) -> tuple[Path, Path]:
    """Where the store will lie, and beside it where it is built."""
    if not parts:
        raise UserError("merge: name the stores to put together")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out}: exists; name an empty or new folder")
    out = out.resolve()
    for part in parts:
        if out.is_relative_to(part.resolve()):
            raise UserError(f"{out}: lies in {part}, which is only read; name a folder outside of it")
    building = out.with_name(f"{out.name}.partial-{os.getpid()}")
    if building.exists():
        raise UserError(f"{building}: left by a merge that was killed; delete it")
    return out, building


def _open(part: Path) -> FeatureStore:
    store = FeatureStore.open(part)
    for damage in twins.check(part):
        raise UserError(f"{part / damage.path}: {damage.what}; {damage.mend}")
    return store


def _merge_refs(stores: Sequence[FeatureStore]) -> list[tuple[str, str, str, str | None]]:
    """(ref, kind, key, teacher or table or None) of all parts. UserError where parts disagree."""
    held: dict[tuple[str, str], tuple[FeatureStore, str]] = {}
    found: dict[tuple[str, str, str, str | None], None] = {}
    for store in stores:
        for ref in list_refs(store):
            for name, (kind, key) in named_keys(ref).items():
                before, other = held.setdefault((ref.name, name), (store, key))
                if other != key:
                    lines = explain(before, kind, other, store, key)
                    more = f" (and {len(lines) - 1} more fields)" if len(lines) > 1 else ""
                    raise UserError(
                        f"{before.path} and {store.path}: different recipes of {name} in ref {ref.name!r}: "
                        f"{lines[0] if lines else f'{other} -> {key}'}{more}; run both parts with one manifest"
                    )
                found[ref.name, kind, key, name.partition("/")[2] or None] = None
    return list(found)


def _merge_listed(stores: Sequence[FeatureStore], origin: _Origin) -> dict[str, list[int]]:
    """Rows of the merged store that the parts' refs list, by ref; of refs of an earlier version nothing is known."""
    listed: dict[str, list[int]] = {}
    for part, store in enumerate(stores):
        for ref in (ref for ref in list_refs(store) if ref.listed is not None):
            listed.setdefault(ref.name, []).extend(origin.places(part)[store.rows(ref)].tolist())
    return listed


def _merge_templates(stores: Sequence[FeatureStore]) -> dict[str, tuple[str, ...]]:
    """Of class prompts, by ref. UserError where parts disagree."""
    held: dict[str, tuple[FeatureStore, tuple[str, ...]]] = {}
    for store in stores:
        for ref in list_refs(store):
            before, templates = held.setdefault(ref.name, (store, ref.templates))
            if templates != ref.templates:
                both = f"{before.path} and {store.path}"
                raise UserError(f"{both}: different class prompts in ref {ref.name!r}; run both with one manifest")
    return {name: templates for name, (_, templates) in held.items()}


def _merge_registry(stores: Sequence[FeatureStore]) -> tuple[dict[str, list[str]], _Origin]:
    """The columns of all parts' shapes, data set by data set, in turns. UserError for a shape that two parts hold."""
    columns: list[dict[str, list[str]]] = []
    turns: dict[str, list[tuple[int, int, int]]] = {}  # data set -> (number in the part's share of it, part, row)
    holder: dict[tuple[str, str], int] = {}
    for part, store in enumerate(stores):
        if not store.has_registry:
            columns.append({name: [] for name in REGISTRY_COLUMNS})
            continue
        registry = store.registry
        category = [registry.categories[number] for number in registry.category]
        columns.append({n: category if n == "category" else getattr(registry, n) for n in REGISTRY_COLUMNS})
        count: dict[str, int] = {}
        for row, shape in enumerate(zip(registry.dataset, registry.uid, strict=True)):
            if not shape[0]:  # it was dropped
                continue
            if shape in holder:
                both = f"{stores[holder[shape]].path} and {store.path}"
                raise UserError(f"{both} both hold the shape {shape[1]!r} of {shape[0]!r}; merge disjoint shards")
            holder[shape] = part
            number = count[shape[0]] = count.get(shape[0], -1) + 1
            turns.setdefault(shape[0], []).append((number, part, row))
    order = [(part, row) for shapes in turns.values() for _, part, row in sorted(shapes)]
    merged = {name: [columns[part][name][row] for part, row in order] for name in REGISTRY_COLUMNS}
    return merged, _Origin(*np.array(order, np.int64).reshape(-1, 2).T)


# ---- one key


def _plan_key(stores: Sequence[FeatureStore], kind: str, key: str, uids: list[str], origin: _Origin) -> _Plan:
    """UserError unless the parts that hold the key have one recipe, cut its columns up alike and share no row."""
    holders = [(part, store) for part, store in enumerate(stores) if (store.path / kind / key / "zarr.json").is_file()]
    names = uids
    if kind == "text":
        names, origin = _merge_prompts(stores, key)
    first = holders[0][1]
    columns = first.columns(kind, key)
    cuts: set[tuple[int, bool]] = set()
    lanes = rows = 0
    for part, store in holders:
        if digest_of(store.recipe(kind, key)) != key:
            raise UserError(f"{store.path}: {kind}/{key} does not match its recipe; run `recon-pipeline verify`")
        places = origin.places(part)
        for array, column in _arrays(store, kind, key):
            axis = array.ndim - len(column.shape) - 1
            cuts.add(((array.shards or array.chunks)[axis], bool(axis)))
            lanes = max(lanes, array.shape[0] if axis else 0)
            rows = max(rows, int(places[: array.shape[axis]].max(initial=-1)) + 1)
        if store.columns(kind, key) != columns or len(cuts) > 1:
            raise UserError(f"{first.path} and {store.path}: {kind}/{key} is laid out differently; compute one anew")
    shard_rows = cuts.pop()[0] if cuts else 1
    return _Plan(kind, key, columns, shard_rows, lanes, names, origin, rows)


def _arrays(store: FeatureStore, kind: str, key: str) -> list[tuple[Any, Column]]:
    """The arrays of a key; a run that was cut off may not have made them yet."""
    group = store.kind_group(kind, key)
    return [
        (open_column(group, column.name), column)
        for column in store.columns(kind, key)
        if has_column(group, column.name)
    ]


def _merge_prompts(stores: Sequence[FeatureStore], key: str) -> tuple[list[str], _Origin]:
    """Every prompt once, in the parts' order, taken from a part that embedded it. UserError where two differ."""
    chosen: dict[str, tuple[int, int]] = {}
    signed: dict[str, tuple[str, str, FeatureStore]] = {}
    for part, store in enumerate(stores):
        if not (store.path / "text" / key / "zarr.json").is_file():
            continue
        lines: dict[int, tuple[str, str]] = {}
        for _, _, receipt in store.receipts(key, 0):
            entries = zip(range(*receipt.rows), receipt.inputs, receipt.digests, receipt.ok, strict=True)
            lines |= {row: (inputs, digest) for row, inputs, digest, ok in entries if ok}
        for row, prompt in enumerate(store.prompts(key)):
            chosen.setdefault(prompt, (part, row))
            if row not in lines:
                continue
            inputs, digest, before = signed.setdefault(prompt, (*lines[row], store))
            if before is store:
                chosen[prompt] = (part, row)
            elif (inputs, digest) != lines[row]:
                raise UserError(
                    f"{before.path} and {store.path}: text/{key} holds other features of {prompt!r} in each; "
                    "compute the text of both on one kind of machine"
                )
    return list(chosen), _Origin(*np.array(list(chosen.values()), np.int64).reshape(-1, 2).T)


def _copy_key(merged: WritableStore, stores: Sequence[FeatureStore], plan: _Plan) -> Iterator[Receipt | None]:
    """Write a key shard by shard: each one's receipt, or None where no part has any row of it."""
    first = next(store for store in stores if (store.path / plan.kind / plan.key / "zarr.json").is_file())
    notes = dict(first.kind_group(plan.kind, plan.key).attrs)
    recipe = cast(dict[str, Any], notes.pop("recipe"))
    more = {name: value for name, value in notes.items() if name not in ("columns", "rows")}
    group = merged.require_key(plan.kind, plan.key, recipe, plan.columns, more)
    if plan.kind == "text":
        merged.append_prompts(plan.key, plan.names)
    for column in plan.columns if plan.rows else ():
        merged.require_column(group, column, plan.rows, plan.lanes, plan.shard_rows)
    for lane in range(max(plan.lanes, 1)):
        sources = [_Source(store, plan, lane, len(stores)) for store in stores]
        for number in range(-(-plan.rows // plan.shard_rows)):
            shard = Shard(plan.kind, plan.key, lane, number, plan.shard_rows, plan.lanes)
            yield _copy_shard(merged, shard, plan, sources)


def _copy_shard(merged: WritableStore, shard: Shard, plan: _Plan, sources: Sequence[_Source]) -> Receipt | None:
    """Gather one shard's rows, check them, write them, sign for them."""
    entries: dict[int, Entry] = {}
    failed: dict[int, Failure] = {}
    values: dict[int, list[Any]] = {}
    seconds = 0.0
    stop = min(shard.start + shard.shard_rows, plan.rows)
    for part, source in enumerate(sources):
        wanted = {}
        for row in shard.start + np.flatnonzero(plan.origin.part[shard.start : stop] == part):
            at = int(plan.origin.row[row])
            receipt = source.receipts.get(at // shard.shard_rows)
            if receipt is None or at >= receipt.rows[1]:
                continue
            entry = entries[int(row)] = receipt.entry(at)
            seconds += receipt.seconds / len(receipt.inputs)
            if entry.ok:
                wanted[at] = int(row)
            elif at in receipt.failed:
                failed[int(row)] = receipt.failed[at]
        values |= {wanted[at]: cells for at, cells in source.read(sorted(wanted))}
    if not entries:
        return None
    size = write_shard(merged, shard, plan.columns, values)
    cells = [np.asarray(cell) for row in values.values() for cell in row]
    nonfinite = sum(int((~np.isfinite(cell)).sum()) for cell in cells if cell.dtype.kind == "f")
    # A row in between that no part has begun looks like one that no run has asked for yet.
    signed = Receipt.of(shard.start, entries, failed, nonfinite=nonfinite, bytes=size, seconds=seconds)
    signed.write(merged.receipt_path(shard.key, shard.lane, shard.number))
    return signed


class _Source:
    """One lane of a key in one part, read from front to back."""

    def __init__(self, store: FeatureStore, plan: _Plan, lane: int, parts: int) -> None:
        there = (store.path / plan.kind / plan.key / "zarr.json").is_file()
        self.store, self.plan, self.lane, self.parts = store, plan, lane, parts
        self.receipts = {number: receipt for _, number, receipt in store.receipts(plan.key, lane)} if there else {}
        self._arrays = _arrays(store, plan.kind, plan.key) if there else []
        self._held: dict[str, tuple[int, NDArray[Any]]] = {}

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
        """(row, its values, one a column) of finished rows, ascending. UserError if one is not as its receipt says."""
        size = self.plan.shard_rows
        for number in sorted({row // size for row in rows}):
            wanted = [row for row in rows if row // size == number]
            span = slice(wanted[0], wanted[-1] + 1)
            blocks = [self._block(array, column, number, span) for array, column in self._arrays]
            receipt = self.receipts[number]
            for row in wanted:
                cells = [block[row - span.start] for block in blocks]
                if row_digest(cells) != receipt.digests[row - receipt.rows[0]]:
                    shard = Shard(self.plan.kind, self.plan.key, self.lane, number, size, self.plan.lanes)
                    raise UserError(
                        f"{self.store.path}: {shard} of {self.plan.key}: row {row} does not match its receipt; "
                        "run `recon-pipeline verify --full` on it"
                    )
                yield row, cells

    def _block(self, array: Any, column: Column, number: int, span: slice) -> NDArray[Any]:
        """The span's rows, out of the whole shard where that is small or cannot be read in part."""
        start = number * self.plan.shard_rows
        size = self.plan.shard_rows * int(np.prod(column.shape, dtype=np.int64))
        whole = column.dtype == "str" or size * np.dtype(column.dtype).itemsize * self.parts <= HELD_BYTES
        held, block = self._held.get(column.name, (-1, np.empty(0)))
        if held == number:
            return block[span.start - start : span.stop - start]
        stop = min(start + self.plan.shard_rows, array.shape[bool(self.plan.lanes)])
        rows = range(start, stop) if whole else range(span.start, span.stop)
        block = read_rows(array, rows, self.lane if self.plan.lanes else None)
        if not whole:
            return block
        self._held[column.name] = number, block
        return block[span.start - start : span.stop - start]


def _carry_log(merged: WritableStore, stores: Sequence[FeatureStore]) -> None:
    """The parts' logs one after another: what the rows have cost, and where."""
    for store in stores:
        path = store.path / "log.jsonl"
        for line in bounded_lines(path, VERIFY) if path.is_file() else ():
            try:
                entry = parse_document(line, ANY, path, VERIFY)
                whole = entry.pop("sum", None) == digest_of(entry)
            except ValueError:
                continue  # torn or damaged: `verify` tells of it in the part
            if whole:
                merged.log(entry)
