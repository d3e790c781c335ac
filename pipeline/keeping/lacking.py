"""Shapes that are not quite what their files say: those whose meshes name files that are missing, and those moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recon.pipeline.base.wording import some
from recon.pipeline.store.columns import parsed, read_column
from recon.pipeline.store.forms import FACTS
from recon.pipeline.store.reader import StoreReader

EXAMPLES = 3


@dataclass(frozen=True)
class Lacking:
    """Counts of shapes; see `meshfile.load_mesh` for what their facts say."""

    shapes: int
    """That are drawn without something they name."""
    files: int
    """Of all these shapes."""
    examples: tuple[str, ...]
    """The first shapes, as "uid: what is missing"."""
    moved: int
    """That lay too far from the origin."""


def lacking_of(store: StoreReader, key: str, rows: Sequence[int]) -> Lacking:
    """Of the meshes under a key that are finished and among some registry rows."""
    registry = store.registry
    ok = store.ok(key, len(registry))
    group = store.kind_group("meshes", key)
    texts = read_column(group, "facts", len(registry))
    missing: dict[int, list[str]] = {}
    moved = 0
    for row in rows:
        if ok[row] and ("missing_files" in texts[row] or "moved" in texts[row]):
            facts = parsed(texts[row], FACTS, f"{group.store_path}/facts: row {row}")
            moved += "moved" in facts
            if names := facts.get("missing_files"):
                missing[row] = names
    first = list(missing.items())[:EXAMPLES]
    examples = tuple(f"{registry.uid[row]}: {some(names, len(names), most=1)}" for row, names in first)
    return Lacking(len(missing), sum(map(len, missing.values())), examples, moved)


def describe(found: Lacking) -> list[str]:
    """For people: a line each, or none where nothing is to be said."""
    lines = []
    if found.shapes:
        such = some(found.examples, found.shapes, most=1)
        lines.append(f"missing files: {found.shapes} shapes name {found.files} that are not there, such as {such}")
    if found.moved:
        lines.append(f"far away: {found.moved} shapes were moved to the origin, so that float32 can hold their points")
    return lines
