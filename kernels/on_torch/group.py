"""Groups of neighbours around sampled centers: sampling, then a search from the samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from recon.kernels.on_torch import fps, knn
from recon.kernels.on_torch.rows import taken


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Neighbours minus centers [B, G, S, D], centers [B, G, D], and where both stand: [B, G], [B, G, S]."""
    return in_two(points, num_group, group_size, fps.farthest_points, knn.search)


def in_two(
    points: Tensor,
    num_group: int,
    group_size: int,
    sample: Callable[[Tensor, Tensor | None, Tensor, int], Tensor],
    search: Callable[[Tensor, Tensor, Tensor | None, int, int], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by a sampling (points, lengths, start, K) and a search (p1, p2, lengths2, norm, K)."""
    start = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    chosen = sample(points, None, start, num_group)
    centers = taken(points, chosen)
    _, idx = search(centers, points, None, 2, group_size)
    near = taken(points, idx.flatten(1)).view(*idx.shape, points.shape[2])
    return near.sub_(centers[:, :, None]), centers, chosen, idx
