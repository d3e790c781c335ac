"""What differs between two keys: their recipes, their rows, and the numbers in the rows that both finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping.recipes import explain as explain
from recon.pipeline.keeping.recipes import recipe_diff as recipe_diff
from recon.pipeline.keeping.recipes import recipe_diff_expanded as recipe_diff_expanded
from recon.pipeline.store.columns import open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.names import list_refs, named_keys
from recon.pipeline.store.names import resolve_key as resolve_key
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import read_rows

Floats = NDArray[np.float64]

MEASURES = {
    ("targets", "feat"): "cosine",
    ("lifted", "feat"): "cosine",
    ("text", "feat"): "cosine",
    ("views", "rgb"): "mean abs",
    ("views", "depth"): "mean abs",
}  # other columns of floats: "max abs"; what is neither is compared by the rows' digests alone
COSINE_EDGES = (-1.0, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)
ERROR_EDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1000.0)
_NAMES = 10
_BATCH_BYTES = 1 << 26  # of one column on one side


@dataclass(frozen=True)
class Side:
    """One side of a comparison; without kind and key the whole store."""

    store: FeatureStore
    kind: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.store.path}:{self.kind}/{self.key}" if self.key else str(self.store.path)


@dataclass(frozen=True)
class RowDiff:
    """Rows of two keys: shapes by data set and uid, prompts by their words. Only rows that were computed count."""

    only_a: int
    only_b: int
    both: int
    finished: int
    """Finished on both sides, in every draw that both have."""
    failed_a: int
    """Failed in a, finished in b."""
    failed_b: int
    equal: int
    """Of `finished`: those with equal digests."""
    draws_a: int
    draws_b: int
    """How many draws were begun."""
    names: dict[str, list[str]]
    """Up to 10 rows for each of only_a, only_b, failed_a, failed_b and unequal."""


@dataclass(frozen=True)
class ColumnDiff:
    """One column in rows finished on both sides, of draw 0.

    `measure`: "cosine" of each feature vector (each view has one), or each row's "mean abs" or "max abs" difference.
    """

    name: str
    measure: str
    rows: int
    """How many were compared."""
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """Values between each edge and the next; those beyond an end are counted at that end."""
    minimum: float
    median: float
    max_abs: float
    """The largest difference of two numbers."""
    nonfinite: int
    """Values left out because they are no finite number."""
    note: str = ""
    """Why nothing was compared."""


@dataclass(frozen=True)
class Diff:
    """How key a differs from key b. `name` is what refs call both, or their kind."""

    name: str
    a: str
    b: str
    recipe: tuple[str, ...]
    rows: RowDiff | None
    """None where one side has no such key."""
    columns: tuple[ColumnDiff, ...]

    @property
    def same(self) -> bool:
        """One recipe, the same rows, equal digests."""
        rows = self.rows
        return not self.recipe and rows is not None and not any(rows.names.values()) and rows.draws_a == rows.draws_b


def parse_side(text: str) -> Side:
    """ "STORE" or "STORE:KEY", KEY in any form `resolve_key` takes. UserError if there is no such store or key."""
    path, colon, name = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Side(FeatureStore.open(text))
    if not path or not name:
        raise UserError(f"{text!r}: write STORE or STORE:KEY, such as demo.zarr:targets/demo")
    store = FeatureStore.open(path)
    return Side(store, *resolve_key(store, name))


def compare(a: Side | str, b: Side | str, sample: int = 2048, seed: int = 0) -> list[Diff]:
    """`diff` of two keys, or `diff_stores` of two stores. UserError for a key on one side only."""
    a, b = (parse_side(side) if isinstance(side, str) else side for side in (a, b))
    if bool(a.key) != bool(b.key):
        raise UserError(f"{a} and {b}: name a key on both sides (STORE:KEY) or on neither")
    return [diff(a, b, sample, seed)] if a.key else diff_stores(a.store, b.store, sample, seed)


def diff_stores(a: FeatureStore, b: FeatureStore, sample: int = 2048, seed: int = 0) -> list[Diff]:
    """All that the refs of two stores name, paired by ref, kind and teacher. UserError if they share no ref."""
    refs = list_refs(a), list_refs(b)
    pairs = [(x, y) for x in refs[0] for y in refs[1] if x.name == y.name]
    if not pairs and len(refs[0]) == len(refs[1]) == 1:
        pairs = [(refs[0][0], refs[1][0])]
    if not pairs:
        raise UserError(f"{a.path} and {b.path} share no ref: name a key of each (STORE:KEY)")
    found = []
    for pair in pairs:
        named = named_keys(pair[0]), named_keys(pair[1])
        for name in dict.fromkeys([*named[0], *named[1]]):
            label = name if len(pairs) == 1 else f"{pair[0].name}: {name}"
            sides = [Side(store, *names.get(name, ())) for store, names in zip((a, b), named, strict=True)]
            if all(side.key for side in sides):
                found.append(diff(sides[0], sides[1], sample, seed, label))
            else:
                only = next(side for side in sides if side.key)
                found.append(Diff(label, str(sides[0]), str(sides[1]), (f"only in {only.store.path}",), None, ()))
    return found


def diff(a: Side, b: Side, sample: int = 2048, seed: int = 0, name: str = "") -> Diff:
    """Compare two keys of one kind.

    Numbers are compared in the rows that both finished, or in `sample` of them drawn with `seed`. UserError for keys
    of two kinds, and for shards that cannot be read.
    """
    if a.kind != b.kind:
        raise UserError(f"{a} and {b}: {a.kind} cannot be compared with {b.kind}")
    held = _held(a), _held(b)
    rows, finished = _compare_rows(*held)
    if len(finished) > sample:
        chosen = np.random.default_rng(seed).choice(len(finished), sample, replace=False)
        finished = [finished[i] for i in np.sort(chosen)]
    numbers = [np.array([side[row].number for row in finished], np.int64) for side in held]
    columns = _compare_columns(a, b, numbers[0], numbers[1]) if finished else ()
    recipe = tuple(explain(a.store, a.kind, a.key, b.store, b.key))
    return Diff(name or a.kind, str(a), str(b), recipe, rows, columns)


def describe(found: Diff) -> list[str]:
    """The comparison for people: the keys, then what differs, a line each."""
    if found.same:
        assert found.rows is not None
        return [f"{found.name}: the same, {found.rows.finished} rows"]
    lines = [f"{found.name}: {found.a} and {found.b}", *(f"  {line}" for line in found.recipe)]
    rows = found.rows
    if rows is None:
        return lines
    lines.append(f"  rows: {rows.both} in both, {rows.finished} finished in both, {rows.equal} of them equal")
    if rows.draws_a != rows.draws_b:
        lines.append(f"  draws: {rows.draws_a} -> {rows.draws_b}")
    counts = (
        ("only_a", rows.only_a, "only in the first"),
        ("only_b", rows.only_b, "only in the second"),
        ("failed_a", rows.failed_a, "failed in the first only"),
        ("failed_b", rows.failed_b, "failed in the second only"),
        ("unequal", rows.finished - rows.equal, "differ"),
    )
    for field, count, words in counts:
        if count:
            more = ", ..." if count > len(rows.names[field]) else ""
            lines.append(f"  {count} {words}: {', '.join(rows.names[field])}{more}")
    for column in found.columns:
        lines += _describe_column(column)
    return lines


def _describe_column(column: ColumnDiff) -> list[str]:
    if column.note:
        return [f"  {column.name}: {column.note}"]
    numbers = f"min {column.minimum:.6g}, median {column.median:.6g}, largest error {column.max_abs:.3g}"
    lines = [f"  {column.name}: {column.measure} over {column.rows} rows: {numbers}"]
    if column.nonfinite:
        lines.append(f"    {column.nonfinite} not finite")
    bins = zip(column.edges, column.edges[1:], column.counts, strict=False)
    return lines + [f"    {low:>7g} to {high:<7g} {count}" for low, high, count in bins if count]


# ---- rows


@dataclass
class _Held:
    """A row of a key that was computed; its digest by draw, "" where it failed."""

    number: int
    digests: dict[int, str]


def _held(side: Side) -> dict[str, _Held]:
    """What the receipts say of every row, by the row's name."""
    if side.kind == "text":
        names = side.store.prompts(side.key)
    else:
        registry = side.store.registry
        names = [f"{dataset}/{uid}" for dataset, uid in zip(registry.dataset, registry.uid, strict=True)]
    held: dict[str, _Held] = {}
    for lane, _, receipt in side.store.receipts(side.key):
        for number, inputs, digest, ok in zip(
            range(*receipt.rows), receipt.inputs, receipt.digests, receipt.ok, strict=True
        ):
            if inputs:
                held.setdefault(names[number], _Held(number, {})).digests[lane] = digest if ok else ""
    return held


