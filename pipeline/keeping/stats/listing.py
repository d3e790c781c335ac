"""What a store holds: one line a key, for `ls`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import zarr

from recon.pipeline.keeping.layout import measure
from recon.pipeline.store.columns import column_names, open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.names import list_refs, named_keys


@dataclass(frozen=True)
class KeyLine:
    """One key of the store."""

    kind: str
    key: str
    summary: str
    """Its recipe in a few words."""
    refs: tuple[str, ...]
    """Names of the refs that reach it."""
    rows: int
    """Rows of those refs' datasets (for text: prompts), times lanes; without a ref, rows its columns have room for."""
    done: int
    failed: int
    lanes: int
    columns: tuple[str, ...]
    """As "xyz [8192, 3] float32": the shape of one row."""
    bytes: int
    """Of the key's files; receipts are not among them."""
    oldest: str | None
    newest: str | None
    """When its first and its last receipt were written, UTC."""
    codes: tuple[str, ...]
    """Digests of the code that made its finished rows; "" of rows whose maker did not tell."""


def list_store(store: FeatureStore) -> list[KeyLine]:
    """One line a key, kind by kind."""
    refs = list_refs(store)
    shapes = {ref.name: len(store.rows(ref)) if store.has_registry else 0 for ref in refs}
    lines = []
    for kind, key in store.list_keys():
        group = store.kind_group(kind, key)
        arrays = {name: open_column(group, name) for name in column_names(group)}
        lanes = arrays["feat"].shape[0] if kind == "targets" and "feat" in arrays else 1
        lead = 2 if kind == "targets" else 1
        receipts = list(store.receipts(key))
        reached = [ref for ref in refs if (kind, key) in named_keys(ref).values()]
        room = max((array.shape[lead - 1] for array in arrays.values() if array.ndim >= lead), default=0)
        rows = sum({ref.dataset: shapes[ref.name] for ref in reached}.values()) if reached and kind != "text" else room
        times = sorted(store.receipt_path(key, *place).stat().st_mtime for *place, _ in receipts)
        lines.append(
            KeyLine(
                kind,
                key,
                summarize(kind, dict(group.attrs)),
                tuple(ref.name for ref in reached),
                rows * lanes,
                sum(sum(receipt.ok) for _, _, receipt in receipts),
                sum(len(receipt.failed) for _, _, receipt in receipts),
                lanes,
                tuple(f"{name} {list(array.shape[lead:])} {_dtype(array)}" for name, array in arrays.items()),
                measure(store.path / kind / key)[0],
                _moment(times[0]) if times else None,
                _moment(times[-1]) if times else None,
                tuple(sorted({code for _, _, receipt in receipts for code in receipt.codes})),
            )
        )
    return lines


def summarize(kind: str, attributes: dict[str, Any]) -> str:
    """A recipe in a few words: "ring6 128px", "demo open_clip pooled fp32"."""
    recipe = attributes.get("recipe", {})
    if kind == "meshes":
        return _source(part_of(recipe, "origin"))
    if kind == "points":
        of = f" of {_source(part_of(recipe, 'clouds'))}" if "clouds" in recipe else ""
        return f"{recipe.get('num_points')} points{of}, seed {recipe.get('seed')}"
    if kind == "views":
        render = part_of(recipe, "render")
        cameras = render.get("cameras")
        preset = attributes.get("preset") or f"{len(cameras) if isinstance(cameras, list) else 0} views"
        return f"{preset} {render.get('resolution')}px"
    if kind == "lifted":
        name, count = part_of(attributes, "teacher").get("name"), recipe.get("num_points")
        return f"{name} on {count} points"
    if kind in ("targets", "text"):
        spec, teacher = part_of(attributes, "teacher"), part_of(recipe, "teacher")
        tap = (teacher.get("tap"),) if kind == "targets" else ()
        words = (spec.get("name"), teacher.get("kind"), teacher.get("of"), *tap, teacher.get("precision"))
        return " ".join(str(word) for word in words if word)
    if kind == "captions":
        return " ".join(
            str(word) for word in (attributes.get("source"), attributes.get("name", recipe.get("name"))) if word
        )
    return f"{kind} version {recipe.get('version')}"


def _source(recipe: dict[str, Any]) -> str:
    return " ".join(str(recipe[name]) for name in ("layout", "up", "front") if name in recipe)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _dtype(array: zarr.Array[Any]) -> str:
    return "str" if array.dtype.kind in "TUO" else str(array.dtype)
