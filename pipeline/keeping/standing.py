"""Whether the shapes of a data set seem to stand the way its manifest says that they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.upright import DIRECTIONS, UNCLEAR, likely_up
from recon.pipeline.store.columns import open_column, read_rows
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import part_of

SAMPLE = 256
"""Shapes that are looked at after a run, some milliseconds each."""
TOLD = 20
"""Shapes whose way up is clear, at least, before anything is said: of single ones the guess is often wrong."""


def standing_of(store: FeatureStore, key: str, dataset: str) -> list[str]:
    """What is to be said of a data set's finished points, of up to SAMPLE shapes spread over its rows."""
    mine = store.listed_rows(dataset)
    rows = mine[store.ok(key, len(store.registry))[mine]]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64))]
    xyz = open_column(store.kind_group("points", key), "xyz")
    ways = Counter(likely_up(read_rows(xyz, [row])[0]) for row in rows.tolist())
    return describe_standing(ways, *declared(store, key))


def declared(store: FeatureStore, key: str) -> tuple[str, str]:
    """The files' own up and front, as the manifest of these points says."""
    recipe = store.recipe("points", key)
    origin = part_of(recipe, "clouds")
    if not origin and isinstance(meshes := recipe.get("meshes"), str):
        origin = part_of(store.recipe("meshes", meshes), "origin")
    return str(origin.get("up", "+Y")), str(origin.get("front", "+Z"))


def describe_standing(ways: Mapping[str, int], up: str, front: str) -> list[str]:
    """A line where most of the shapes whose way up is clear stand by another axis than the files are said to have.

    ways: shapes by likely way up, in the project's axes. What hangs is misjudged, so this is a word and no error.
    """
    told = {way: count for way, count in ways.items() if way != UNCLEAR}
    number = sum(told.values())
    if number < TOLD:
        return []
    way, most = max(told.items(), key=lambda item: item[1])
    if way == "+Y" or most <= number / 2:
        return []
    axis = np.zeros(3)
    at = DIRECTIONS.index(way)
    axis[at // 2] = 1 - 2 * (at % 2)
    own = axes(up, front).T @ axis
    found = DIRECTIONS[int(2 * np.abs(own).argmax() + (own.sum() < 0))]
    return [
        f"axes: {most} of {number} sampled shapes whose way up is clear stand by the files' {found}, where the "
        f'manifest says source.up = "{up}": if {found} is right, set it (and front) and run the same again'
    ]
