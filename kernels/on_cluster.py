"""Farthest points and nearest neighbours by the extra package torch-cluster, held to the rules of the other backends.

torch-cluster leaves the order of ties open, picks a point twice where points coincide, drops neighbours beyond a fixed
distance on a GPU, and may round distances in its own way. So its answers are checked against the distances of the
plain torch path, and clouds that leave any doubt are done again by that path: the result is its result, index for
index, near ties included. Checking farthest points takes as much arithmetic as finding them.

This is the one backend that waits for the GPU, because torch-cluster reads sizes back and because the clouds to do
again have to be counted; it cannot be captured in a CUDA graph.
"""

import torch
from torch import Tensor

from recon.kernels.on_torch import fps, knn
from recon.kernels.on_torch.group import in_two
from recon.kernels.on_torch.rows import take

GPU_MOST = 100
"""Neighbours a query that torch-cluster's CUDA kernel has room for."""


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N] of points [B, N, D], start [B] first; entries beyond lengths [B] are arbitrary."""
    idx = torch.zeros(points.shape[0], K, dtype=torch.int64, device=points.device)
    sizes = _sizes(points, lengths)
    trusted = _finite(points, sizes)
    some = trusted.nonzero()[:, 0]
    if len(some):
        idx[some] = _cluster_picks(points[some], sizes[some], start[some], K)
        trusted[some] = _is_farthest(points[some], sizes[some], start[some], idx[some])
    again = (~trusted).nonzero()[:, 0]
    if len(again):
        idx[again] = fps.farthest_points(points[again], sizes[again], start[again], K)
    return idx


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K] of the K <= M nearest in p2 [B, M, D] to each of p1 [B, N, D], padding of p2 last.

    Manhattan distances (norm 1), and on a GPU K beyond 99, are left to plain torch.
    """
    # One neighbour more than asked for shows whether the last place is contested.
    most = min(K + 1, p2.shape[1])
    if norm == 1 or p1.shape[1] == 0 or (p1.is_cuda and most > GPU_MOST):
        return knn.search(p1, p2, lengths2, norm, K)
    dists = p1.new_empty(*p1.shape[:2], K)
    idx = torch.empty(dists.shape, dtype=torch.int64, device=p1.device)
    sizes = _sizes(p2, lengths2)
    trusted = _finite(p2, sizes) & p1.isfinite().flatten(1).all(1)
    some = trusted.nonzero()[:, 0]
    if len(some):
        near = _cluster_neighbours(p1[some], p2[some], sizes[some], most)
        rows = take(p2[some], near.clamp(min=0).flatten(1)).view(*near.shape, -1).permute(3, 0, 1, 2)
        found = knn.pair_distances(p1[some].permute(2, 0, 1)[..., None], rows, norm)
        found, order = found.masked_fill(near < 0, torch.inf).sort(dim=2, stable=True)
        dists[some], idx[some] = found[..., :K], near.gather(2, order)[..., :K]
        trusted[some] = _is_settled(found, sizes[some, None], K, p1.shape[2])
    again = (~trusted).nonzero()[:, 0]
    if len(again):
        dists[again], idx[again] = knn.search(p1[again], p2[again], sizes[again], norm, K)
    return dists, idx


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Neighbours minus centers [B, G, S, D], centers [B, G, D], and where both stand: [B, G], [B, G, S]."""
    return in_two(points, num_group, group_size, farthest_points, search)


def _sizes(points: Tensor, lengths: Tensor | None) -> Tensor:
    return points.new_full(points.shape[:1], points.shape[1], dtype=torch.int64) if lengths is None else lengths


def _finite(points: Tensor, sizes: Tensor) -> Tensor:
    """bool [B]: clouds that have points, all of them finite."""
    return (points.isfinite().all(2) | knn.padded(sizes, points.shape[1])).all(1) & (sizes > 0)


def _cluster_picks(points: Tensor, sizes: Tensor, start: Tensor, K: int) -> Tensor:
    """torch-cluster's farthest points, [B, K], of clouds that are not empty."""
    from torch_cluster import fps as cluster_fps

    # It starts at the first point, so the start changes places with that.
    order = torch.arange(points.shape[1], device=points.device).repeat(len(points), 1)
    order.scatter_(1, start[:, None], 0)
    order[:, 0] = start
    counts = sizes.clamp(max=K)
    rows = take(points, order)[~knn.padded(sizes, points.shape[1])]
    batch = torch.arange(len(points), device=points.device).repeat_interleave(sizes)
    # It rounds size * ratio up: half a pick less is safe from rounding.
    picks = cluster_fps(rows, batch, ratio=(counts - 0.5) / sizes.double(), random_start=False)
    local = torch.zeros(len(points), K, dtype=torch.int64, device=points.device)
    local[~knn.padded(counts, K)] = picks
    local -= (sizes.cumsum(0) - sizes)[:, None]
    return order.gather(1, local.clamp(0, points.shape[1] - 1))


