"""What a store holds: one line a key for `ls`, and for `stats` the numbers by which odd data show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_seed
from recon.pipeline.keeping.copies import Copies, copies_of
from recon.pipeline.keeping.copies import describe as describe_copies
from recon.pipeline.keeping.cut import describe as describe_cut
from recon.pipeline.keeping.lacking import Lacking, lacking_of
from recon.pipeline.keeping.lacking import describe as describe_lacking
from recon.pipeline.keeping.layout import measure
from recon.pipeline.keeping.standing import declared, describe_standing
from recon.pipeline.keeping.stats.features import FeatureStatistics, LiftedStatistics, feature_statistics
from recon.pipeline.keeping.stats.listing import KeyLine as KeyLine
from recon.pipeline.keeping.stats.listing import list_store as list_store
from recon.pipeline.shapes.upright import UNCLEAR, likely_up
from recon.pipeline.store.columns import open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.names import named_keys
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.records import Ref
from recon.pipeline.store.shards import read_rows

TIPPED = 5  # shapes that are named


@dataclass(frozen=True)
class KeyStatistics:
    """How a key of a ref came to be."""

    name: str
    """The kind, with the name of the teacher or the table of captions behind it where there is one."""
    key: str
    done: int
    """Finished rows of all the key's datasets, each lane for itself."""
    failed: int
    reasons: dict[str, int]
    """Shapes by why they were set aside, most frequent first."""
    seconds_per_row: dict[str, float]
    """By host: the median over its shards."""
    bytes_per_row: float
    """Of files on the disk, a finished row of a lane."""
    nonfinite: int


@dataclass(frozen=True)
class PointStatistics:
    """Sampled clouds."""

    sampled: int
    extent_min: float
    extent_median: float
    extent_max: float
    """Of the bounding box's longest side, in the mesh's own units."""
    colored: float
    """Share of points whose colour is not black."""
    normals: float
    """Share of points that have a normal."""
    parts: int
    """Different part labels."""
    up: dict[str, int]
    """Shapes by the direction that is likely to be up, most frequent first; see `shapes.upright`."""
    tipped: tuple[str, ...]
    """Uids of the first whose likely up is clear and not +Y."""
    axes: tuple[str, str]
    """Up and front of the files, as the manifest says."""


@dataclass(frozen=True)
class ViewStatistics:
    """Sampled views."""

    sampled: int
    foreground_min: float
    foreground_median: float
    """Share of a view's pixels that show the shape."""
    blank: int
    """Views that show nothing."""


@dataclass(frozen=True)
class CaptionStatistics:
    """Captions of one table of the manifest."""

    table: str
    source: str
    shapes: int
    """With one or more that count."""
    captions: int
    distinct: int
    rejected: int
    """Stored, but not told: too uncertain, or past the best ones."""
    score_median: float | None
    """Of those that count; None where nothing was compared."""


@dataclass(frozen=True)
class Statistics:
    """Numbers of one ref; None or empty where none of its rows has come that far."""

    ref: str
    dataset: str
    shapes: int
    splits: dict[str, int]
    categories: dict[str, dict[str, int]]
    """Shapes by category and split."""
    copies: Copies | None
    lacking: Lacking | None
    """Shapes of one mesh; None for a data set without meshes."""
    faces_median: float | None
    faces_max: int | None
    keys: tuple[KeyStatistics, ...]
    points: PointStatistics | None
    views: ViewStatistics | None
    captions: tuple[CaptionStatistics, ...]
    targets: tuple[FeatureStatistics, ...]
    lifted: tuple[LiftedStatistics, ...]
    text: tuple[FeatureStatistics, ...]
    cut: dict[str, tuple[int, int]]
    """By teacher how many prompts are longer than it reads, and of how many."""


