"""Farthest point sampling, one step over many clouds at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_torch.cloud_threads import each
from recon.kernels.on_torch.knn import blocked, padded

# Running distances of points that may not be chosen yet; all lie below every distance. Non-finite points come
# after every finite one, chosen points after those, padding last.
NON_FINITE, CHOSEN, PADDING = -1.0, -2.0, -3.0
CPU_POINTS = 2**15
"""Points that take a step together on a CPU: fewer, and the calls cost more than the arithmetic; at 1024 points a cloud
8 clouds took 1.4 times as long as 32. More leave the cache."""


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N], start [B] first, of points [B, N, D]; entries beyond lengths [B] are arbitrary."""
    if points.device.type == "cpu":
        return _on_cpu(points, lengths, start, K)
    return by_tensors(points, lengths, start, K)


def _on_cpu(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """NumPy's calls cost a fraction of torch's, and its argmax uses vector instructions."""
    clouds = points.detach().numpy()
    sizes = None if lengths is None else lengths.numpy()
    first = start.numpy()
    idx = np.empty((len(clouds), K), np.int64)
    step = max(1, CPU_POINTS // max(1, clouds.shape[1]))

    def some(b: int) -> None:
        part = slice(b, b + step)
        _sample(clouds[part], None if sizes is None else sizes[part], first[part], idx[part])

    each(some, range(0, len(clouds), step))
    return torch.from_numpy(idx)


def _sample(
    points: NDArray[np.floating], sizes: NDArray[np.int64] | None, start: NDArray[np.int64], idx: NDArray[np.int64]
) -> None:
    """Fill idx [B, K] with the samples of points [B, N, D]."""
    num_clouds, num_points = points.shape[:2]
    coordinates = np.ascontiguousarray(points.transpose(2, 0, 1))
    centers, far = coordinates, np.full((num_clouds, num_points), np.inf, points.dtype)
    finite = np.isfinite(coordinates)
    if not finite.all():
        centers = np.where(finite, coordinates, np.inf)
        coordinates = np.where(finite, coordinates, -np.inf)
        far[~finite.all(0)] = NON_FINITE
    if sizes is not None:
        far[np.arange(num_points) >= sizes[:, None]] = PADDING
    apart = np.empty_like(coordinates)
    distance, *others = apart
    clouds, chosen = np.arange(num_clouds), start
    with np.errstate(over="ignore"):
        for k in range(idx.shape[1]):
            idx[:, k] = chosen
            np.subtract(coordinates, centers[:, clouds, chosen][:, :, None], out=apart)
            np.multiply(apart, apart, out=apart)
            for other in others:
                distance += other
            np.minimum(far, distance, out=far)
            far[clouds, chosen] = CHOSEN
            chosen = far.argmax(1)


def by_tensors(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """The same on any device; the loop reuses its buffers, as every step passes over whole clouds."""
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
