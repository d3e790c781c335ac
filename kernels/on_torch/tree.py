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

from recon.kernels.on_torch import curve
from recon.kernels.on_torch.cloud_threads import each

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]
Search = Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]

AGAIN = 2**20
"""Points to hold at once for the queries that are searched again."""
LEAF = 24
"""Points a leaf of pykdtree: of 4 to 32 the fastest, by a little, at every size of the benchmark."""


class Costs(NamedTuple):
    """Nanoseconds of one core for a cloud put into a tree, each of its points, a query, and each of its neighbours."""

    cloud: float
    point: float
    query: float
    neighbour: float

    def of(self, num_queries: int, num_points: int, K: int) -> float:
        return self.cloud + self.point * num_points + (self.query + self.neighbour * K) * num_queries


# Measured at 11 sizes from 32 x 128 to 512 x 8192, K from 1 to 32. They only decide which search is taken: all give the
# same bits.
COSTS = {"pykdtree": Costs(33_000, 30, 150, 43), "scipy": Costs(60_000, 100, 180, 120)}
PAIRS = Costs(30_000, 0, 130, 17)
PAIR = 1.3
"""Nanoseconds more for each pair, where all are looked at."""
MANY = 4096
"""Points from which an order pays: of 8192 points and as many queries it saves 95 nanoseconds each and takes 12, of
2048 nothing."""
WIDEST = 6
"""Coordinates beyond which a tree has to look at nearly every point."""


def pays(num_queries: int, num_points: int, K: int) -> bool:
    """Whether a tree is there, and faster than looking at every pair of one cloud."""
    return price(num_queries, num_points, K) < PAIRS.of(num_queries, num_points, K) + PAIR * num_queries * num_points


def price(num_queries: int, num_points: int, K: int) -> float:
    """Nanoseconds for one cloud by the tree that is there; infinite without any."""
    library = _library()
    return float("inf") if library is None else COSTS[library].of(num_queries, num_points, K)


class InOrder(NamedTuple):
    """CPU clouds [B, N, D] with sizes [B] in use; large ones with an order [B, N], padding last, else None."""

    points: Tensor
    lengths: Tensor | None
    sizes: Rows
    order: Rows | None

    def first(self, b: int, count: int) -> tuple[Cloud, Rows | slice]:
        """The first points of a cloud in its order, and where they stand."""
        cloud: Cloud = self.points[b].numpy()
        if self.order is None:
            return cloud[:count], slice(count)
        return cloud.take(self.order[b, :count], 0), self.order[b, :count]


def in_order(points: Tensor, lengths: Tensor | None) -> InOrder:
    """Clouds [B, N, D]; large ones in order along a curve, which keeps a tree in the cache as it is built and asked."""
    points = points.detach()
    sizes = np.full(len(points), points.shape[1]) if lengths is None else lengths.numpy()
    return InOrder(points, lengths, sizes, curve.order(points.numpy(), sizes) if points.shape[1] >= MANY else None)


