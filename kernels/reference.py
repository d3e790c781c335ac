"""The shortest honest version of every op: one cloud or one point at a time, no concern for speed or memory.

What the ops promise is what these do; every backend is tested against them. They take clouds [B, N, D] of any
floating dtype and compute in float32, or float64 for float64.
"""

import torch
from torch import Tensor

from recon.kernels.checks import working_dtype


def pair_distances(p1: Tensor, p2: Tensor, norm: int = 2) -> Tensor:
    """[N, D], [M, D] -> [N, M] squared (norm 2) or Manhattan (norm 1) distances; NaN counts as +inf."""
    total = torch.zeros(len(p1), len(p2), dtype=working_dtype(p1))
    for one, two in zip(p1.to(total.dtype).T, p2.to(total.dtype).T, strict=True):
        apart = one[:, None] - two[None, :]
        total = total + (apart.abs() if norm == 1 else apart * apart)
    return total.masked_fill(total.isnan(), torch.inf)


def knn(
    p1: Tensor, p2: Tensor, lengths1: list[int], lengths2: list[int], K: int, norm: int = 2
) -> tuple[Tensor, Tensor]:
    """dists and idx [B, N, K], padded with 0 and -1."""
    dists = torch.zeros(*p1.shape[:2], K, dtype=working_dtype(p1))
    idx = torch.full(dists.shape, -1)
    for b, (n, m) in enumerate(zip(lengths1, lengths2, strict=True)):
        values, order = pair_distances(p1[b, :n], p2[b, :m], norm).sort(dim=1, stable=True)
        dists[b, :n, : min(K, m)] = values[:, :K]
        idx[b, :n, : min(K, m)] = order[:, :K]
    return dists, idx


def farthest_points(points: Tensor, lengths: list[int], K: int, start: list[int]) -> Tensor:
    """idx [B, K], padded with -1: the farthest point not yet chosen, finite ones first, then the lowest index."""
    idx = torch.full((len(points), K), -1)
    for b, (cloud, n, first) in enumerate(zip(points, lengths, start, strict=True)):
        finite = cloud.isfinite().all(1).tolist()
        far = [float("inf")] * n
        left = list(range(n))
        for k in range(min(K, n)):
            chosen = first if k == 0 else max(left, key=lambda i: (finite[i], far[i] if finite[i] else 0, -i))
            idx[b, k] = chosen
            left.remove(chosen)
            distance = pair_distances(cloud[:n], cloud[chosen : chosen + 1])[:, 0].tolist()
            far = [min(pair) for pair in zip(far, distance, strict=True)]
    return idx


def chamfer(x: Tensor, y: Tensor, x_lengths: list[int], y_lengths: list[int], norm: int = 2) -> tuple[Tensor, Tensor]:
    """Distances to the nearest point of the other cloud, [B, N] and [B, M]; 0 in padding."""
    first, _ = knn(x, y, x_lengths, y_lengths, 1, norm)
    second, _ = knn(y, x, y_lengths, x_lengths, 1, norm)
    return first[..., 0], second[..., 0]


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Groups [B, G, S, D] relative to their centers [B, G, D]."""
    num_clouds, num_points = points.shape[:2]
    chosen = farthest_points(points, [num_points] * num_clouds, num_group, [0] * num_clouds)
    centers = torch.stack([cloud[rows] for cloud, rows in zip(points, chosen, strict=True)])
    _, near = knn(centers, points, [num_group] * num_clouds, [num_points] * num_clouds, group_size)
    local = torch.stack([cloud[rows] for cloud, rows in zip(points, near, strict=True)])
    dtype = working_dtype(points)
    return (local.to(dtype) - centers.to(dtype)[:, :, None]).to(points.dtype), centers


def interpolate(known: Tensor, features: Tensor, query: Tensor) -> Tensor:
    """[B, N, C] means of the three nearest features, weighted by 1 / (squared distance + 1e-8)."""
    rows = []
    for xyz, feature, cloud in zip(known, features, query, strict=True):
        for dists in pair_distances(cloud, xyz):
            values, near = dists.sort(stable=True)
            weights = 1 / (values[:3] + 1e-8)
            rows.append((feature[near[:3]].to(weights.dtype) * weights[:, None]).sum(0) / weights.sum())
    return torch.stack(rows).view(*query.shape[:2], -1).to(features.dtype)
