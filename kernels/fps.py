"""Farthest point sampling."""

import torch
from torch import Tensor

from recon.kernels import ops
from recon.kernels.backends import choose
from recon.kernels.checks import check_count, check_integers, check_lengths, check_points, working_dtype


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int = 50,
    random_start_point: bool = False,
    start_idx: int | Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """K points of each cloud, each the farthest from those chosen before it, ties to the lowest index.

    points [B, N, D], lengths [B] as in pytorch3d.ops.sample_farthest_points. The first point is index 0, or
    start_idx (an int or int64 [B]), or drawn from torch's global generator with random_start_point.

    Returns the chosen points [B, K, D] (differentiable in points) and idx int64 [B, K]; beyond min(K,
    lengths) they are 0 and -1. No index is chosen twice, however many points coincide; points with a NaN or
    infinite coordinate come after all others. `backend` as in kernels.backends.choose. ValueError for arguments
    that do not fit each other.
    """
    check_points("points", points)
    lengths = check_lengths("lengths", lengths, points)
    check_count("K", K)
    num_clouds, num_points = points.shape[:2]
    if random_start_point and start_idx is not None:
        raise ValueError("start_idx cannot be given together with random_start_point=True")
    if num_points == 0:
        idx = torch.full((num_clouds, K), -1, dtype=torch.int64, device=points.device)
        return points.new_zeros(num_clouds, K, points.shape[2]), idx
    if random_start_point:
        sizes = num_points if lengths is None else lengths
        start = (torch.rand(num_clouds, device=points.device, dtype=torch.float64) * sizes).long()
    else:
        start = _check_start(start_idx, points, lengths)
    found = min(K, num_points)
    backend = choose(backend, points, "sample_farthest_points", cluster=True)
    idx = ops.farthest_points(points.detach().to(working_dtype(points)), lengths, start, found, backend)
    idx = torch.nn.functional.pad(idx, (0, K - found), value=-1)
    chosen = ops.take_rows(points, idx.clamp(min=0))
    return (chosen if lengths is None and found == K else chosen.masked_fill((idx < 0)[..., None], 0)), idx


def _check_start(start_idx: int | Tensor | None, points: Tensor, lengths: Tensor | None) -> Tensor:
    """int64 [B] first indices; ValueError unless each is one of its cloud's points (0 for an empty cloud)."""
    num_clouds, num_points = points.shape[:2]
    if start_idx is None:
        return torch.zeros(num_clouds, dtype=torch.int64, device=points.device)
    if isinstance(start_idx, Tensor):
        start = start_idx
    elif isinstance(start_idx, bool) or not isinstance(start_idx, int) or not 0 <= start_idx < num_points:
        raise ValueError(f"start_idx must be an integer in [0, {num_points - 1}], got {start_idx!r}")
    else:
        start = torch.full((num_clouds,), start_idx, dtype=torch.int64, device=points.device)
    start = check_integers("start_idx", start, 0, num_points - 1, (num_clouds,), points)
    if lengths is not None:
        start = ops.require(start, start < lengths.clamp(min=1), "start_idx must lie below lengths")
    return start
