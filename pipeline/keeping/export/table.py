"""The finished rows of a ref as plain arrays, read block by block and compared with what their receipts promise."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_digest
from recon.pipeline.base.errors import UserError
from recon.pipeline.store.columns import open_column, parsed
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import NAMES, part_of
from recon.pipeline.store.records import Ref
from recon.pipeline.store.shards import read_rows

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[int, int], None]

_SAFE_LENGTH = 80
_MARKED = re.compile(r"-[0-9a-f]{16}$")


def safe_names(names: Sequence[str]) -> list[str]:
    """Each name as a file name without dots or separators; different names stay different, in any case of letters.

    A name that had to be changed ends in a digest of what it was.
    """
    twice = Counter(name.casefold() for name in set(names))
    safe = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_SAFE_LENGTH]
        # A name that already looks marked is marked again, so that none can pose as another's mark.
        same = plain == name and name and twice[name.casefold()] == 1 and not _MARKED.search(name)
        safe.append(name if same else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:16]}")
    return safe


@dataclass(frozen=True)
class Words:
    """Distinct prompts of the exported shapes, and their features by teacher."""

    prompts: list[str]
    """Class prompts by category, then captions in row order."""
    feat: dict[str, NDArray[np.float16]]
    """[T, D] a teacher"""
    class_prompts: NDArray[np.int64]
    """[num_categories, L] rows of feat"""
    captions: NDArray[np.int64]
    """[N, C] rows of feat, -1 after a shape's last caption"""


@dataclass(frozen=True)
class Table:
    """Rows of one ref's dataset that every one of its stages finished, in the store's order.

    With `only_targets` those that every teacher finished, and nothing but their features.
    """

    store: FeatureStore
    ref: Ref
    splits: tuple[str, ...]
    rows: NDArray[np.int64]
    """[N] rows of the registry"""
    left_out: int
    """Rows of the same splits that some stage has not finished."""
    categories: list[str]
    """All of the dataset's, so that labels agree between exports of its splits."""
    label: NDArray[np.int64]
    """[N] index into `categories`"""
    records: list[dict[str, Any]]
    """[N] JSON values: row, uid, name (safe as a file's name), dataset, category, label, split, parts, captions"""
    words: Words | None
    """None where no teacher of the ref reads words."""
    only_targets: bool = False
    lifted: dict[str, str] = field(default_factory=dict)
    """Teacher -> key of its features of points; empty where they are not wanted, too"""
    stale: tuple[str, ...] = ()
    """Teachers whose features are of other points than the ref has now, and left out"""

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self) -> dict[str, tuple[str, str, str, bool]]:
        """By exported name: kind, key, column, and whether it has lanes (the draws)."""
        found: dict[str, tuple[str, str, str, bool]] = {}
        if not self.only_targets:
            points = self.ref.keys["points"]
            found = {c.name: ("points", points, c.name, False) for c in self.store.columns("points", points)}
        names = safe_names(list(self.ref.targets))
        for name, key in zip(names, self.ref.targets.values(), strict=True):
            columns = {column.name for column in self.store.columns("targets", key)}
            found |= {
                f"{prefix}-{name}": ("targets", key, column, True)
                for prefix, column in (("targets", "feat"), ("present", "present"))
                if column in columns
            }
        for name, key in zip(safe_names(list(self.lifted)), self.lifted.values(), strict=True):
            found |= {f"lifted-{name}": ("lifted", key, "feat", False), f"seen-{name}": ("lifted", key, "count", False)}
        return found

    def blocks(self, size: int) -> Iterator[tuple[int, int, Arrays]]:
        """(start, stop, arrays [stop - start, ...]) in order; targets are [rows, K, V, D], present ones [rows, K, V].

        UserError where a row is not what its receipt says.
        """
        by_key: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for name, (kind, key, column, _) in self.columns().items():
            by_key.setdefault((kind, key), []).append((name, column))
        digests = {(kind, key): _digests(self.store, kind, key) for kind, key in by_key}
        for start in range(0, len(self), size):
            rows = self.rows[start : start + size]
            arrays: Arrays = {}
            for (kind, key), names in by_key.items():
                values = _checked(self.store, kind, key, rows, digests[kind, key])
                arrays |= {name: values[column] for name, column in names}
            yield start, start + len(rows), arrays


def load_table(
    store: FeatureStore, ref: str | None, splits: Sequence[str], only_targets: bool = False, lifted: bool = False
) -> Table:
    """With `lifted` the features of points too, where the ref has any. UserError for a ref without points (or targets),
    an unknown split, no finished row, or words not embedded yet.
    """
    found = store.ref(ref)
    registry = store.registry
    _ = store.targets(None, found) if only_targets else store.points(found)  # says which stage to run
    mine = store.rows(found)
    known = sorted({registry.split[row] for row in mine})
    for split in splits:
        if split not in known:
            raise UserError(f"{store.path}: no split {split!r}; it has {', '.join(known)}")
    chosen = np.array([row for row in mine if not splits or registry.split[row] in splits], dtype=np.int64)
    done = np.ones(len(registry), dtype=np.bool_)
    for key in () if only_targets else (*found.keys.values(), *found.captions.values()):
        done &= store.ok(key, len(registry))
    for teacher in found.targets:
        done &= store.targets(teacher, found).ok.all(axis=0)
    whole = {teacher: store.lifted(teacher, found) for teacher in found.lifted} if lifted else {}
    own = {teacher: each for teacher, each in whole.items() if each.points.key == found.keys["points"]}
    for each in own.values():
        done &= each.ok
    rows = chosen[done[chosen]]
    if not len(rows):
        raise UserError(f"{store.path}: no row of ref {found.name!r} is finished; run `recon-pipeline status`")
    used = sorted({int(number) for number in registry.category[mine]})
    label = np.searchsorted(used, registry.category[rows]).astype(np.int64)
    categories = [registry.categories[number] for number in used]
    captions = None if only_targets else store.captions(found)
    parts = [[]] * len(rows) if only_targets else _parts(store, found, rows)
    names = safe_names([registry.uid[row] for row in rows])
    records = [
        {
            "row": int(row),
            "uid": registry.uid[row],
            "name": name,
            "dataset": found.dataset,
            "category": categories[number],
            "label": int(number),
            "split": registry.split[row],
            "parts": its,
            "captions": [caption for caption in captions[row] if caption] if captions else [],
        }
        for row, name, number, its in zip(rows, names, label, parts, strict=True)
    ]
    words = _load_words(store, found, used, rows, records) if found.text and not only_targets else None
    left_out = len(chosen) - len(rows)
    points, stale = {teacher: each.key for teacher, each in own.items()}, tuple(sorted(whole.keys() - own.keys()))
    return Table(
        store, found, tuple(splits), rows, left_out, categories, label, records, words, only_targets, points, stale
    )


