"""The numbers by which odd features show: norms, dimensions that say nothing, and which pairs look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureStatistics:
    """Sampled features of one teacher, draw 0; for text the rows are prompts. None where there is no such pair."""

    teacher: str
    sampled: int
    dim: int
    norm_mean: float
    norm_std: float
    norm_min: float
    norm_max: float
    center_mean: float
    center_std: float
    """Over the dimensions, of the features' mean."""
    constant_dims: int
    """Dimensions with one value in all of the sample."""
    cosine_random: float | None
    """Mean over all pairs of two rows, and so of what follows: exact for the sample, not drawn."""
    cosine_views: float | None
    """Two views of one shape."""
    cosine_same_class: float | None
    cosine_other_class: float | None


@dataclass(frozen=True)
class LiftedStatistics:
    """Features of points of one teacher, sampled."""

    teacher: str
    sampled: int
    points: int
    """A shape."""
    shown: float
    """Share of the points that a view shows."""
    views: float
    """How many show such a point, on average."""


def feature_statistics(
    teacher: str, feat: NDArray[Any], classes: NDArray[np.int64], present: NDArray[np.bool_] | None = None
) -> FeatureStatistics:
    """Of features [S, V, D] of S >= 1 rows with V views each; `classes` [S] says which rows are of one kind.

    present [S, V]: which of them are there, one or more a row; None: all.
    """
    rows, num_views, dim = feat.shape
    there = np.ones((rows, num_views), np.bool_) if present is None else present
    values = feat.astype(np.float32)[there]
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    center = values.mean(axis=0, dtype=np.float64)
    unit = np.zeros(feat.shape, np.float32)
    unit[there] = values / np.maximum(norms, 1e-30)[:, None]
    # The mean cosine of all pairs of two groups is the dot product of their sums, so no pair needs to be drawn.
    shape_sum = unit.sum(axis=1, dtype=np.float64)
    within = (shape_sum**2).sum(axis=1)
    itself = (unit.astype(np.float64) ** 2).sum(axis=(1, 2))
    names, index = np.unique(classes, return_inverse=True)
    class_sum = np.zeros((len(names), dim))
    np.add.at(class_sum, index, shape_sum)
    everything = float((class_sum.sum(axis=0) ** 2).sum())
    same, own = float((class_sum**2).sum()), float(within.sum())
    held = there.sum(axis=1).astype(np.float64)
    of_class = np.bincount(index, held)
    of_one = float((held**2).sum())
    same_pairs = float((of_class**2).sum()) - of_one
    all_pairs = float(held.sum()) ** 2 - of_one

    def mean(total: float, pairs: float) -> float | None:
        return total / pairs if pairs else None

    several = held > 1
    of_views = (within - itself)[several] / (held * (held - 1))[several]
    views = float(of_views.mean()) if len(of_views) else None
    return FeatureStatistics(
        teacher=teacher,
        sampled=rows,
        dim=dim,
        norm_mean=float(norms.mean()),
        norm_std=float(norms.std()),
        norm_min=float(norms.min()),
        norm_max=float(norms.max()),
        center_mean=float(center.mean()),
        center_std=float(center.std()),
        constant_dims=int((values.min(axis=0) == values.max(axis=0)).sum()),
        cosine_random=mean(everything - own, all_pairs),
        cosine_views=views,
        cosine_same_class=mean(same - own, same_pairs),
        cosine_other_class=mean(everything - same, all_pairs - same_pairs),
    )
