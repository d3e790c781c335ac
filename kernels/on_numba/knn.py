"""Nearest neighbours by blocks: points are cut into boxes of BLOCK that lie close together, as by a k-d tree, and a
query looks into those only whose box is no farther than what it has found (Friedman, Bentley and Finkel, "An algorithm
for finding best matches in logarithmic expected time", 1977).

A box's distance is computed as a point's is, coordinate by coordinate. Rounding keeps the order, so it is never above
that of a point inside, and no tie is lost. Distances are compared as integers, whose minima are vectorised.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_numba.compiled import INFINITY, Bits, bits, compiled, in_use, shared

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]
Blocks = tuple[Cloud, NDArray[np.int32], Cloud, Cloud]
"""Points [blocks, D, BLOCK], where they stand [blocks, BLOCK], boxes [groups, 2, D, FAN] of low and high sides, and
those of whole groups [1, 2, D, groups]."""

BLOCK = 64
"""Points of a block: with 32 a search takes 1.03 to 1.3 times as long, with 128 0.9 to 1.15."""
FAN = 16
"""Blocks of a group, which has a box of its own: with 32 or 64 a search takes as long."""
WIDEST = 6
"""Coordinates beyond which a query would have to look into nearly every box, and none are made."""
NOBODY = np.iinfo(np.int32).max
"""In place of an index, in the last block beyond the last point."""


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K <= M] of clouds p1 [B, N, D] and p2 [B, M, D]; arbitrary beyond lengths2 [B]."""
    queries, clouds = p1.detach().numpy(), p2.detach().numpy()
    num_clouds, num_queries, width = queries.shape
    num_points = clouds.shape[1]
    dists = np.empty((num_clouds, num_queries, K), queries.dtype)
    idx = np.empty(dists.shape, np.int64)
    sizes, infinity = in_use(lengths2), INFINITY[queries.dtype]
    found = bits(dists)
    boxed = width <= WIDEST and num_points > BLOCK

    def some(low: int, high: int) -> None:
        # Parts are of all queries of all clouds, one cloud after the other.
        _search(queries, clouds, sizes, norm, boxed, infinity, low, high, found, idx)

    shared(some, num_clouds * num_queries, 100 + 10 * K)
    return torch.from_numpy(dists), torch.from_numpy(idx)


