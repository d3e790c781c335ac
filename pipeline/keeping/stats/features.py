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


def feature_statistics(teacher: str, feat: NDArray[Any], classes: NDArray[np.int64]) -> FeatureStatistics:
    """Of features [S, V, D] of S >= 1 rows with V views each; `classes` [S] says which rows are of one kind."""
    rows, num_views, dim = feat.shape
    values = feat.astype(np.float32).reshape(-1, dim)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    center = values.mean(axis=0, dtype=np.float64)
    unit = (values / np.maximum(norms, 1e-30)[:, None]).reshape(rows, num_views, dim)
    # The mean cosine of all pairs of two groups is the dot product of their sums, so no pair needs to be drawn.
    shape_sum = unit.sum(axis=1, dtype=np.float64)
    within = (shape_sum**2).sum(axis=1)
    itself = (unit.astype(np.float64) ** 2).sum(axis=(1, 2))
    names, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    class_sum = np.zeros((len(names), dim))
    np.add.at(class_sum, index, shape_sum)
    everything = float((class_sum.sum(axis=0) ** 2).sum())
    same, own = float((class_sum**2).sum()), float(within.sum())
    same_pairs = float((counts.astype(np.float64) ** 2).sum() - rows)
    all_pairs = float(rows) * (rows - 1)

    def mean(total: float, pairs: float) -> float | None:
        return total / pairs / num_views**2 if pairs else None

    views = float((within - itself).mean()) / (num_views * (num_views - 1)) if num_views > 1 else None
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
