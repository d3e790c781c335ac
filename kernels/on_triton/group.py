"""Grouping in two Triton kernels: farthest point sampling that stores centers, then a search that stores groups."""

import torch
from torch import Tensor

from recon.kernels.on_triton import fps, knn


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """groups [B, G, S, D] of neighbours minus center, centers [B, G, D], chosen int64 [B, G], idx int64 [B, G, S].

    Contiguous float32 points [B, N, D]; G <= N and S <= min(N, 128). Sampling starts at index 0.
    """
    num_clouds, _, width = points.shape
    centers = points.new_empty(num_clouds, num_group, width)
    chosen = torch.empty(num_clouds, num_group, dtype=torch.int64, device=points.device)
    fps.launch(points, None, None, chosen, centers)
    found = points.new_empty(num_clouds, num_group, group_size, width)
    idx = torch.empty(num_clouds, num_group, group_size, dtype=torch.int64, device=points.device)
    knn.launch(centers, points, None, 2, group_size, idx, groups=found)
    return found, centers, chosen, idx
