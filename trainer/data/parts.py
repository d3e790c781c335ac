"""Part labels: which parts the shapes of a data set have, and which part each point is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Points, Ref
from recon.trainer.data.points import farthest_order
from recon.trainer.data.reading import iterate_rows


@dataclass(frozen=True)
class PartLabels:
    """The parts of a ref's shapes, numbered over all its categories, whatever split a shape is in."""

    names: tuple[str, ...]
    """[num_parts] e.g. "chair/leg", or as a labelled data set calls them"""
    of_category: NDArray[np.bool_]
    """[num_categories, num_parts] which parts a category's shapes can have"""
    points: Points
    own: dict[int, NDArray[np.int16]]
    """Row of the store -> the numbers of the parts it calls 0, 1, ...; empty where the store's numbers are these"""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """[N, P] the part of each point, in the order of `points.xyz`. rows: ascending.

        UserError for a damaged shard and a number that is no part's.
        """
        part = np.empty((len(rows), self.points.part.shape[1]), np.int16)
        for place, values in iterate_rows(self.points.part, rows, "part labels"):
            for index, stored in zip(range(place.start, place.stop), values, strict=True):
                own = self.own[int(rows[index])] if self.own else None
                count = len(self.names) if own is None else len(own)
                if stored.max() >= count:
                    raise UserError(f"part labels: row {rows[index]} has number {stored.max()}, of {count} parts")
                part[index] = stored if own is None else own[stored]
        return part

    def read_farthest(self, rows: NDArray[np.int64], num_points: int) -> NDArray[np.int16]:
        """[N, num_points] the same of each row's farthest points, in their order."""
        order = farthest_order(self.points, rows, num_points)
        part: NDArray[np.int16] = np.take_along_axis(self.read(rows), order, axis=1)
        return part


def load_parts(store: FeatureStore, ref: Ref, categories: list[str], numbers: NDArray[np.int64]) -> PartLabels:
    """The parts of a ref; categories, numbers: [num_categories] their names and their numbers in the registry.

    A labelled data set (ShapeNetPart) says them in its recipe, of meshes each tells its own. UserError where no
    category has two parts.
    """
    points = store.points(ref)
    recipe = store.recipe("points", points.key)
    if "clouds" in recipe:
        names = tuple(map(str, part_of(recipe, "clouds").get("parts") or ()))
        of_category = np.array([[part.rpartition(" ")[0] == name for part in names] for name in categories], np.bool_)
        labels = PartLabels(names, of_category.reshape(len(categories), len(names)), points, {})
    else:
        labels = _of_meshes(store, ref, points, categories, numbers)
    if labels.of_category.sum(axis=1, initial=0).max(initial=0) < 2:
        raise UserError(
            f"{store.path}: ref {ref.name!r} has no part labels; segmentation needs shapes of several named parts, as "
            "ShapeNetPart's and the demo's are"
        )
    return labels


def _of_meshes(
    store: FeatureStore, ref: Ref, points: Points, categories: list[str], numbers: NDArray[np.int64]
) -> PartLabels:
    parts = store.part_names(ref)
    rows = np.flatnonzero(points.ok)
    category = dict(zip(numbers.tolist(), categories, strict=True))
    named = {int(row): [f"{category[store.registry.category[row]]}/{part}" for part in parts[row]] for row in rows}
    names = tuple(sorted({name for found in named.values() for name in found}))
    number = {name: index for index, name in enumerate(names)}
    of_category = np.array([[name.startswith(f"{each}/") for name in names] for each in categories], np.bool_)
    own = {row: np.array([number[name] for name in found], np.int16) for row, found in named.items()}
    return PartLabels(names, of_category, points, own)
