"""Nearest neighbours on a CPU by a k-d tree, pykdtree's or else SciPy's, held to the rules of the search by chunks.

A tree leaves ties open and rounds its bounds in its own way, so it only proposes: distances are the other search's to
the bit, equal ones are put in order, and queries whose last place is contested are searched again by that.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_torch.cloud_threads import each

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]
Found = tuple[Cloud, Rows]
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
Ask = Callable[[Cloud, Cloud, int], tuple[NDArray[Any], NDArray[Any]]]

LEAF = 16
"""Points a leaf of pykdtree: of 4 to 32 the fastest, by a little, at every size of the benchmark."""


class Costs(NamedTuple):
    """Nanoseconds measured on one core; they only decide which search is taken: all give the same bits."""

    cloud: float
    point: float
    query: float
    neighbour: float


COSTS = {"pykdtree": Costs(25_000, 40, 250, 60), "scipy": Costs(60_000, 180, 800, 130)}


def pays(num_queries: int, num_points: int, K: int) -> bool:
    """Whether a tree is there, and faster than looking at every pair of one cloud."""
    return price(num_queries, num_points, K) < pairs_price(num_queries, num_points, K)


def price(num_queries: int, num_points: int, K: int) -> float:
    """Nanoseconds for one cloud by the tree that is there; infinite without any."""
    library = _library()
    if library is None:
        return float("inf")
    costs = COSTS[library]
    return costs.cloud + costs.point * num_points + (costs.query + costs.neighbour * K) * num_queries


def pairs_price(num_queries: int, num_points: int, K: int) -> float:
    """Nanoseconds for one cloud by looking at every pair."""
    return (1.0 if K == 1 else 2.0) * num_queries * num_points + 40.0 * K * num_queries


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, K: int, again: Search) -> tuple[Tensor, Tensor]:
    """Squared dists, idx [B, N, K <= M] of CPU clouds [B, N, D] and [B, M, D]; arbitrary beyond lengths2 [B].

    `again` (p1 [1, R, D], p2 [1, M, D], K) searches the rows, or whole clouds, that the tree leaves in doubt.
    """
    # Not tracked by autograd here; the other threads would track it.
    p1, p2 = p1.detach(), p2.detach()
    dists, idx = p1.new_zeros(*p1.shape[:2], K), torch.zeros(*p1.shape[:2], K, dtype=torch.int64)
    sizes = [p2.shape[1]] * len(p2) if lengths2 is None else lengths2.tolist()
    within = 1 if len(p1) > 1 else torch.get_num_threads()

    def one(b: int) -> None:
        points, found = p2[b, : sizes[b]], min(K, sizes[b])
        if found == 0:
            return
        queries, cloud = p1[b].numpy(), points.numpy()
        if not (np.isfinite(queries).all() and np.isfinite(cloud).all()):
            values = again(p1[b : b + 1], points[None], found)
            dists[b, :, :found], idx[b, :, :found] = values[0][0], values[1][0]
            return
        contested = _propose(queries, cloud, dists[b, :, :found].numpy(), idx[b, :, :found].numpy(), within)
        if len(contested):
            rows = torch.from_numpy(contested)
            values = again(p1[b, rows][None], points[None], found)
            dists[b, rows, :found], idx[b, rows, :found] = values[0][0], values[1][0]

    each(one, range(len(p1)))
    return dists, idx


def _propose(queries: Cloud, points: Cloud, dists: Cloud, idx: Rows, threads: int) -> Rows:
    """Fill dists, idx [N, K] for finite queries [N, D] in points [M, D]; the rows where another point may belong."""
    K = dists.shape[1]
    # One neighbour more than asked for shows whether the last place is contested.
    most = min(K + 1, len(points))
    library = _library()
    with np.errstate(over="ignore"):
        if library == "pykdtree":
            found, near = _ask_pykdtree(queries, points, most, threads)
        else:
            found, near = _ask_scipy(queries, points, most, threads)
        # Where squares overflow, a tree answers with an index past the points.
        lost = near[:, -1] >= len(points)
        if library != "pykdtree" or not _has_our_bits(queries.dtype.type, queries.shape[1]):
            found, near = _measured(queries, points, np.minimum(near, len(points) - 1).astype(np.int64))
        dists[:], idx[:] = found[:, :K], near[:, :K]
        _order_ties(dists, idx)
        if most == K:
            return lost.nonzero()[0]
        # A bound of the tree may be off by some roundings a level, a distance by one of each step.
        info = np.finfo(queries.dtype)
        slack = (128 + 4 * queries.shape[1]) * info.eps
        return (lost | (found[:, K - 1] * (1 + slack) + info.tiny >= found[:, K])).nonzero()[0]


def _measured(queries: Cloud, points: Cloud, near: Rows) -> Found:
    """Neighbours near [N, most] with their distances, ascending, ties by index."""
    near.sort(axis=1)
    dists = np.zeros(near.shape, queries.dtype)
    for query, point in zip(queries.T, points.T, strict=True):
        apart = query[:, None] - point[near]
        dists += apart * apart
    order = dists.argsort(axis=1, kind="stable")
    return np.take_along_axis(dists, order, 1), np.take_along_axis(near, order, 1)


def _order_ties(dists: Cloud, idx: Rows) -> None:
    """Put indices of equal distances [N, K], which ascend, in order."""
    if dists.shape[1] == 1:
        return
    tied = (dists[:, 1:] == dists[:, :-1]).any(1).nonzero()[0]
    if len(tied):
        order = np.lexsort((idx[tied], dists[tied]))
        idx[tied] = np.take_along_axis(idx[tied], order, 1)


@cache
def _library() -> str | None:
    return next((name for name in ("pykdtree", "scipy") if find_spec(name) is not None), None)


def _ask_pykdtree(queries: Cloud, points: Cloud, most: int, threads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared dists and indices [N, most], ascending."""
    from pykdtree.kdtree import KDTree

    with _openmp(threads):
        dists, near = KDTree(points, leafsize=LEAF).query(queries, k=most, sqr_dists=True)
    return dists.reshape(-1, most), near.reshape(-1, most)


def _ask_scipy(queries: Cloud, points: Cloud, most: int, threads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Dists and indices [N, most], ascending."""
    from scipy.spatial import cKDTree

    dists, near = cKDTree(points).query(queries, most, workers=threads)
    return dists.reshape(-1, most), near.reshape(-1, most)


@contextmanager
def _openmp(threads: int) -> Iterator[None]:
    """pykdtree takes no number of threads: it asks its OpenMP, which has one for each calling thread."""
    library = _openmp_library()
    if library is None:
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(threads)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


@cache
def _openmp_library() -> ctypes.CDLL | None:
    from pykdtree import kdtree

    library = ctypes.CDLL(kdtree.__file__)
    return library if hasattr(library, "omp_set_num_threads") else None


@cache
def _has_our_bits(dtype: type[np.floating], width: int) -> bool:
    """Whether pykdtree's distances are ours to the bit.

    They are unless its compiler contracted a multiplication and an addition into one rounding, as those for ARM do;
    this shows in one of these thousands.
    """
    rng = np.random.default_rng(0)
    points, queries = (rng.standard_normal((size, width)).astype(dtype) for size in (300, 60))
    found, near = _ask_pykdtree(queries, points, 100, 1)
    return bool(np.array_equal(found, _measured(queries, points, near.astype(np.int64))[0]))
