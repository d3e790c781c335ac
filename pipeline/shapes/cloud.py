"""Ready-made point clouds, as data sets come with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.axes import to_origin


@dataclass(frozen=True)
class Cloud:
    """A ready-made point cloud in the project's axes and its own units, in stored order; see `nearby`."""

    xyz: NDArray[np.float32]
    """[P, 3]"""
    normal: NDArray[np.float32] | None = None
    """[P, 3], unit length"""
    color: NDArray[np.uint8] | None = None
    """[P, 3] linear RGB times 255"""
    part: NDArray[np.uint8] | None = None
    """[P] index into `parts`"""
    parts: tuple[str, ...] = ()
    """Names of the parts that the data set knows, whether this shape has them or not."""
    unnamed: int = 0
    """Columns of the file that nothing says the meaning of, and that were passed over."""


def nearby(xyz: NDArray[Any]) -> NDArray[np.float32]:
    """[P, 3] points as float32, moved to the origin where they are too far from it for that; see `axes.to_origin`."""
    if len(xyz) and xyz.dtype != np.float32:  # of which nothing is left to save
        with np.errstate(invalid="ignore"):  # of points that are not finite, which `take_points` refuses
            by = to_origin(xyz.min(0).astype(np.float64), xyz.max(0).astype(np.float64))
        if by is not None:
            xyz = xyz + by
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(xyz, np.float32)
