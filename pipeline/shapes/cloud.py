"""Ready-made point clouds, as data sets come with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cloud:
    """A ready-made point cloud in the project's axes and its own units, in stored order."""

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
