"""Kernels compiled before they are needed."""

from collections.abc import Iterable

import torch

from recon.kernels.chamfer import ChamferL1, ChamferL2, chamfer_distance
from recon.kernels.checks import check_count
from recon.kernels.fps import sample_farthest_points
from recon.kernels.group import group_points
from recon.kernels.interpolate import interpolate_three
from recon.kernels.knn import knn_points


def warm_up(
    shapes: Iterable[tuple[int, int, int]],
    *,
    num_group: int = 64,
    group_size: int = 32,
    device: torch.device | str | None = None,
) -> None:
    """Compile every op and its backward for clouds [B, N, D] of these shapes, so that no step waits for it.

    num_group samples and group_size neighbours, or as many as there are points. Clouds are float32; float16 and
    bfloat16 take the same kernels. What another call compiles again is listed in docs/kernels.md. The device is the
    GPU, or else the CPU, whose kernels are compiled as well; without Triton and Numba the ops run once. ValueError for
    a shape that is not three numbers of at least 1.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for shape in shapes:
        if len(shape) != 3:
            raise ValueError(f"shapes must each be (clouds, points, coordinates), got {shape!r}")
        for size in shape:
            check_count("every number of a shape", size)
        num_points = shape[1]
        x, y = (torch.zeros(shape, dtype=torch.float32, device=device, requires_grad=True) for _ in range(2))
        lengths = torch.full(shape[:1], num_points, device=device)
        few, near = min(num_group, num_points), min(group_size, num_points)
        groups, centers = group_points(x, few, near)
        total = groups.sum() + interpolate_three(centers, centers, y).sum()
        for own, others in ((None, None), (lengths, lengths)):
            total = total + sample_farthest_points(x, own, K=few)[0].sum()
            total = total + knn_points(centers, y, None, others, K=near).dists.sum()
            distance, _ = chamfer_distance(x, y, own, others)
            assert isinstance(distance, torch.Tensor)
            total = total + distance
        (total + ChamferL1()(x, y) + ChamferL2()(x, y)).backward()