def statistics(store: FeatureStore, ref: str | None = None, sample: int = 1024, seed: int = 0) -> Statistics:
    """Counts over all rows of a ref; the rest over at most `sample` finished rows of each stage.

    A row is in the sample when its uid's hash with `seed` is among the lowest: no other row's presence or place
    matters. Works on unfinished stores. UserError for an unknown ref or an unreadable shard.
    """
    found = store.ref(ref)
    registry, mine = store.registry, store.rows(found)
    by_category: dict[str, Counter[str]] = {}
    for row in mine:
        by_category.setdefault(registry.categories[registry.category[row]], Counter())[registry.split[row]] += 1

    def pick(key: str) -> NDArray[np.int64]:
        return _sample(np.flatnonzero(_of_rows(store, key, mine)), registry.uid, sample, seed)

    faces = _faces(store, found.keys["meshes"], mine) if "meshes" in found.keys else np.zeros(0, np.int64)
    points, views = found.keys.get("points"), found.keys.get("views")
    targets = (_target_statistics(store, teacher, key, pick(key)) for teacher, key in found.targets.items())
    lifted = (_lifted_statistics(store, teacher, key, pick(key)) for teacher, key in found.lifted.items())
    text = (_text_statistics(store, found, teacher, sample, seed) for teacher in found.text)
    return Statistics(
        ref=found.name,
        dataset=found.dataset,
        shapes=len(mine),
        splits=dict(sorted(Counter(registry.split[row] for row in mine).items())),
        categories={name: dict(sorted(counts.items())) for name, counts in sorted(by_category.items())},
        copies=copies_of(store, found.keys["meshes"], mine.tolist()) if "meshes" in found.keys else None,
        lacking=lacking_of(store, found.keys["meshes"], mine.tolist()) if "meshes" in found.keys else None,
        faces_median=float(np.median(faces)) if len(faces) else None,
        faces_max=int(faces.max()) if len(faces) else None,
        keys=tuple(_key_statistics(store, name, key) for name, (_, key) in named_keys(found).items()),
        points=_point_statistics(store, points, pick(points)) if points else None,
        views=_view_statistics(store, views, pick(views)) if views else None,
        captions=_caption_statistics(store, found, mine),
        targets=tuple(filter(None, targets)),
        lifted=tuple(filter(None, lifted)),
        text=tuple(filter(None, text)),
        cut=found.cut,
    )


def describe(found: Statistics) -> list[str]:
    """The numbers as lines for people."""
    splits = ", ".join(f"{count} {name}" for name, count in found.splits.items())
    lines = [f"{found.ref}: {found.shapes} shapes ({splits}) in {len(found.categories)} categories"]
    sizes = sorted((sum(counts.values()), name) for name, counts in found.categories.items())
    if sizes:
        lines.append(f"  categories: {sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]}) shapes")
    lines += [f"  {line}" for line in describe_copies(found.copies)] if found.copies else []
    lines += [f"  {line}" for line in describe_lacking(found.lacking)] if found.lacking else []
    if found.faces_median is not None:
        lines.append(f"  faces a mesh: median {found.faces_median:.0f}, at most {found.faces_max}")
    for line in found.keys:
        aside = f", {line.failed} set aside" if line.failed else ""
        odd = f", {line.nonfinite} values not finite" if line.nonfinite else ""
        seconds = ", ".join(f"{1000 * value:.1f} ms on {host}" for host, value in line.seconds_per_row.items())
        lines.append(
            f"{line.name} {line.key}: {line.done} rows{aside}{odd}; a row {line.bytes_per_row:.0f} B, {seconds}"
        )
        lines += [f"  {count} set aside: {reason}" for reason, count in line.reasons.items()]
    if found.points:
        p = found.points
        lines.append(
            f"points of {p.sampled} shapes: longest side {p.extent_min:.3g} to {p.extent_max:.3g}, "
            f"median {p.extent_median:.3g}; {p.colored:.1%} not black, {p.normals:.1%} with a normal; "
            f"{p.parts} part labels"
        )
        shares = ", ".join(f"{way} {count / p.sampled:.0%}" for way, count in p.up.items())
        lines.append(f"  likely up: {shares}" + (f"; not +Y: {', '.join(p.tipped)}" if p.tipped else ""))
        lines += [f"  {line}" for line in describe_standing(p.up, *p.axes)]
    if found.views:
        v = found.views
        lines.append(
            f"views of {v.sampled} shapes: {v.foreground_min:.1%} or more show the shape, "
            f"median {v.foreground_median:.1%}; {v.blank} blank"
        )
    for c in found.captions:
        score = "" if c.score_median is None else f", median score {c.score_median:.3f}"
        lines.append(
            f"captions/{c.table}: {c.captions} of {c.shapes} shapes, {c.distinct} distinct{score}; {c.rejected} unkept"
        )
    lines += [
        f"lifted/{f.teacher}, {f.sampled} sampled: {f.points} points, {f.shown:.1%} shown, by {f.views:.1f} views each"
        for f in found.lifted
    ]
    for kind, several in (("targets", found.targets), ("text", found.text)):
        lines += [line for f in several for line in _describe_features(kind, f)]
    return [*lines, *describe_cut(found.cut)]


