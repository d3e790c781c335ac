"""Neighbours in small clouds on a CPU: all pairs at once in NumPy, whose calls cost a fraction of torch's.

Distances have the bits of the other searches: the same differences, summed in the same order.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pairs = NDArray[np.floating]

PAIRS = 2**13
"""Pairs up to which calls, more than arithmetic, are what a search costs."""

ROWS = 2**11
"""Rows up to which that is so of a gradient: 250 microseconds to 468 of torch; with twice as many 428 to 514."""


NON_FINITE, CHOSEN, PADDING = -1.0, -2.0, -3.0
"""Running distances, in sampling, of points that may not be chosen yet; all lie below every distance. Non-finite points
come after every finite one, chosen points after those, padding last."""

ROOT = 0
"""In place of a norm, in gradients alone: the root of norm 2's distances, with a gradient of 0 where it is 0."""


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K <= M] of CPU clouds [B, N, D] and [B, M, D], padding of p2 last."""
    found = _without_padding(_distances(p1, p2, norm), lengths2, 2)
    if K == 1:
        dists, idx = _minimum(found, 2)
        return dists[:, :, None], idx[:, :, None]
    idx = torch.from_numpy(found.argsort(2, kind="stable")[:, :, :K].copy())
    found.sort(2)
    return torch.from_numpy(found[:, :, :K].copy()), idx


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dists, idx [B, N] from CPU clouds x [B, N, D] to y [B, M, D], and [B, M] back; N, M >= 1."""
    found = _distances(x, y, norm)
    forth, back = _without_padding(found, y_lengths, 2), _without_padding(found, x_lengths, 1)
    return *_minimum(forth, 2), *_minimum(back, 1)


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N], start [B] first, of CPU clouds [B, N, D]; entries beyond lengths [B] are arbitrary."""
    sizes = None if lengths is None else lengths.numpy()
    return torch.from_numpy(_farthest(points.detach().numpy(), _distances(points, points, 2), sizes, start.numpy(), K))


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kernels.ops.groups of CPU clouds [B, N, D]: samples and their neighbours from the same distances."""
    cloud, found = points.detach().numpy(), _distances(points, points, 2)
    num_clouds, num_points, width = cloud.shape
    first: NDArray[np.int64] = np.arange(num_clouds)[:, None] * num_points
    chosen = _farthest(cloud, found, None, np.zeros(num_clouds, np.int64), num_group)
    from_centers = found.reshape(-1, num_points).take(chosen + first, 0)  # [B, G, N]
    idx = from_centers.argsort(2, kind="stable")[:, :, :group_size].copy()
    cloud = cloud.reshape(-1, width)
    centers, near = cloud.take(chosen + first, 0), cloud.take(idx + first[..., None], 0)
    with np.errstate(invalid="ignore"):
        near -= centers[..., None, :]
    return torch.from_numpy(near), torch.from_numpy(centers), torch.from_numpy(chosen), torch.from_numpy(idx)


def _farthest(
    points: Pairs, found: Pairs, sizes: NDArray[np.int64] | None, start: NDArray[np.int64], K: int
) -> NDArray[np.int64]:
    """Samples [B, K] of points [B, N, D] with the distances found [B, N, N]."""
    clouds = np.arange(len(points))
    far = np.full(found.shape[:2], np.inf, found.dtype)
    finite = np.isfinite(points)
    if not finite.all():
        far[~finite.all(2)] = NON_FINITE
    if sizes is not None:
        far[np.arange(points.shape[1]) >= sizes[:, None]] = PADDING
    idx, chosen = np.empty((len(far), K), np.int64), start
    for k in range(K):
        idx[:, k] = chosen
        np.minimum(far, found[clouds, chosen], out=far)
        far[clouds, chosen] = CHOSEN
        chosen = far.argmax(1)
    return idx


def matched_backward(
    grad: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int, needs1: bool, needs2: bool
) -> tuple[Tensor, Tensor]:
    """on_torch.knn's of one match a point: grad and idx [B, N], -1 for none; what is not needed comes back empty."""
    values, first, second, near = (tensor.detach().numpy() for tensor in (grad, p1, p2, idx))
    slope = _slope(values, first, second, near, norm)
    of_second = _subtracted(slope, near, p2.shape[1]) if needs2 else np.empty(0, slope.dtype)
    return torch.from_numpy(slope if needs1 else np.empty(0, slope.dtype)), torch.from_numpy(of_second)


