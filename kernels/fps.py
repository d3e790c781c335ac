"""Farthest point sampling: i_0 is given, and i_k is the j not yet chosen with the largest min over l < k of
|p_j - p_{i_l}|^2 (Eldar et al., "The farthest point strategy for progressive image sampling", 1997; on clouds as in
PointNet++, Qi et al. 2017).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recon.kernels import ops, transforms
from recon.kernels.backends import choose
from recon.kernels.checks import check_count, check_integers, check_lengths, check_points, some, working_dtype
from recon.kernels.on_torch.knn import padded


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int | Sequence[int] | Tensor = 50,
    random_start_point: bool = False,
    *,
    start_idx: int | Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """K points of each cloud, each the farthest from those chosen before it, ties to the lowest index.

    points [B, N, D], lengths [B] as in pytorch3d.ops.sample_farthest_points. K is one count, or one a cloud: a list,
    or an integer tensor [B], whose values have to be read back from a GPU. The first point is index 0, or
    start_idx (an int or int64 [B]), or drawn from torch's global generator with random_start_point.

    Returns the chosen points [B, max(K), D] (differentiable in points) and idx int64 [B, max(K)]; beyond min(K,
    lengths) they are 0 and -1. No index is chosen twice, however many points coincide; points with a NaN or
    infinite coordinate come after all others. `backend` as in kernels.backends.choose. ValueError for arguments
    that do not fit each other.
    """
    check_points("points", points)
    lengths = check_lengths("lengths", lengths, points)
    num_clouds, num_points = points.shape[:2]
    most, counts = _check_counts(K, points)
    if random_start_point and start_idx is not None:
        raise ValueError("start_idx cannot be given together with random_start_point=True")
    if num_points == 0:
        idx = torch.full((num_clouds, most), -1, dtype=torch.int64, device=points.device)
        return torch.nn.functional.pad(points, (0, 0, 0, most)), idx
    if random_start_point:
        sizes = num_points if lengths is None else lengths
        # MPS has no float64; below 2^24 points a draw in float32 stays below the size too.
        dtype = torch.float32 if points.device.type == "mps" else torch.float64
        start = (torch.rand(num_clouds, device=points.device, dtype=dtype) * sizes).long()
    else:
        start = _check_start(start_idx, points, lengths)
    found = min(most, num_points)
    backend = choose(backend, points, "sample_farthest_points", cluster=True)
    idx = ops.farthest_points(points.detach().to(working_dtype(points)), lengths, start, found, backend)
    if lengths is None and counts is None and not some(most - found):
        return transforms.take_rows(points, idx), idx
    idx = torch.nn.functional.pad(idx, (0, most - found), value=-1)
    if counts is not None:
        idx = idx.masked_fill(padded(counts, most), -1)
    chosen = transforms.take_rows(points, idx.clamp(min=0))
    return chosen.masked_fill((idx < 0)[..., None], 0), idx


def _check_counts(K: int | Sequence[int] | Tensor, points: Tensor) -> tuple[int, Tensor | None]:
    """The most points to choose, and where K is not one number how many of each cloud, int64 [B]."""
    if isinstance(K, int | torch.SymInt | np.integer):
        return check_count("K", K), None
    if isinstance(K, Tensor):
        K = check_integers("K", K, 0, 2**31 - 1, points.shape[:1], points).tolist()
    fits = isinstance(K, Sequence) and len(K) == points.shape[0]
    fits = fits and all(isinstance(k, int | np.integer) and k >= 0 for k in K)
    if not fits:
        raise ValueError(f"K must be an integer >= 1, or one >= 0 for each of {points.shape[0]} clouds, got {K!r}")
    return int(max(K, default=0)), torch.tensor(K, dtype=torch.int64, device=points.device)


def _check_start(start_idx: int | Tensor | None, points: Tensor, lengths: Tensor | None) -> Tensor:
    """int64 [B] first indices; ValueError unless each is one of its cloud's points (0 for an empty cloud)."""
    num_clouds, num_points = points.shape[:2]
    if start_idx is None:
        return torch.zeros(num_clouds, dtype=torch.int64, device=points.device)
    if isinstance(start_idx, Tensor):
        start = start_idx
    elif isinstance(start_idx, bool) or not isinstance(start_idx, int | np.integer) or not 0 <= start_idx < num_points:
        raise ValueError(f"start_idx must be an integer in [0, {num_points - 1}], got {start_idx!r}")
    else:
        start = torch.full((num_clouds,), start_idx, dtype=torch.int64, device=points.device)
    start = check_integers("start_idx", start, 0, num_points - 1, (num_clouds,), points)
    if lengths is not None:
        start = ops.require(start, start < lengths.clamp(min=1), "start_idx must lie below lengths", 0)
    return start
