"""Points in an order in which neighbours lie near each other."""

import numpy as np
from numpy.typing import NDArray

BITS = 5
"""Of three sides, 32 cells each, a cell's number has 15 bits: NumPy sorts 16 at 3 nanoseconds a point, 64 at 25."""
CELLS = np.arange(2**BITS, dtype=np.uint16)
APART = np.bitwise_or.reduce([(CELLS >> bit & 1) << 3 * bit for bit in range(BITS)])
"""The bits of a cell's place along a side, two between two."""


def order(points: NDArray[np.floating], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places [B, N] of points [B, N, D] along a Z-curve through the cells of a grid; those beyond sizes [B] come last.

    The grid is that of the first three coordinates. Points of one cell stay in their order.
    """
    cell = np.zeros(points.shape[:2], np.uint16)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for axis, plane in enumerate(np.ascontiguousarray(points.transpose(2, 0, 1)[:3])):
            low, high = plane.min(1, keepdims=True), plane.max(1, keepdims=True)
            # Without a side to cut, or one too long for the dtype, a point is in some cell: any order is an order.
            cell |= APART.take(((plane - low) * (CELLS[-1] / (high - low))).astype(np.int16) & CELLS[-1]) << axis
    if (sizes < points.shape[1]).any():
        cell[np.arange(points.shape[1]) >= sizes[:, None]] = np.iinfo(cell.dtype).max
    return cell.argsort(1, kind="stable")