def _describe_features(kind: str, f: FeatureStatistics) -> list[str]:
    pairs = {
        "random": f.cosine_random,
        "views of one shape": f.cosine_views,
        "same class": f.cosine_same_class,
        "other class": f.cosine_other_class,
    }
    constant = f", {f.constant_dims} of them constant" if f.constant_dims else ""
    return [
        f"{kind}/{f.teacher}, {f.sampled} sampled: {f.dim} dimensions{constant}; mean {f.center_mean:.3g} +- "
        f"{f.center_std:.3g}; norm {f.norm_mean:.3g} +- {f.norm_std:.3g} ({f.norm_min:.3g} to {f.norm_max:.3g})",
        "  mean cosine: " + ", ".join(f"{name} {value:.3f}" for name, value in pairs.items() if value is not None),
    ]


# ---- their parts


def _faces(store: FeatureStore, key: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles of every finished mesh among some rows."""
    column = store.column("meshes", key, "faces")
    return read_rows(column, np.flatnonzero(_of_rows(store, key, rows)))


def _of_rows(store: FeatureStore, key: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[registry] finished in lane 0 and one of `rows`."""
    ok = store.ok(key, len(store.registry))
    mine = np.zeros_like(ok)
    mine[rows] = True
    return ok & mine


def _sample(rows: NDArray[np.int64], names: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Ascending: those whose names have the lowest hashes."""
    lowest = sorted(rows.tolist(), key=lambda row: row_seed("statistics", names[row], seed))
    return np.array(sorted(lowest[:count]), dtype=np.int64)


def _key_statistics(store: FeatureStore, name: str, key: str) -> KeyStatistics:
    receipts = [receipt for _, _, receipt in store.receipts(key)]
    rates: dict[str, list[float]] = {}
    for receipt in receipts:
        if rows := sum(inputs != "" for inputs in receipt.inputs):
            rates.setdefault(", ".join(receipt.hosts), []).append(receipt.seconds / rows)
    reasons = Counter(failure.reason for failure in store.failures(key).values())
    done = sum(sum(receipt.ok) for receipt in receipts)
    size = measure(store.path / name.split("/")[0] / key)[0]
    return KeyStatistics(
        name,
        key,
        done,
        reasons.total(),
        dict(reasons.most_common()),
        {host: float(np.median(values)) for host, values in sorted(rates.items())},
        size / done if done else 0.0,
        sum(receipt.nonfinite for receipt in receipts),
    )


def _in_blocks(array: zarr.Array[Any], rows: NDArray[np.int64], lane: int | None = None) -> Iterable[NDArray[Any]]:
    """Rows, of one lane where the column has that axis, in blocks of some megabytes."""
    row = array.shape[1:] if lane is None else array.shape[2:]
    size = max((16 << 20) // max(int(np.prod(row)) * array.dtype.itemsize, 1), 1)
    return (read_rows(array, rows[start : start + size], lane) for start in range(0, len(rows), size))


def _gather(group: zarr.Group, name: str, rows: NDArray[np.int64], measure: Callable[..., NDArray[Any]]) -> Any:
    """`measure` of every block of a column's rows, joined."""
    parts = [measure(block) for block in _in_blocks(open_column(group, name), rows)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _point_statistics(store: FeatureStore, key: str, rows: NDArray[np.int64]) -> PointStatistics | None:
    if not len(rows):
        return None
    group = store.kind_group("points", key)
    extents = _gather(group, "xyz", rows, lambda xyz: np.ptp(xyz, axis=1).max(axis=1))
    colored = _gather(group, "color", rows, lambda color: (color != 0).any(axis=2).mean(axis=1))
    normals = _gather(group, "normal", rows, lambda normal: (normal != 0).any(axis=2).mean(axis=1))
    parts = _gather(group, "part", rows, np.unique)
    low, middle, high = (float(f(extents)) for f in (np.min, np.median, np.max))
    shares = float(colored.mean()), float(normals.mean())
    ways = _gather(group, "xyz", rows, lambda xyz: np.array([likely_up(points) for points in xyz]))
    tipped = [store.registry.uid[row] for row, way in zip(rows, ways, strict=True) if way not in ("+Y", UNCLEAR)]
    return PointStatistics(
        len(rows), low, middle, high, *shares, len(np.unique(parts)),
        dict(Counter(ways.tolist()).most_common()), tuple(tipped[:TIPPED]), declared(store, key),
    )  # fmt: skip


def _view_statistics(store: FeatureStore, key: str, rows: NDArray[np.int64]) -> ViewStatistics | None:
    if not len(rows):
        return None
    group = store.kind_group("views", key)
    shares = _gather(group, "depth", rows, lambda depth: (depth > 0).mean(axis=(2, 3)))
    return ViewStatistics(len(rows), float(shares.min()), float(np.median(shares)), int((shares == 0).sum()))


def _caption_statistics(store: FeatureStore, ref: Ref, mine: NDArray[np.int64]) -> tuple[CaptionStatistics, ...]:
    """Over all of the ref's shapes."""
    records = store.caption_records(ref)
    found = []
    for table in ref.captions:
        of_shapes = [[caption for caption in records[row] if caption.table == table] for row in mine]
        kept = [[caption for caption in captions if caption.kept] for captions in of_shapes]
        told = [caption for captions in kept for caption in captions]
        scores = [caption.score for caption in told if caption.score is not None]
        found.append(
            CaptionStatistics(
                table=table,
                source=str(store.kind_group("captions", ref.captions[table]).attrs.get("source", table)),
                shapes=sum(map(bool, kept)),
                captions=len(told),
                distinct=len({caption.text for caption in told}),
                rejected=sum(map(len, of_shapes)) - len(told),
                score_median=float(np.median(scores)) if scores else None,
            )
        )
    return tuple(found)


def _target_statistics(
    store: FeatureStore, teacher: str, key: str, rows: NDArray[np.int64]
) -> FeatureStatistics | None:
    """Of patch tokens, [V, T, D] a row, what is looked at is each view's mean token; absent features count nowhere."""
    present = None
    if any(column.name == "present" for column in store.columns("targets", key)):
        present = read_rows(store.column("targets", key, "present"), rows, 0)
        rows, present = rows[present.any(axis=1)], present[present.any(axis=1)]
    if not len(rows):
        return None
    blocks = _in_blocks(store.column("targets", key, "feat"), rows, lane=0)
    views = [block.mean(axis=2, dtype=np.float32) if block.ndim == 4 else block for block in blocks]
    return feature_statistics(teacher, np.concatenate(views), store.registry.category[rows], present)


def _lifted_statistics(store: FeatureStore, teacher: str, key: str, rows: NDArray[np.int64]) -> LiftedStatistics | None:
    if not len(rows):
        return None
    count = read_rows(store.column("lifted", key, "count"), rows)
    shown = count[count > 0]
    views = float(shown.mean()) if len(shown) else 0.0
    return LiftedStatistics(teacher, len(rows), count.shape[1], len(shown) / count.size, views)


def _text_statistics(store: FeatureStore, ref: Ref, teacher: str, sample: int, seed: int) -> FeatureStatistics | None:
    """Prompts of the ref's shapes: a class prompt is of its class, a caption of the class of its first shape."""
    key, registry, mine = ref.text[teacher], store.registry, store.rows(ref)
    class_of: dict[str, int] = {}
    templates = store.templates(ref, key)
    for number in np.unique(registry.category[mine]).tolist():
        class_of |= dict.fromkeys(class_prompts(registry.categories[number], templates), number)
    captions = store.captions(ref)
    for row in mine:
        for caption in captions[row]:
            class_of.setdefault(caption, int(registry.category[row]))
    prompts = store.prompts(key)
    ok = store.ok(key, len(prompts))
    used = np.array([i for i, prompt in enumerate(prompts) if ok[i] and prompt in class_of], dtype=np.int64)
    rows = _sample(used, prompts, sample, seed)
    if not len(rows):
        return None
    feat = read_rows(store.column("text", key, "feat"), rows)
    classes = np.array([class_of[prompts[row]] for row in rows], dtype=np.int64)
    return feature_statistics(teacher, feat[:, None], classes)
