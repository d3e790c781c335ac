"""Point clouds that break nearest-neighbour code; needs torch alone, for machines without pytest and hypothesis."""

import torch
from torch import Tensor

KINDS = ("random", "duplicates", "offset", "collinear", "constant", "huge", "non_finite", "grid")


def cloud(kind: str, num_clouds: int, num_points: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A [B, N, D] tensor of one kind; every third call's memory order is not the shape's."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num_clouds, num_points, width, generator=generator, dtype=torch.float64)
    if kind == "duplicates" and num_points:
        points = points[:, torch.randint(0, max(1, num_points // 3), (num_points,), generator=generator)]
    elif kind == "offset":
        points = points + 1e4
    elif kind == "collinear":
        points = points[..., :1].expand_as(points)
    elif kind == "constant":
        points = torch.ones_like(points) * 0.3
    elif kind == "huge":
        points = points * 1e19  # squares reach the top of float32, past any sentinel
    elif kind == "non_finite":
        bad = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=points.dtype)
        fill = bad[torch.randint(0, 3, points.shape, generator=generator)]
        points = torch.where(torch.rand(points.shape, generator=generator) < 0.15, fill, points)
    elif kind == "grid":
        points = (points * 2).round()  # many equal distances: ties everywhere
    points = points.to(dtype)
    if seed % 3 == 0:
        points = points.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    return points
