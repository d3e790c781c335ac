"""What benchmarks/kernels.py times the ops of kernels/ against.

"plain torch" is what most repositories carry: cdist, topk and min, and the sampling loop over whole batches. "naive" is
the same rule one cloud, and for Chamfer one point, at a time. "torch-cluster" is that package called directly on
flattened clouds, without the checks that kernels/on_cluster.py adds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


def plain_fps(points: Tensor, K: int) -> Tensor:
    num_clouds, num_points, _ = points.shape
    idx = torch.zeros(num_clouds, K, dtype=torch.int64, device=points.device)
    distance = torch.full((num_clouds, num_points), 1e10, device=points.device)
    farthest = torch.zeros(num_clouds, dtype=torch.int64, device=points.device)
    batch = torch.arange(num_clouds, device=points.device)
    for k in range(K):
        idx[:, k] = farthest
        center = points[batch, farthest][:, None]
        distance = torch.minimum(distance, ((points - center) ** 2).sum(-1))
        farthest = distance.max(-1)[1]
    return idx


def plain_knn(p1: Tensor, p2: Tensor, K: int) -> Pair:
    found = torch.cdist(p1, p2).topk(K, largest=False)
    return found.values, found.indices


def plain_chamfer(x: Tensor, y: Tensor) -> Tensor:
    dists = torch.cdist(x, y)
    return (dists.min(2).values ** 2).mean() + (dists.min(1).values ** 2).mean()


def plain_interpolate(known: Tensor, features: Tensor, query: Tensor) -> Tensor:
    dists, idx = plain_knn(query, known, 3)
    return weigh(features, dists**2, idx)


def weigh(features: Tensor, dists: Tensor, idx: Tensor) -> Tensor:
    """Features [B, M, C] at idx [B, N, 3], weighted by inverse squared distance."""
    weights = 1 / (dists + 1e-8)
    weights = weights / weights.sum(2, keepdim=True)
    batch = torch.arange(len(features), device=features.device)[:, None, None]
    return (features[batch, idx] * weights[..., None]).sum(2)


def naive_fps(points: Tensor, K: int) -> Tensor:
    return torch.cat([plain_fps(cloud[None], K) for cloud in points])


def naive_knn(p1: Tensor, p2: Tensor, K: int) -> Pair:
    rows = [
        ((cloud - point) ** 2).sum(1).topk(K, largest=False)
        for points, cloud in zip(p1, p2, strict=True)
        for point in points
    ]
    shape = (*p1.shape[:2], K)
    return torch.stack([row.values for row in rows]).view(shape), torch.stack([row.indices for row in rows]).view(shape)


def naive_chamfer(x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(())
    for one, two in zip(x, y, strict=True):
        for points, cloud in ((one, two), (two, one)):
            total = total + torch.stack([((cloud - point) ** 2).sum(1).min() for point in points]).mean() / len(x)
    return total


def naive_interpolate(known: Tensor, features: Tensor, query: Tensor) -> Tensor:
    dists, idx = naive_knn(query, known, 3)
    return weigh(features, dists, idx)


def group(fps: Callable[..., Tensor], knn: Callable[..., Pair]) -> Callable[..., Pair]:
    """group_points from a contestant's own sampling and neighbours."""

    def run(points: Tensor, num_group: int, group_size: int) -> Pair:
        batch = torch.arange(len(points), device=points.device)[:, None]
        centers = points[batch, fps(points, num_group)]
        _, near = knn(centers, points, group_size)
        return points[batch[:, None], near] - centers[:, :, None], centers

    return run


def cluster_fps(points: Tensor, K: int) -> Tensor:
    from torch_cluster import fps

    num_clouds, num_points, _ = points.shape
    return fps(points.flatten(0, 1), _batch(points), ratio=K / num_points, random_start=False).view(num_clouds, K)


def cluster_knn(p1: Tensor, p2: Tensor, K: int) -> Tensor:
    from torch_cluster import knn

    return knn(p2.flatten(0, 1), p1.flatten(0, 1), K, _batch(p2), _batch(p1))


def cluster_chamfer(x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(())
    for one, two in ((x, y), (y, x)):
        _, near = cluster_knn(one, two, 1)
        total = total + ((one.flatten(0, 1) - two.flatten(0, 1)[near]) ** 2).sum(1).mean()
    return total


def cluster_group(points: Tensor, num_group: int, group_size: int) -> Pair:
    flat = points.flatten(0, 1)
    centers = flat[cluster_fps(points, num_group)]
    _, near = cluster_knn(centers, points, group_size)
    return flat[near].view(*centers.shape[:2], group_size, -1) - centers[:, :, None], centers


def cluster_interpolate(known: Tensor, features: Tensor, query: Tensor) -> Tensor:
    rows, near = cluster_knn(query, known, 3)
    dists = ((query.flatten(0, 1)[rows] - known.flatten(0, 1)[near]) ** 2).sum(1).view(-1, 3, 1)
    weights = 1 / (dists + 1e-8)
    picked = features.flatten(0, 1)[near].view(len(weights), 3, -1)
    return ((picked * weights).sum(1) / weights.sum(1)).view(*query.shape[:2], -1)


def _batch(points: Tensor) -> Tensor:
    """The cloud each point of the flattened batch belongs to."""
    return torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])


def with_backward(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the loss in both clouds."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return torch.autograd.grad(loss(x, y), (x, y))


def one_by_one(loss: Loss) -> Loss:
    """The loss, a cloud at a time, where the whole batch does not fit into memory."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([loss(one[None], two[None]) for one, two in zip(x, y, strict=True)]).mean()

    return run