def _compare_rows(a: dict[str, _Held], b: dict[str, _Held]) -> tuple[RowDiff, list[str]]:
    """The counts, and the names of the rows finished on both sides."""
    draws = [{lane for row in side.values() for lane in row.digests} for side in (a, b)]
    shared = draws[0] & draws[1]
    both = [name for name in a if name in b]
    done = [{name for name in both if all(side[name].digests.get(lane) for lane in shared)} for side in (a, b)]
    finished = [name for name in both if name in done[0] and name in done[1]]
    names = {
        "only_a": [name for name in a if name not in b],
        "only_b": [name for name in b if name not in a],
        "failed_a": [name for name in both if "" in a[name].digests.values() and name in done[1] - done[0]],
        "failed_b": [name for name in both if "" in b[name].digests.values() and name in done[0] - done[1]],
        "unequal": [n for n in finished if any(a[n].digests[lane] != b[n].digests[lane] for lane in shared)],
    }
    rows = RowDiff(
        only_a=len(names["only_a"]),
        only_b=len(names["only_b"]),
        both=len(both),
        finished=len(finished),
        failed_a=len(names["failed_a"]),
        failed_b=len(names["failed_b"]),
        equal=len(finished) - len(names["unequal"]),
        draws_a=len(draws[0]),
        draws_b=len(draws[1]),
        names={field: values[:_NAMES] for field, values in names.items()},
    )
    return rows, finished