def _parts(store: FeatureStore, ref: Ref, rows: NDArray[np.int64]) -> list[list[str]]:
    """[N] names of a shape's parts: of its mesh, or of the data set where clouds came ready-made; [] where no mesh is.

    A store that a program wrote need not have read any.
    """
    recipe = store.recipe("points", ref.keys["points"])
    if "clouds" in recipe:
        return [part_of(recipe, "clouds").get("parts", [])] * len(rows)
    if "meshes" not in ref.keys:
        return [[]] * len(rows)
    column = open_column(store.kind_group("meshes", ref.keys["meshes"]), "parts")
    return [parsed(text or "[]", NAMES, column.store_path) for text in read_rows(column, rows)]


def _load_words(
    store: FeatureStore, ref: Ref, used: list[int], rows: NDArray[np.int64], records: list[dict[str, Any]]
) -> Words:
    """One list of prompts for all teachers: a text key may hold other datasets' prompts, in another order."""
    texts = {teacher: store.text(teacher, ref) for teacher in ref.text}
    # Features of the classes that came with the files are of no template; they go along where there is nothing else.
    texts = {teacher: text for teacher, text in texts.items() if not text.ready} or texts
    first = next(iter(texts.values()))
    classes = [[first.prompts[i] for i in first.class_prompts[number]] for number in used]
    own = [caption for record in records for caption in record["captions"]]
    prompts = list(dict.fromkeys([prompt for line in classes for prompt in line] + own))
    number_of = {prompt: i for i, prompt in enumerate(prompts)}
    feat = {}
    for teacher, text in texts.items():
        held = {prompt: i for i, prompt in enumerate(text.prompts)}
        missing = [prompt for prompt in prompts if prompt not in held]
        if missing:
            raise UserError(f"{store.path}: {teacher!r} has not embedded {missing[0]!r}; run `recon-pipeline features`")
        digests = _digests(store, "text", text.key)[0]
        index = np.array([held[prompt] for prompt in prompts], dtype=np.int64)
        feat[teacher] = text.feat[index]
        for i, row in enumerate(index):
            _compare(store, "text", text.key, prompts[i], row_digest([feat[teacher][i]]), digests[row])
    width = max((len(record["captions"]) for record in records), default=0)
    captions = np.full((len(rows), width), -1, dtype=np.int64)
    for i, record in enumerate(records):
        captions[i, : len(record["captions"])] = [number_of[caption] for caption in record["captions"]]
    class_prompts = np.array([[number_of[prompt] for prompt in line] for line in classes], dtype=np.int64)
    return Words(prompts, feat, class_prompts, captions)


def _digests(store: FeatureStore, kind: str, key: str) -> list[list[str]]:
    """[lanes][rows] what each row's receipt says of its values; "" for a row it does not know."""
    rows = len(store.prompts(key)) if kind == "text" else len(store.registry)
    lanes = store.column(kind, key, "feat").shape[0] if kind == "targets" else 1
    found = [[""] * rows for _ in range(lanes)]
    for lane, _, receipt in store.receipts(key):
        if lane < lanes:
            start = receipt.rows[0]
            for i, digest in enumerate(receipt.digests[: rows - start]):
                found[lane][start + i] = digest
    return found


def _checked(
    store: FeatureStore, kind: str, key: str, rows: NDArray[np.int64], digests: list[list[str]]
) -> dict[str, NDArray[Any]]:
    """A key's columns at some rows; with lanes [rows, K, ...]."""
    group = store.kind_group(kind, key)
    names = [column.name for column in store.columns(kind, key)]
    lanes: list[int | None] = [None] if kind != "targets" else list(range(len(digests)))
    read = []
    for lane in lanes:
        values = [read_rows(open_column(group, name), rows, lane) for name in names]
        for i, row in enumerate(rows):
            _compare(
                store, kind, key, store.registry.uid[row], row_digest(v[i] for v in values), digests[lane or 0][row]
            )
        read.append(values)
    if kind != "targets":
        return dict(zip(names, read[0], strict=True))
    return {name: np.stack([values[i] for values in read], axis=1) for i, name in enumerate(names)}


def _compare(store: FeatureStore, kind: str, key: str, name: str, found: str, promised: str) -> None:
    if found != promised:
        raise UserError(
            f"{store.path}: {kind} {key}: {name!r} is not what its receipt says; run `recon-pipeline verify`"
        )
