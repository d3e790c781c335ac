"""Nearest neighbours in large clouds on a CPU by SciPy's k-d tree, held to the rules of the search by chunks.

The tree leaves ties open and rounds in its own way, so it only proposes: distances are computed again as the other
search computes them, and queries whose last place is contested are searched again by that.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Found = tuple[NDArray[np.floating], NDArray[np.int64]]
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

# Nanoseconds measured on one core: a pair of the search by chunks; a point put into a tree; a query, and each of its
# neighbours. They only decide which search is taken: both give the same bits.
PAIR, POINT, QUERY, NEIGHBOUR = 1.0, 180, 800, 130


def pays(num_queries: int, num_points: int, K: int) -> bool:
    """Whether the tree is there, and faster than looking at every pair of one cloud."""
    cost = POINT * num_points + (QUERY + NEIGHBOUR * K) * num_queries
    return PAIR * num_queries * num_points > cost and find_spec("scipy") is not None


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, K: int, again: Search) -> tuple[Tensor, Tensor]:
    """Squared dists, idx [B, N, K <= M] of CPU clouds [B, N, D] and [B, M, D]; arbitrary beyond lengths2 [B].

    `again` (p1 [1, R, D], p2 [1, M, D], K) searches the rows, or whole clouds, that the tree leaves in doubt.
    """
    # Not tracked by autograd here; the other threads would track it.
    p1, p2 = p1.detach(), p2.detach()
    dists, idx = p1.new_zeros(*p1.shape[:2], K), torch.zeros(*p1.shape[:2], K, dtype=torch.int64)
    sizes = [p2.shape[1]] * len(p2) if lengths2 is None else lengths2.tolist()

    def one(b: int) -> None:
        points, found = p2[b, : sizes[b]], min(K, sizes[b])
        if found == 0:
            return
        if not (p1[b].isfinite().all() and points.isfinite().all()):
            values = again(p1[b : b + 1], points[None], found)
            dists[b, :, :found], idx[b, :, :found] = values[0][0], values[1][0]
            return
        near_dists, near, contested = _propose(p1[b].numpy(), points.numpy(), found)
        dists[b, :, :found], idx[b, :, :found] = torch.from_numpy(near_dists), torch.from_numpy(near)
        rows = torch.from_numpy(contested)
        if len(rows):
            values = again(p1[b, rows][None], points[None], found)
            dists[b, rows, :found], idx[b, rows, :found] = values[0][0], values[1][0]

    workers = min(len(p1), torch.get_num_threads())
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, range(len(p1))))
    else:
        for b in range(len(p1)):
            one(b)
    return dists, idx


def _propose(queries: NDArray[np.floating], points: NDArray[np.floating], K: int) -> tuple[*Found, NDArray[np.int64]]:
    """dists, idx [N, K] of finite queries [N, D] in points [M, D], and the rows where another point may belong."""
    from scipy.spatial import cKDTree

    # One neighbour more than asked for shows whether the last place is contested.
    most = min(K + 1, len(points))
    near = cKDTree(points).query(queries, most)[1].reshape(len(queries), most)
    near.sort(axis=1)
    # Where its own squares overflow, it answers with an index past the points.
    lost = near[:, -1] == len(points)
    near = np.minimum(near, len(points) - 1)
    with np.errstate(over="ignore"):
        dists = np.zeros(near.shape, queries.dtype)
        for query, point in zip(queries.T, points.T, strict=True):
            apart = query[:, None] - point[near]
            dists += apart * apart
        order = dists.argsort(axis=1, kind="stable")
        dists, near = np.take_along_axis(dists, order, 1), np.take_along_axis(near, order, 1)
        # A distance may be off by a rounding of each difference, square and sum; those left out lie beyond the last.
        info = np.finfo(queries.dtype)
        slack = (8 + 2 * queries.shape[1]) * info.eps
        close = dists[:, K - 1] * (1 + slack) + info.tiny >= dists[:, -1]
    contested = lost | close if most > K else lost
    return dists[:, :K], near[:, :K], contested.nonzero()[0]