# ---- columns


def _compare_columns(a: Side, b: Side, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> tuple[ColumnDiff, ...]:
    """Every column of numbers that both sides have."""
    other = {column.name: column for column in b.store.columns(b.kind, b.key)}
    found = []
    for column in a.store.columns(a.kind, a.key):
        measure = MEASURES.get((a.kind, column.name), "max abs" if column.dtype.startswith("float") else "")
        twin = other.get(column.name)
        if not measure or twin is None:
            continue
        if column.shape != twin.shape:
            note = f"{list(column.shape)} and {list(twin.shape)} a row, not compared"
            found.append(ColumnDiff(column.name, measure, 0, (), (), 0.0, 0.0, 0.0, 0, note))
        else:
            found.append(_compare_column(a, b, rows_a, rows_b, column, measure))
    return tuple(found)


def _compare_column(
    a: Side, b: Side, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64], column: Column, measure: str
) -> ColumnDiff:
    row_bytes = 8 * max(int(np.prod(column.shape, dtype=np.int64)), 1)
    batch = max(_BATCH_BYTES // row_bytes, 1)
    values: list[Floats] = []
    max_abs = 0.0
    for start in range(0, len(rows_a), batch):
        part = slice(start, start + batch)
        x, y = _read(a, column, rows_a[part]), _read(b, column, rows_b[part])
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(x - y).reshape(len(x), -1)
            finite = error[np.isfinite(error)]
            max_abs = max(max_abs, float(finite.max())) if finite.size else max_abs
            by_row = error.mean(1) if measure == "mean abs" else error.max(1)
            values.append(_cosine(x, y) if measure == "cosine" else by_row)
    joined = np.concatenate(values)
    sound = joined[np.isfinite(joined)]
    edges = COSINE_EDGES if measure == "cosine" else ERROR_EDGES
    counts, _ = np.histogram(np.clip(sound, edges[0], edges[-1]), bins=np.array(edges))
    return ColumnDiff(
        name=column.name,
        measure=measure,
        rows=len(rows_a),
        edges=edges,
        counts=tuple(int(count) for count in counts),
        minimum=float(sound.min()) if sound.size else 0.0,
        median=float(np.median(sound)) if sound.size else 0.0,
        max_abs=max_abs,
        nonfinite=int(joined.size - sound.size),
    )


def _cosine(x: Floats, y: Floats) -> Floats:
    """Of each pair of vectors along the last axis, flat; two zero vectors are alike, one is like nothing."""
    norms = np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1)
    product = norms[0] * norms[1]
    zero = (norms[0] == 0) & (norms[1] == 0)
    cosine = (x * y).sum(-1) / np.where(product == 0, 1, product)
    return cast(Floats, np.where(zero, 1.0, cosine).ravel())


def _read(side: Side, column: Column, rows: NDArray[np.int64]) -> Floats:
    """[rows, ...] of a column, of draw 0 if there are draws. DamagedStore for a shard that is damaged or not there."""
    array = open_column(side.store.kind_group(side.kind, side.key), column.name)
    ascending, places = np.unique(rows, return_inverse=True)
    return read_rows(array, ascending, 0 if array.ndim > len(column.shape) + 1 else None).astype(np.float64)[places]