def _is_farthest(points: Tensor, sizes: Tensor, start: Tensor, idx: Tensor) -> Tensor:
    """bool [B]: clouds whose idx [B, K] is what farthest point sampling picks after start, ties to the lowest index."""
    picked, second = take(points, idx).permute(2, 0, 1), points.permute(2, 0, 1).contiguous()
    padding = knn.padded(sizes, points.shape[1])[:, None]
    far = torch.full_like(second[0], torch.inf)
    right = idx[:, 0] == start
    step = max(1, knn.chunk_size(points.device) // far.numel())
    for k in range(1, idx.shape[1], step):
        picks = idx[:, k : k + step]
        dists = knn.pair_distances(picked[:, :, k - 1 : k - 1 + picks.shape[1], None], second[:, :, None], 2)
        dists[:, 0] = torch.minimum(dists[:, 0], far)
        dists = dists.cummin(1).values
        far = dists[:, -1]
        farthest, best = dists.masked_fill(padding, -1).max(2)
        beyond = torch.arange(k, k + picks.shape[1], device=idx.device) >= sizes[:, None]
        # At distance 0 every point that is left coincides with one chosen before.
        right &= (beyond | ((best == picks) & (farthest > 0))).all(1)
    return right


def _cluster_neighbours(p1: Tensor, p2: Tensor, sizes: Tensor, most: int) -> Tensor:
    """torch-cluster's `most` nearest of p2 to each of p1, [B, N, most] by ascending index; -1 where it has fewer."""
    from torch_cluster import knn as cluster_knn

    num_clouds, num_queries = p1.shape[:2]
    clouds = torch.arange(num_clouds, device=p1.device)
    queries, rows = p1.flatten(0, 1), p2[~knn.padded(sizes, p2.shape[1])]
    batches = clouds.repeat_interleave(sizes), clouds.repeat_interleave(num_queries)
    edges = cluster_knn(rows, queries, most, *batches)
    keys = (edges[0] * len(rows) + edges[1]).unique()
    query, row = keys // len(rows), keys % len(rows)
    counts = query.bincount(minlength=len(queries))
    place = torch.arange(len(query), device=p1.device) - (counts.cumsum(0) - counts)[query]
    near = torch.full((len(queries), most), -1, dtype=torch.int64, device=p1.device)
    near[query, place] = row - (sizes.cumsum(0) - sizes)[query // num_queries]
    return near.view(num_clouds, num_queries, most)


def _is_settled(found: Tensor, sizes: Tensor, K: int, width: int) -> Tensor:
    """bool [B]: clouds whose K nearest are beyond doubt, given the distances [B, N, K + 1] found, ascending."""
    # How far torch-cluster's rounding, and that of the bounds in its tree, may shift a distance.
    info = torch.finfo(found.dtype)
    slack = (100 + 4 * width) * info.eps
    contested = (sizes > K) & (found[..., K - 1] * (1 + slack) + info.tiny >= found[..., -1])
    complete = found.isfinite().sum(2) == sizes.clamp(max=found.shape[2])
    return (complete & ~contested).all(1)
