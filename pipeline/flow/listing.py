"""A manifest's shapes as rows of a store: new ones get one, and what is no longer listed is retired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

from recon.pipeline.base.errors import UserError
from recon.pipeline.sources.source import Shape
from recon.pipeline.store.feature_store import WritableStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS


def register(store: WritableStore, dataset: str, shapes: Sequence[Shape], whole: bool) -> list[str]:
    """Give every new shape a row, and note what the manifest says differently now of those that have one.

    `whole`: the shapes are all that the manifest lists, so the data set's other rows are retired: nothing uses them,
    until they are listed again or `gc` drops them. Lines for people. UserError, with nothing changed, for no shape at
    all, and for a whole listing that has no shape of those listed before.
    """
    if not shapes:
        raise UserError("the manifest lists no shape; look at its source and --root")
    rows: dict[str, int] = {}
    if store.has_registry:
        rows = store.registry.numbers(dataset)
        before = set(store.listed_rows(dataset).tolist())
        if whole and before and not any(rows.get(shape.uid) in before for shape in shapes):
            raise UserError(
                f"{store.path}: the manifest lists none of the {len(before)} shapes that {dataset!r} has there: is it "
                "another root, or another manifest of this name? Nothing was changed. Give the manifest a name of its "
                "own; if all shapes were renamed, run it with --limit 1 first, and then again"
            )
        _update(store, rows, shapes)
    fresh = [shape for shape in shapes if shape.uid not in rows]
    if fresh:
        store.append_registry({name: [getattr(shape, name) for shape in fresh] for name in REGISTRY_COLUMNS})
        rows = store.registry.numbers(dataset)
    notes = _namesakes(store, dataset, {shape.uid for shape in fresh})
    retired = store.list_rows(dataset, [rows[shape.uid] for shape in shapes], whole)
    if not retired:
        return notes
    return [
        *notes,
        f"{retired} shapes that {dataset!r} no longer lists are retired: nothing uses them any more, and `gc` drops "
        "them; a shape that is listed again comes back as it was",
    ]


def _namesakes(store: WritableStore, dataset: str, fresh: set[str]) -> list[str]:
    """A line for each other data set that has shapes of the same uids as these new ones."""
    registry = store.registry
    pairs = zip(registry.uid, registry.dataset, strict=True)
    others = Counter(other for uid, other in pairs if uid in fresh and other not in ("", dataset))
    return [
        f"{count} new shapes of {dataset!r} have uids of shapes of {other!r}: each data set has rows of its own"
        for other, count in sorted(others.items())
    ]


def _update(store: WritableStore, rows: dict[str, int], shapes: Sequence[Shape]) -> None:
    """Another category, split, source or fingerprint of shapes that have a row."""
    registry = store.registry
    held = {
        "category": [registry.categories[i] for i in registry.category],
        "split": registry.split,
        "source": registry.source,
        "fingerprint": registry.fingerprint,
    }
    for name, values in held.items():
        now = {rows[shape.uid]: cast(str, getattr(shape, name)) for shape in shapes if shape.uid in rows}
        changed = {row: value for row, value in now.items() if value != values[row]}
        if changed:
            store.update_registry(name, changed)
