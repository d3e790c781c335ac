"""Cut a cloud into local groups: farthest point sampling, nearest neighbours, gathering and centring."""

import torch
from torch import Tensor

from kernels.checks import check_count, check_points, working_dtype
from kernels.fps import sample_farthest_points
from kernels.knn import knn_gather, knn_points


def group_points(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Groups of neighbours around farthest-point-sampled centers, each relative to its center.

    points [B, N, 3] -> groups [B, G, S, 3] (nearest first, so the center itself leads), centers [B, G, 3], in
    the dtype of points and differentiable in them. Sampling starts at index 0; ties go to the lowest index.
    ValueError unless 1 <= num_group <= N and 1 <= group_size <= N.
    """
    check_points("points", points)
    for name, count in (("num_group", num_group), ("group_size", group_size)):
        check_count(name, count)
        if count > points.shape[1]:
            raise ValueError(f"{name} {count} must not exceed the points of a cloud, got points {list(points.shape)}")
    centers, _ = sample_farthest_points(points, K=num_group)
    with torch.no_grad():
        idx = knn_points(centers, points, K=group_size).idx
    groups = knn_gather(points, idx)
    dtype = working_dtype(points)
    return (groups.to(dtype) - centers.to(dtype)[:, :, None]).to(points.dtype), centers