@compiled
def _search(
    queries: Cloud,  # [B, N, D]
    clouds: Cloud,  # [B, M, D]
    sizes: Rows,  # [B], or [0]: all of a cloud's points
    norm: int,
    boxed: bool,
    infinity: Bits,  # [1]
    low: int,
    high: int,  # of all B * N queries
    found: Bits,  # [B, N, K], the result
    idx: Rows,  # [B, N, K], the result
) -> None:
    num_queries, width = queries.shape[1:]
    last = idx.shape[2] - 1
    query, near, who = np.empty(width, queries.dtype), np.empty(last + 1, infinity.dtype), np.empty(last + 1, np.int32)
    num_blocks = -(-clouds.shape[1] // BLOCK)
    outer = np.zeros(-(-num_blocks // FAN), query.dtype)
    inner, apart = np.zeros(FAN, query.dtype), np.empty(BLOCK, query.dtype)
    outer_bits, inner_bits, apart_bits = outer.view(near.dtype), inner.view(near.dtype), apart.view(near.dtype)
    for b in range(low // num_queries, -(-high // num_queries)):
        points, index, boxes, whole = _cut(clouds[b], sizes[b] if len(sizes) else clouds.shape[1], boxed)
        for n in range(max(0, low - b * num_queries), min(num_queries, high - b * num_queries)):
            _put(queries, b, n, True, query)
            near[:], who[:] = infinity[0], NOBODY
            # The likeliest first, of groups as of a group's blocks. Not a function of its own: handing over so many
            # arrays takes as long as the search.
            first_group = first = 0
            if boxed and len(outer) > 1:
                _bounds(query, whole, 0, norm, outer)
                first_group = _first_least(outer_bits)
            for turn in range(len(outer)):
                group = first_group if turn == 0 else turn - 1 if turn <= first_group else turn
                if outer_bits[group] > near[last]:
                    continue
                if boxed:
                    _bounds(query, boxes, group, norm, inner)
                    first = _first_least(inner_bits)
                for place in range(min(FAN, num_blocks - group * FAN)):
                    member = first if place == 0 else place - 1 if place <= first else place
                    if inner_bits[member] > near[last]:
                        continue
                    block = group * FAN + member
                    _measure(query, points, block, norm, apart)
                    if last == 0:
                        _keep_one(apart_bits, index, block, near, who)
                    else:
                        _keep(apart_bits, index, block, near, who)
            for k in range(last + 1):
                found[b, n, k], idx[b, n, k] = near[k], who[k]


@compiled
def all_pairs(
    x: Cloud,  # [B, N, D]
    y: Cloud,  # [B, M, D]
    sizes_x: Rows,  # [B], or [0]: all of a cloud's points
    sizes_y: Rows,  # likewise
    norm: int,
    like: Bits,  # whose dtype a distance's bits have
    low: int,
    high: int,  # clouds
    dists_x: Cloud,  # [B, N], results
    idx_x: Rows,  # [B, N]
    dists_y: Cloud,  # [B, M]
    idx_y: Rows,  # [B, M]
) -> None:
    """Nearest points both ways, of the same distances."""
    num_x, width = x.shape[1:]
    num_y = y.shape[1]
    row = np.empty(num_y, x.dtype)
    row_bits = row.view(like.dtype)
    planes, query = np.empty((1, width, num_y), y.dtype), np.empty(width, x.dtype)
    column, who = np.empty(num_y, y.dtype), np.empty(num_y, np.int32)
    for b in range(low, high):
        size_x, size_y = sizes_x[b] if len(sizes_x) else num_x, sizes_y[b] if len(sizes_y) else num_y
        _lay_apart(y[b], size_y, planes[0])
        column[:], who[:] = np.inf, 0
        for i in range(num_x):
            _put(x, b, i, i < size_x, query)
            _measure(query, planes, 0, norm, row)
            number = np.int32(i)
            for j in range(num_y):
                nearer = row[j] < column[j]
                column[j] = row[j] if nearer else column[j]
                who[j] = number if nearer else who[j]
            at = _first_least(row_bits)
            dists_x[b, i], idx_x[b, i] = row[at], at
        for j in range(num_y):
            dists_y[b, j], idx_y[b, j] = column[j], who[j]


@compiled
def _put(queries: Cloud, b: int, n: int, used: bool, query: Cloud) -> None:
    """A query [D], infinitely far where it is not used or not finite."""
    finite = used
    for d in range(len(query)):
        finite = finite and np.isfinite(queries[b, n, d])
    for d in range(len(query)):
        query[d] = queries[b, n, d] if finite else np.inf


@compiled
def _lay_apart(cloud: Cloud, size: int, planes: Cloud) -> None:
    """Planes [D, M] of a cloud [M, D]; its points beyond size, and those that are not finite, are infinitely far."""
    for i in range(len(cloud)):
        finite = i < size
        for d in range(len(planes)):
            finite = finite and np.isfinite(cloud[i, d])
        for d in range(len(planes)):
            planes[d, i] = cloud[i, d] if finite else -np.inf


@compiled
def _keep_one(apart: Bits, index: NDArray[np.int32], block: int, near: Bits, who: NDArray[np.int32]) -> None:
    """Take the nearest of a block, the first of equals, if it comes before the one in near [1] and who [1]."""
    least = apart[0]
    for i in range(len(apart)):
        least = min(least, apart[i])
    if least > near[0]:
        return
    first = np.int32(NOBODY)
    for i in range(len(apart)):
        first = min(first, index[block, i] if apart[i] == least else np.int32(NOBODY))
    if least < near[0] or first < who[0]:
        near[0], who[0] = least, first


@compiled
def _keep(apart: Bits, index: NDArray[np.int32], block: int, near: Bits, who: NDArray[np.int32]) -> None:
    """Take those of a block into near [K] and who [K], ascending, that come before the last."""
    last = len(near) - 1
    for i in range(len(apart)):
        distance, at = apart[i], index[block, i]
        if distance > near[last] or (distance == near[last] and at >= who[last]):
            continue
        k = last
        while k > 0 and (near[k - 1] > distance or (near[k - 1] == distance and who[k - 1] > at)):
            near[k], who[k] = near[k - 1], who[k - 1]
            k -= 1
        near[k], who[k] = distance, at


@compiled
def _measure(query: Cloud, points: Cloud, block: int, norm: int, apart: Cloud) -> None:
    """Distances apart [L] of a query [D] to the points of a block of [blocks, D, L]."""
    width = len(query)
    if norm == 2 and width == 3:
        x, y, z = query[0], query[1], query[2]
        for i in range(len(apart)):
            dx, dy, dz = x - points[block, 0, i], y - points[block, 1, i], z - points[block, 2, i]
            apart[i] = dx * dx + dy * dy + dz * dz
        return
    for d in range(width):
        for i in range(len(apart)):
            step = query[d] - points[block, d, i]
            part = abs(step) if norm == 1 else step * step
            apart[i] = part if d == 0 else apart[i] + part


@compiled
def _bounds(query: Cloud, boxes: Cloud, group: int, norm: int, bounds: Cloud) -> None:
    """Distances bounds [R] of a query [D] to boxes [2, D, R], no more than to any point inside."""
    zero = bounds.dtype.type(0)
    if norm == 2 and len(query) == 3:
        x, y, z = query[0], query[1], query[2]
        for i in range(len(bounds)):
            left, down, near = boxes[group, 0, 0, i] - x, boxes[group, 0, 1, i] - y, boxes[group, 0, 2, i] - z
            right, up, far = x - boxes[group, 1, 0, i], y - boxes[group, 1, 1, i], z - boxes[group, 1, 2, i]
            dx, dy, dz = left if left > right else right, down if down > up else up, near if near > far else far
            dx, dy, dz = dx if dx > zero else zero, dy if dy > zero else zero, dz if dz > zero else zero
            bounds[i] = dx * dx + dy * dy + dz * dz
        return
    for d in range(len(query)):
        at = query[d]
        for i in range(len(bounds)):
            below, above = boxes[group, 0, d, i] - at, at - boxes[group, 1, d, i]
            step = below if below > above else above
            step = step if step > zero else zero
            part = step if norm == 1 else step * step
            bounds[i] = part if d == 0 else bounds[i] + part


@compiled
def _first_least(values: Bits) -> int:
    """Where the first of the least integers stands: two passes, which are both vectorised."""
    least = values[0]
    for i in range(len(values)):
        least = min(least, values[i])
    first = np.int32(len(values))
    for i in range(len(values)):
        first = min(first, np.int32(i) if values[i] == least else np.int32(len(values)))
    return int(first)


@compiled
def _cut(cloud: Cloud, size: int, boxed: bool) -> Blocks:
    """Blocks of a cloud [M, D]; its points beyond size, and those that are not finite, are infinitely far."""
    num_points, width = cloud.shape
    planes, order = np.empty((width, num_points), cloud.dtype), np.arange(num_points).astype(np.int32)
    _lay_apart(cloud, size, planes)
    if boxed:
        _arrange(planes, order)
    num_blocks = -(-num_points // BLOCK)
    num_groups = -(-num_blocks // FAN)
    points, index = (
        np.full((num_blocks, width, BLOCK), -np.inf, cloud.dtype),
        np.full((num_blocks, BLOCK), NOBODY, np.int32),
    )
    # Beyond the last block, boxes are infinitely far, as points beyond the last: at -inf, as queries may be at +inf.
    boxes = np.full((num_groups, 2, width, FAN), -np.inf, cloud.dtype)
    whole = np.full((1, 2, width, num_groups), np.inf, cloud.dtype)
    whole[0, 1] = -np.inf
    for block in range(num_blocks):
        group, member = block // FAN, block % FAN
        start = block * BLOCK
        count = min(BLOCK, num_points - start)
        for d in range(width):
            least = most = planes[d, start]
            for i in range(count):
                value = planes[d, start + i]
                points[block, d, i] = value
                least, most = min(least, value), max(most, value)
            boxes[group, 0, d, member], boxes[group, 1, d, member] = least, most
            whole[0, 0, d, group] = min(whole[0, 0, d, group], least)
            whole[0, 1, d, group] = max(whole[0, 1, d, group], most)
        for i in range(count):
            index[block, i] = order[start + i]
    return points, index, boxes, whole


@compiled
def _arrange(planes: Cloud, order: NDArray[np.int32]) -> None:
    """Put planes [D, M] and order [M] in an order whose blocks lie close together: halves across the widest side."""
    width, num_points = planes.shape
    pending = np.empty((64, 2), np.int64)
    pending[0, 0], pending[0, 1] = 0, num_points
    left = 1
    while left:
        left -= 1
        low, high = pending[left]
        num_blocks = -(-(high - low) // BLOCK)
        if num_blocks == 1:
            continue
        widest, axis = planes.dtype.type(-1), 0
        for d in range(width):
            least = most = planes[d, low]
            for i in range(low, high):
                least, most = min(least, planes[d, i]), max(most, planes[d, i])
            if most - least > widest:
                widest, axis = most - least, d
        half = 1  # of the blocks, a power of two: groups are then whole branches
        while 2 * half < num_blocks:
            half *= 2
        middle = low + half * BLOCK
        _divide(planes, order, low, high, middle, axis)
        pending[left, 0], pending[left, 1] = low, middle
        pending[left + 1, 0], pending[left + 1, 1] = middle, high
        left += 2


@compiled
def _divide(planes: Cloud, order: NDArray[np.int32], low: int, high: int, middle: int, axis: int) -> None:
    """Order low to high so that none before middle lies above one from there on (Hoare, "Algorithm 65: FIND", 1961)."""
    width = len(planes)
    while high - low > 1:
        first, second, third = planes[axis, low], planes[axis, (low + high) // 2], planes[axis, high - 1]
        pivot = max(min(first, second), min(max(first, second), third))
        i, j = low, high - 1
        while i <= j:
            while planes[axis, i] < pivot:
                i += 1
            while pivot < planes[axis, j]:
                j -= 1
            if i <= j:
                for d in range(width):
                    planes[d, i], planes[d, j] = planes[d, j], planes[d, i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j + 1
        elif middle >= i:
            low = i
        else:
            return