def search(one: InOrder, two: InOrder, K: int, again: Search) -> tuple[Tensor, Tensor]:
    """Squared dists, idx [B, N, K <= M] of clouds [B, N, D], padding too, and [B, M, D]; arbitrary beyond two's sizes.

    `again` (p1 [R, 1, D], p2 [R, M, D], lengths2, K) searches the rows that the tree leaves in doubt.
    """
    queries, clouds, sizes = one.points.numpy(), two.points.numpy(), two.sizes
    dists = np.full((*queries.shape[:2], K), np.inf, queries.dtype)
    idx = np.full(dists.shape, clouds.shape[1] - 1)  # padding stays last where distances overflow
    doubtful = np.zeros(dists.shape[:2], bool)
    whole = np.isfinite(queries).all() and np.isfinite(clouds).all()
    threads = 1 if len(queries) > 1 else torch.get_num_threads()

    def ask(b: int) -> None:
        size = int(sizes[b])
        if not whole and not (np.isfinite(queries[b]).all() and np.isfinite(clouds[b, :size]).all()):
            doubtful[b] = True
        elif size:
            (asked, rows), (points, places) = one.first(b, queries.shape[1]), two.first(b, size)
            # The neighbour after those asked for shows whether the last place is contested.
            found, near, lost = _propose(asked, points, min(K + 1, size), threads)
            lost |= _contested(found, K, queries.shape[2])
            if lost.any():
                doubtful[b, rows] = lost
            near = near[:, :K]
            dists[b, rows, :size] = found[:, :K]
            idx[b, rows, :size] = near if isinstance(places, slice) else places.take(near, mode="clip")

    with _openmp():
        each(ask, range(len(queries)))
    _order_ties(dists, idx)
    found = torch.from_numpy(dists), torch.from_numpy(idx)
    at, rows = (torch.from_numpy(each) for each in doubtful.nonzero())
    step = max(1, AGAIN // clouds.shape[1])
    for some in range(0, len(at), step):
        b, n = at[some : some + step], rows[some : some + step]
        lengths = None if two.lengths is None else two.lengths[b]
        values = again(one.points[b, n][:, None], two.points[b], lengths, K)
        for part, value in zip(found, values, strict=True):
            part[b, n] = value[:, 0]
    return found


def _propose(queries: Cloud, points: Cloud, most: int, threads: int) -> tuple[Cloud, NDArray[Any], NDArray[np.bool_]]:
    """Squared dists, ascending, and indices [N, most] of finite queries [N, D] in points [M, D]; which rows failed."""
    by_pykdtree = _library() == "pykdtree"
    found, near = (_ask_pykdtree if by_pykdtree else _ask_scipy)(queries, points, most, threads)
    # Where squares overflow, a tree answers with an index past the points.
    lost = near[:, -1] >= len(points)
    if not by_pykdtree or not _has_our_bits(queries.dtype.name, queries.shape[1]):
        found, near = _measured(queries, points, np.minimum(near, len(points) - 1).astype(np.int64))
    return found, near, lost


def _contested(found: Cloud, K: int, width: int) -> NDArray[np.bool_]:
    """Which of N rows [N, K + 1] of ascending distances leave open who is in place K; none of shorter rows."""
    if found.shape[1] <= K:
        return np.zeros(len(found), bool)
    # A bound of the tree may be off by some roundings a level, a distance by one of each step.
    info = np.finfo(found.dtype)
    with np.errstate(over="ignore"):
        contested: NDArray[np.bool_] = found[:, K - 1] * (1 + (128 + 4 * width) * info.eps) + info.tiny >= found[:, K]
    return contested


def _measured(queries: Cloud, points: Cloud, near: Rows) -> tuple[Cloud, Rows]:
    """Neighbours near [N, most] with their distances, ascending, ties by index."""
    near.sort(axis=1)
    dists = np.zeros(near.shape, queries.dtype)
    with np.errstate(over="ignore"):
        for query, point in zip(queries.T, points.T, strict=True):
            apart = query[:, None] - point[near]
            dists += apart * apart
    order = dists.argsort(axis=1, kind="stable")
    return np.take_along_axis(dists, order, 1), np.take_along_axis(near, order, 1)


def _order_ties(dists: Cloud, idx: Rows) -> None:
    """Put indices of equal distances [B, N, K], which ascend, in order."""
    tied = dists[:, :, 1:] == dists[:, :, :-1]
    if tied.any():
        rows = tied.any(2).nonzero()
        order = np.lexsort((idx[rows], dists[rows]))
        idx[rows] = np.take_along_axis(idx[rows], order, 1)


@cache
def _library() -> str | None:
    return next((name for name in ("pykdtree", "scipy") if find_spec(name) is not None), None)


def _ask_pykdtree(queries: Cloud, points: Cloud, most: int, threads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared dists and indices [N, most], ascending."""
    from pykdtree.kdtree import KDTree

    openmp = _openmp_library()
    if openmp is not None:
        openmp.omp_set_num_threads(threads)
    dists, near = KDTree(points, leafsize=LEAF).query(queries, k=most, sqr_dists=True)
    return dists.reshape(-1, most), near.reshape(-1, most)


def _ask_scipy(queries: Cloud, points: Cloud, most: int, threads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Dists and indices [N, most], ascending."""
    from scipy.spatial import cKDTree

    dists, near = cKDTree(points).query(queries, most, workers=threads)
    return dists.reshape(-1, most), near.reshape(-1, most)


@contextmanager
def _openmp() -> Iterator[None]:
    """Leaves the calling thread's OpenMP as it was.

    pykdtree takes no number of threads: it asks its OpenMP, which has one for each calling thread.
    """
    openmp = _openmp_library() if _library() == "pykdtree" else None
    before = 0 if openmp is None else openmp.omp_get_max_threads()
    try:
        yield
    finally:
        if openmp is not None:
            openmp.omp_set_num_threads(before)


@cache
def _openmp_library() -> ctypes.CDLL | None:
    from pykdtree import kdtree

    library = ctypes.CDLL(kdtree.__file__)
    return library if hasattr(library, "omp_set_num_threads") else None


@cache
def _has_our_bits(dtype: str, width: int) -> bool:
    """Whether pykdtree's distances are ours to the bit.

    They are unless its compiler contracted a multiplication and an addition into one rounding, as those for ARM do;
    this shows in one of these thousands.
    """
    rng = np.random.default_rng(0)
    points, queries = (rng.standard_normal((size, width)).astype(dtype) for size in (300, 60))
    found, near = _ask_pykdtree(queries, points, 100, 1)
    return bool(np.array_equal(found, _measured(queries, points, near.astype(np.int64))[0]))
