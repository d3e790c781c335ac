"""A store's finished shapes of one split, as probes take them: their farthest points and their categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Points, Ref
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.dataset import rows_of_splits
from recon.trainer.data.points import farthest_points


@dataclass(frozen=True)
class Labelled:
    """Rows of a split that have points, whatever else the store holds of them."""

    points: Points
    row: NDArray[np.int64]
    """[N] rows of the store, ascending"""
    category: NDArray[np.int64]
    """[N] index into `categories`"""
    categories: list[str]
    """Names of the categories of the ref's data set, sorted; those of every split"""
    numbers: NDArray[np.int64]
    """[num_categories] their numbers in the store's registry"""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def num_stored(self) -> int:
        """Points that the store holds of a shape."""
        return int(self.points.xyz.shape[1])

    def farthest_points(self, num_points: int, color: bool = False, default_color: float = DEFAULT) -> Tensor:
        """The `num_points` farthest points of every shape, raw, in that order: [N, num_points, 3] float32; with `color`
        [N, num_points, 6], as `farthest_points` of the trainer's data has them.

        UserError for a damaged shard, and where the store has fewer points.
        """
        if num_points > self.num_stored:
            raise UserError(
                f"data.num_points: {num_points} asked for, the store holds {self.num_stored} a shape; lower it, or "
                "raise sample.num_points in the manifest"
            )
        return farthest_points(self.points, self.row, num_points, color, default_color)


def check_taught(data: Labelled, split: str, taught: NDArray[np.int64], splits: Sequence[str], store: Path) -> None:
    """UserError where a category of `data`, a store's `split`, is not among those that `splits` have `taught`."""
    untaught = [data.categories[number] for number in np.setdiff1d(data.category, taught)]
    if untaught:
        raise UserError(
            f"{store}: split {split!r} has shapes of {', '.join(untaught[:3])}{' and more' * (len(untaught) > 3)}, of "
            f"which no shape of {' and '.join(splits)} is finished; see `recon-pipeline status`"
        )


def load_labelled(store: FeatureStore, ref: Ref, *splits: str) -> Labelled:
    """UserError for a ref without points, a split it does not have, and splits of which no shape is finished."""
    points = store.points(ref)
    in_splits, numbers = rows_of_splits(store, ref, splits)
    rows = np.flatnonzero(in_splits & points.ok)
    if not len(rows):
        named = " and ".join(map(repr, splits))
        raise UserError(f"{store.path}: no points of split {named} are finished; run `recon-pipeline status`")
    registry = store.registry
    category = np.searchsorted(numbers, registry.category[rows])
    return Labelled(points, rows, category, [registry.categories[number] for number in numbers], numbers)
