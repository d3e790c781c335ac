"""Farthest point sampling, a cloud after the other: all of its distances stay in the first caches."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_numba.compiled import Bits, bits, compiled, in_use, shared

PADDING, CHOSEN, NON_FINITE = -1.0, -2.0, -3.0
"""Running distances of points that may not be chosen yet. All lie below every distance, so that none is ever put in
their place; as integers they ascend: padding is never chosen, chosen points after non-finite ones only."""


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N], start [B] first, of points [B, N, D]; entries beyond lengths [B] are arbitrary."""
    clouds, first = points.detach().numpy(), start.numpy()
    num_clouds, num_points, _ = clouds.shape
    sizes = in_use(lengths)
    idx = np.empty((num_clouds, K), np.int64)

    def some(low: int, high: int) -> None:
        far = np.empty(num_points, clouds.dtype)
        _sample(clouds[low:high], sizes[low:high], first[low:high], far, bits(far), idx[low:high])

    shared(some, num_clouds, K * num_points / 4)
    return torch.from_numpy(idx)


@compiled
def _sample(
    points: NDArray[np.floating],  # [B, N, D]
    sizes: NDArray[np.int64],  # [B], or [0]: all of a cloud's points
    start: NDArray[np.int64],  # [B]
    far: NDArray[np.floating],  # [N], to work in
    far_bits: Bits,  # the same memory
    idx: NDArray[np.int64],  # [B, K], the result
) -> None:
    num_clouds, num_points, width = points.shape
    planes = np.empty((width, num_points), points.dtype)
    for b in range(num_clouds):
        size = sizes[b] if len(sizes) else num_points
        for i in range(num_points):
            finite = True
            for d in range(width):
                planes[d, i] = points[b, i, d]
                finite = finite and np.isfinite(points[b, i, d])
            far[i] = np.inf if finite else NON_FINITE
            if not finite:  # never nearer to anything
                planes[:, i] = -np.inf
            if i >= size:
                far[i] = PADDING
        at = start[b]
        for k in range(idx.shape[1]):
            idx[b, k] = at
            if far[at] >= 0:  # a finite point
                _approach(planes, at, far)
            far[at] = CHOSEN
            at = _first_largest(far_bits)


@compiled
def _approach(planes: NDArray[np.floating], at: int, far: NDArray[np.floating]) -> None:
    """far [N] at most the squared distances to point `at` of planes [D, N]."""
    width, num_points = planes.shape
    if width == 3:
        x, y, z = planes[0, at], planes[1, at], planes[2, at]
        for i in range(num_points):
            dx, dy, dz = planes[0, i] - x, planes[1, i] - y, planes[2, i] - z
            distance = dx * dx + dy * dy + dz * dz
            far[i] = distance if distance < far[i] else far[i]
        return
    for i in range(num_points):
        total = far.dtype.type(0)
        for d in range(width):
            apart = planes[d, i] - planes[d, at]
            total += apart * apart
        far[i] = total if total < far[i] else far[i]


@compiled
def _first_largest(values: Bits) -> int:
    """Where the first of the largest integers stands: two passes, which are both vectorised."""
    largest = values[0]
    for i in range(len(values)):
        largest = max(largest, values[i])
    first = len(values)
    for i in range(len(values)):
        first = min(first, i if values[i] == largest else len(values))
    return first
