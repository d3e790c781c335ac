"""Part segmentation: how well the parts of shapes are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def part_ious(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], category: NDArray[np.int64], of_category: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[N] the mean intersection over union of a shape's parts, which are those of its category.

    predicted, truth: [N, P] parts of points; category: [N]; of_category: [num_categories, num_parts]. As in the
    release, a part that a shape has no point of, in truth or prediction, counts as 1.
    """
    num_shapes, num_parts = len(truth), of_category.shape[1]
    shape = np.arange(num_shapes)[:, None] * num_parts

    def counts(parts: NDArray[np.int64], which: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        places = (shape + parts)[which] if which is not None else (shape + parts).ravel()
        return np.bincount(places, minlength=num_shapes * num_parts).reshape(num_shapes, num_parts)

    both = counts(truth, predicted == truth)
    union = counts(predicted) + counts(truth) - both
    iou = np.where(union > 0, both / np.maximum(union, 1), 1.0)
    possible = of_category[category]
    mean: NDArray[np.float64] = (iou * possible).sum(axis=1) / possible.sum(axis=1)
    return mean


def part_measures(
    predicted: NDArray[np.int64],
    truth: NDArray[np.int64],
    category: NDArray[np.int64],
    of_category: NDArray[np.bool_],
    categories: list[str],
) -> dict[str, Any]:
    """Mean IoU over shapes (`instance_miou`) and over categories' means (`class_miou`), the share of points named
    rightly (`accuracy`), and each category's mean IoU; arguments as for `part_ious`.
    """
    ious = part_ious(predicted, truth, category, of_category)
    of_each = {
        name: float(ious[category == number].mean()) if (category == number).any() else None
        for number, name in enumerate(categories)
    }
    tested = [value for value in of_each.values() if value is not None]
    return {
        "instance_miou": float(ious.mean()),
        "class_miou": float(np.mean(tested)),
        "accuracy": float(np.mean(predicted == truth)),
        "per_class": of_each,
    }
