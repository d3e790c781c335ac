"""Farthest point sampling in plain torch."""

import torch
from torch import Tensor

from kernels.checks import check_count, check_integers, check_lengths, check_points, check_values, working_dtype
from kernels.knn import knn_gather, padded

# Running distances of points that may not be chosen yet; all lie below every distance. Non-finite points come
# after every finite one, chosen points after those, padding last.
NON_FINITE, CHOSEN, PADDING = -1.0, -2.0, -3.0


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int = 50,
    random_start_point: bool = False,
    start_idx: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """K points of each cloud, each the farthest from those chosen before it, ties to the lowest index.

    points [B, N, D], lengths [B] as in pytorch3d.ops.sample_farthest_points. The first point is index 0, or
    start_idx (an int or int64 [B]), or drawn from torch's global generator with random_start_point.

    Returns the chosen points [B, K, D] (differentiable in points) and idx int64 [B, K]; beyond min(K,
    lengths) they are 0 and -1. No index is chosen twice, however many points coincide; points with a NaN or
    infinite coordinate come after all others. ValueError for arguments that do not fit each other.
    """
    check_points("points", points)
    check_lengths("lengths", lengths, points)
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
    with torch.no_grad():
        idx = _search(points, lengths, min(K, num_points), start)
    idx = torch.nn.functional.pad(idx, (0, K - idx.shape[1]), value=-1)
    if lengths is not None:
        idx = idx.masked_fill(padded(lengths, K), -1)
    return knn_gather(points, idx[:, None])[:, 0], idx


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
    check_integers("start_idx", start, 0, num_points - 1, (num_clouds,), points)
    if lengths is not None:
        check_values((start < lengths.clamp(min=1)).all(), "start_idx must lie below lengths", start)
    return start.long()


def _search(points: Tensor, lengths: Tensor | None, K: int, start: Tensor) -> Tensor:
    """idx [B, K <= N]; the loop reuses its buffers, since every step passes over the whole cloud."""
    dtype = working_dtype(points)
    num_clouds, num_points = points.shape[:2]
    # Blocks of consecutive points lie num_blocks apart: the maximum over a block is one of whole vectors,
    # and the index is then sought among the block maxima and in one block only.
    run = max(1, round(num_points**0.5))
    num_blocks = -(-num_points // run)
    finite = points.isfinite().all(2)
    coordinates = torch.where(points.isfinite(), points.to(dtype), -torch.inf).permute(2, 0, 1)
    far = torch.where(finite, torch.inf, NON_FINITE).to(dtype)
    if lengths is not None:
        far = far.masked_fill(padded(lengths, num_points), PADDING)
    coordinates, far = _blocked(coordinates, run, -torch.inf), _blocked(far, run, PADDING)
    centers = torch.where(points.isfinite(), points.to(dtype), torch.inf)

    idx = torch.empty(num_clouds, K, dtype=torch.int64, device=points.device)
    distance, scratch = torch.empty_like(far), torch.empty_like(far)
    chosen = start
    for k in range(K):
        idx[:, k] = chosen
        center = centers.gather(1, chosen[:, None, None].expand(-1, 1, centers.shape[2]))
        for i, plane in enumerate(coordinates):
            out = scratch if i else distance
            torch.sub(plane, center[:, :, i, None], out=out)
            out.mul_(out)
            if i:
                distance.add_(scratch)
        torch.minimum(far, distance, out=far)
        place = chosen % run * num_blocks + chosen // run
        far.flatten(1).scatter_(1, place[:, None], CHOSEN)
        block = far.amax(1).argmax(1)
        chosen = block * run + far.gather(2, block[:, None, None].expand(-1, run, 1)).argmax(1)[:, 0]
    return idx


def _blocked(values: Tensor, run: int, outside: float) -> Tensor:
    """[..., N] -> contiguous [..., run, num_blocks], `outside` beyond N."""
    num_values = values.shape[-1]
    filled = torch.nn.functional.pad(values, (0, -num_values % run), value=outside)
    return filled.view(*filled.shape[:-1], filled.shape[-1] // run, run).transpose(-1, -2).contiguous()