def nearest_backward(
    grad_x: Tensor,
    grad_y: Tensor,
    x: Tensor,
    y: Tensor,
    idx_x: Tensor,
    idx_y: Tensor,
    norm: int,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients in x and y of sum(grad_x * dists_x) + sum(grad_y * dists_y), with grad and idx [B, N] and [B, M].

    One that is not needed comes back empty.
    """
    tensors = (grad_x, grad_y, x, y, idx_x, idx_y)
    of_forth, of_back, one, two, forth, back = (tensor.detach().numpy() for tensor in tensors)
    slope_x, slope_y = _slope(of_forth, one, two, forth, norm), _slope(of_back, two, one, back, norm)
    from_x = _subtracted(slope_x, forth, two.shape[1]) if needs_y else np.empty(0, slope_x.dtype)
    if needs_x:
        slope_x += _subtracted(slope_y, back, one.shape[1])
    if needs_y:
        from_x += slope_y
    return torch.from_numpy(slope_x if needs_x else np.empty(0, slope_x.dtype)), torch.from_numpy(from_x)


def _slope(grad: Pairs, first: Pairs, second: Pairs, near: NDArray[np.int64], norm: int) -> Pairs:
    """Gradients in first [B, N, D] of grad [B, N] times the distances to second [B, M, D] at near [B, N]."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = near if len(near) == 1 else near + np.arange(len(near))[:, None] * second.shape[1]
        apart: Pairs = first - second.reshape(-1, second.shape[2]).take(rows, 0)  # of -1 anything
        # All at once where nothing is special: a sum of squares is finite only if each is.
        if norm == 2 and not (near < 0).any() and math.isfinite(np.vdot(apart, apart)):
            apart *= 2
            apart *= grad[..., None]
            return apart
        parts = np.abs(apart) if norm == 1 else apart * apart
        distance = parts[..., 0].copy()
        for part in range(1, parts.shape[2]):
            distance += parts[..., part]
        inside = (near >= 0) & np.isfinite(distance)
        if norm == ROOT:
            inside &= distance > 0
            apart /= np.where(inside, np.sqrt(distance), 1)[..., None]
        slope: Pairs = np.sign(apart) if norm == 1 else apart if norm == ROOT else 2 * apart
        if not inside.all():
            slope[~inside] = 0
        slope *= grad[..., None]
    return slope


def _subtracted(slope: Pairs, near: NDArray[np.int64], num_points: int) -> Pairs:
    """[B, M, D] of what slope [B, N, D] takes from the points at near, in order: one after the other, as index_add."""
    total = np.zeros((len(slope), num_points, slope.shape[2]), slope.dtype)
    np.subtract.at(total, (np.arange(len(near))[:, None], near), slope)
    return total


def _distances(p1: Tensor, p2: Tensor, norm: int) -> Pairs:
    """[B, N, M]; +inf from and to whatever is not finite."""
    first, second = (points.detach().numpy().transpose(2, 0, 1) for points in (p1, p2))
    with np.errstate(over="ignore", invalid="ignore"):
        total: Pairs | None = None
        for one, two in zip(first, second, strict=True):
            apart = one[:, :, None] - two[:, None, :]
            np.abs(apart, out=apart) if norm == 1 else np.multiply(apart, apart, out=apart)
            total = apart if total is None else np.add(total, apart, out=total)
        assert total is not None
        return np.fmin(total, np.inf, out=total)  # NaN is the other


def _without_padding(found: Pairs, lengths: Tensor | None, axis: int) -> Pairs:
    """`found` with +inf at and beyond lengths [B] of an axis."""
    if lengths is None:
        return found
    padding = np.arange(found.shape[axis]) >= lengths.numpy()[:, None]
    return np.where(np.expand_dims(padding, 3 - axis), found.dtype.type(np.inf), found)


def _minimum(found: Pairs, axis: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(found.min(axis)), torch.from_numpy(found.argmin(axis))
