"""Finds and drops what a store holds and nobody asks for: keys that no ref reaches, old caches, remains of killed runs.

Links are never followed, and nothing outside of the store is touched. A key that is being written has no ref yet, so
whoever calls `collect` holds the store's lock.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import sync_directory
from recon.pipeline.keeping.layout import measure
from recon.pipeline.keeping.retired import bytes_of, drop_rows
from recon.pipeline.store import twins
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.store.keys import KINDS
from recon.pipeline.store.names import list_refs, named_keys

DAY = 86400.0
_TEMPORARY = (".writing-*", ".*.tmp", "*.partial-*", "*.partial")  # the last is Zarr's
_TEMPORARY_DAYS = 1.0
_REMAINS = ".gc-"


@dataclass(frozen=True)
class GcItem:
    """One thing that may go, or that is kept for its age."""

    path: str
    """Relative to the store."""
    kind: str
    """The store's kind for a key, else rows (that a ref retired), receipts, cache, running, temporary or remains (of a
    collection cut off)."""
    key: str
    """ "" for what is no key; of rows, the time when they were retired."""
    bytes: int
    reason: str
    newest: float
    """Seconds since 1970: when it was last written; for a cache, or read."""


@dataclass(frozen=True)
class GcPlan:
    """What `collect` would drop, and what it will when it is old enough."""

    items: tuple[GcItem, ...]
    young: tuple[GcItem, ...]
    skipped: tuple[str, ...]
    """Lines on what lies behind a link and is left alone."""

    bytes: int
    """Freed by dropping all items."""


def plan_gc(store: FeatureStore, grace_days: float, now: float | None = None) -> GcPlan:
    """What no ref reaches and has not changed for `grace_days`. Changes nothing.

    A ref reaches the keys it names and every key their recipes name. A key too young to go keeps what its recipe
    names. The trainer's caches do not say what they are copies of, so they are judged by when they were last read.
    UserError for a damaged ref or recipe: what it reaches cannot be told.
    """
    if not grace_days >= 0 or math.isinf(grace_days):
        raise UserError(f"grace period: {grace_days} days; give a number of 0 or more")
    now = time.time() if now is None else now
    oldest = now - grace_days * DAY
    skipped: list[str] = []
    keys = [
        (kind, key)
        for kind, key in store.list_keys()
        if all(_is_inside(store.path, folder, skipped) for folder in (f"{kind}/{key}", f"receipts/{key}"))
    ]
    if (store.path / "cache").is_symlink():
        _is_inside(store.path, "cache", skipped)
    found = [
        *_retired(store),
        *_keys(store, keys),
        *_orphan_receipts(store),
        *_caches(store),
        *_entries(store, "running"),
    ]
    items = [item for item in found if item.newest <= oldest]
    young = [item for item in found if item.newest > oldest]
    needed = _upstream(store, {item.key for item in young if item.kind in KINDS})
    items = [item for item in items if item.key not in needed or item.kind not in KINDS]
    items.sort(key=lambda item: item.kind == "rows")  # when whole keys have gone
    items += _remains(store)
    doomed = [item.path for item in items] + [f"receipts/{item.key}" for item in items if item.kind in KINDS]
    items += _temporaries(store, doomed, now - _TEMPORARY_DAYS * DAY)
    items = [item for item in items if _is_inside(store.path, item.path, skipped)]
    return GcPlan(tuple(items), tuple(young), tuple(skipped), sum(item.bytes for item in items))


def collect(store: WritableStore, plan: GcPlan) -> tuple[GcItem, ...]:
    """Drop the plan's items; those that were dropped.

    What a ref has come to reach since, or what has been written since (a cache: read), is kept. At any point where
    this may be cut off, a key either is whole or has no receipt, so nothing of it counts as done: first its receipts
    go in one rename, then its second copies (which would bring its folder back), then its folder in one rename; what
    has been renamed is deleted last, now or by the next collection. UserError for an item outside of the store,
    before anything is dropped.
    """
    for item in plan.items:
        _require_inside(store.path, item.path)
    dropped = []
    for item in plan.items:
        try:
            if item.newest != _newest(store, item) or (item.kind in KINDS and item.key in _reachable(store)):
                continue
            if item.kind in KINDS:
                _drop_key(store, item)
            elif item.kind == "rows":
                drop_rows(store, PurePosixPath(item.path).stem, item.key)
            else:
                _delete(store, item.path)
            dropped.append(item)
        except OSError as error:
            raise UserError(f"{store.path / item.path}: cannot be deleted: {error.strerror or error}") from error
    return tuple(dropped)


def _newest(store: FeatureStore, item: GcItem) -> float:
    if item.kind == "rows":
        return item.newest if item.key in store.retired(PurePosixPath(item.path).stem) else 0.0
    if item.kind in KINDS:
        return _newest_of_key(store, item.kind, item.key)
    return measure(store.path / item.path, read=item.kind == "cache")[1]


def _drop_key(store: FeatureStore, item: GcItem) -> None:
    aside = [_rename(store, f"receipts/{item.key}")]
    twins.forget(store.path, item.path)
    aside.append(_rename(store, item.path))
    for path in aside:
        if path is not None:
            shutil.rmtree(path)


def _delete(store: FeatureStore, relative: str) -> None:
    """Delete a file or a folder; of a folder, no half is ever to be seen under its name."""
    path = store.path / relative
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path if path.name.startswith(_REMAINS) else _rename(store, relative)
    if aside is not None:
        shutil.rmtree(aside)


def _rename(store: FeatureStore, relative: str) -> Path | None:
    """Take a folder out of use: the new path, or None if there is no such folder."""
    path = store.path / relative
    if not path.is_dir():
        return None
    _require_inside(store.path, relative)
    aside = store.path / f"{_REMAINS}{relative.replace('/', '-')}-{os.getpid()}-{time.time_ns()}"
    path.rename(aside)
    sync_directory(path.parent)
    sync_directory(store.path)
    return aside


# ---- keys


def _reachable(store: FeatureStore) -> set[str]:
    """Keys that the refs name, and all those upstream of them."""
    return _upstream(store, {key for ref in list_refs(store) for _, key in named_keys(ref).values()})


def _upstream(store: FeatureStore, keys: Iterable[str]) -> set[str]:
    """`keys`, and every key of the store that a recipe of theirs names in any field."""
    kind_of = {key: kind for kind, key in store.list_keys()}
    reached = set(keys)
    waiting = [key for key in reached if key in kind_of]
    while waiting:
        key = waiting.pop()
        try:
            named = set(_texts(store.recipe(kind_of[key], key)))
        except Exception as error:  # zarr raises many kinds for a damaged zarr.json
            path = store.path / kind_of[key] / key / "zarr.json"
            raise UserError(
                f"{path}: unreadable ({error}), so what it needs is unknown; `retry` restores it"
            ) from error
        waiting += [key for key in named - reached if key in kind_of]
        reached |= named
    return reached


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _keys(store: FeatureStore, keys: Iterable[tuple[str, str]]) -> Iterator[GcItem]:
    """Keys that no ref reaches, with their receipts."""
    reached = _reachable(store)
    for kind, key in keys:
        if key not in reached:
            size = sum(measure(store.path / folder)[0] for folder in (f"{kind}/{key}", f"receipts/{key}"))
            yield GcItem(f"{kind}/{key}", kind, key, size, "no ref reaches it", _newest_of_key(store, kind, key))


def _newest_of_key(store: FeatureStore, kind: str, key: str) -> float:
    """When the newest receipt was written; without one, the group."""
    times = [store.receipt_path(key, *place).lstat().st_mtime for place in store.receipt_places(key)]
    group = store.path / kind / key / "zarr.json"
    return max(times) if times else group.lstat().st_mtime if group.exists() else 0.0


# ---- what is no key


def _retired(store: FeatureStore) -> Iterator[GcItem]:
    """Rows that manifests list no more."""
    for ref in list_refs(store):
        for when, rows in store.retired(ref).items():
            reason = f"{len(rows)} shapes that {ref.name!r} no longer lists"
            newest = datetime.fromisoformat(when).timestamp()
            yield GcItem(f"refs/{ref.name}.json", "rows", when, bytes_of(store, rows.tolist()), reason, newest)


def _orphan_receipts(store: FeatureStore) -> Iterator[GcItem]:
    """Receipts of keys of which nothing is there: not even a damaged folder that could be mended."""
    for path in _folders(store.path / "receipts"):
        if not any((store.path / kind / path.name).exists() for kind in KINDS):
            yield _item(store, path, "receipts", "receipts of a key that is gone", key=path.name)


def _caches(store: FeatureStore) -> Iterator[GcItem]:
    for path in _folders(store.path / "cache"):
        if not path.name.startswith("."):
            yield _item(store, path, "cache", "a copy not read lately; made again if asked", read=True)


def _entries(store: FeatureStore, folder: str) -> Iterator[GcItem]:
    """Notes of workers."""
    for path in _listed(store.path / folder):
        yield _item(store, path, folder, "left behind by a worker")


def _remains(store: FeatureStore) -> Iterator[GcItem]:
    for path in _listed(store.path):
        if path.name.startswith(_REMAINS):
            yield _item(store, path, "remains", "left by a collection that was cut off")


def _temporaries(store: FeatureStore, gone: Iterable[str], oldest: float) -> list[GcItem]:
    """Old unfinished files and folders, but for those in folders that go anyway."""
    found = []
    doomed = {store.path / relative for relative in gone}
    for folder, folders, files in os.walk(store.path):
        here = Path(folder)
        temporary = [n for n in (*folders, *files) if any(fnmatch(n, p) for p in _TEMPORARY)]
        for name in temporary:
            path = here / name
            item = _item(store, path, "temporary", "left behind by a run that was killed")
            if item.newest <= oldest and path not in doomed and not path.is_symlink():
                found.append(item)
        folders[:] = [n for n in folders if n not in temporary and here / n not in doomed]
    return found


def _item(store: FeatureStore, path: Path, kind: str, reason: str, key: str = "", read: bool = False) -> GcItem:
    size, newest = measure(path, read)
    return GcItem(path.relative_to(store.path).as_posix(), kind, key, size, reason, newest)


def _listed(path: Path) -> list[Path]:
    """Entries of a folder that are no links; none of a folder that is one."""
    if path.is_symlink() or not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if not entry.is_symlink())


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _listed(path) if entry.is_dir()]


# ---- staying inside


def _is_inside(root: Path, relative: str, skipped: list[str]) -> bool:
    """Whether a path may be dropped; a line goes to `skipped` if not."""
    try:
        _require_inside(root, relative)
    except UserError as error:
        skipped.append(str(error))
        return False
    return True


def _require_inside(root: Path, relative: str) -> None:
    """UserError unless `relative` is a place in the store that is reached through no link."""
    parts = PurePosixPath(relative).parts
    inside = parts and not PurePosixPath(relative).is_absolute() and ".." not in parts
    if not inside or (root / relative).resolve() != root.resolve() / relative:
        raise UserError(f"{relative}: lies behind a link or outside of {root}; left alone")
