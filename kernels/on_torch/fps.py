"""Farthest point sampling, one step over all clouds at a time."""

import torch
from torch import Tensor

from recon.kernels.on_torch.knn import blocked, padded

NON_FINITE, CHOSEN, PADDING = -1.0, -2.0, -3.0
"""Running distances of points that may not be chosen yet; all lie below every distance. Non-finite points come after
every finite one, chosen points after those, padding last."""


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N], start [B] first, of points [B, N, D]; entries beyond lengths [B] are arbitrary.

    The loop reuses its buffers, as every step passes over whole clouds.
    """
    num_clouds, num_points = points.shape[:2]
    # Blocks of consecutive points lie num_blocks apart: the maximum over a block is one of whole vectors,
    # and the index is then sought among the block maxima and in one block only.
    run = max(1, round(num_points**0.5))
    num_blocks = -(-num_points // run)
    finite = points.isfinite().all(2)
    coordinates = torch.where(points.isfinite(), points, -torch.inf).permute(2, 0, 1)
    far = torch.where(finite, torch.inf, NON_FINITE).to(points.dtype)
    if lengths is not None:
        far = far.masked_fill(padded(lengths, num_points), PADDING)
    coordinates, far = (
        blocked(values, run, outside).view(*values.shape[:-1], run, num_blocks)
        for values, outside in ((coordinates, -torch.inf), (far, PADDING))
    )
    centers = torch.where(points.isfinite(), points, torch.inf)

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
