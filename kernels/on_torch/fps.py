"""Farthest point sampling, one step over many clouds at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_torch import small
from recon.kernels.on_torch.cloud_threads import each
from recon.kernels.on_torch.knn import blocked, fits_small, padded
from recon.kernels.on_torch.small import CHOSEN, NON_FINITE, PADDING

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]

CPU_POINTS = 2**15
"""Points that take a step together on a CPU: fewer, and the calls cost more than the arithmetic; at 1024 points a cloud
8 clouds took 1.4 times as long as 32. More leave the cache."""
BUFFER = 16
"""NumPy's buffer, in numbers. With its own of 8192 it copies rows of up to 4096 to subtract one number from each: 0.63
nanoseconds a point in place of 0.39."""
STAGES = 4
"""Parts of a long sampling, all but the first among fewer points: 6, 8 and 16 parts took longer."""
LONG, MANY = 128, 2**13
"""Samples, and points together, from which parts pay: 1.2 to 1.45 times as fast from there on, 0.8 for 64 samples."""
GUESS = 0.8
"""Share of the expected last distance below which a point is left out. On spheres, boxes and normal clouds the last
distance was no less than 0.88 of what is expected."""


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K <= N], start [B] first, of points [B, N, D]; entries beyond lengths [B] are arbitrary."""
    if fits_small(points, points):
        return small.farthest_points(points, lengths, start, K)
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


def _sample(points: Cloud, sizes: Rows | None, start: Rows, idx: Rows) -> None:
    """Fill idx [B, K] with the samples of points [B, N, D]."""
    num_clouds, num_points, _ = points.shape
    K = idx.shape[1]
    coordinates = np.ascontiguousarray(points.transpose(2, 0, 1))
    centers, far = points, np.full((num_clouds, num_points), np.inf, points.dtype)
    finite = np.isfinite(coordinates)
    if not finite.all():
        centers = np.where(np.isfinite(points), points, np.inf)
        coordinates = np.where(finite, coordinates, -np.inf)
        far[~finite.all(0)] = NON_FINITE
    if sizes is not None:
        far[np.arange(num_points) >= sizes[:, None]] = PADDING
    whole = _Running(coordinates, far, centers.reshape(-1, len(coordinates)), np.empty_like(coordinates).reshape(-1))
    first_rows = np.arange(num_clouds) * num_points
    rows = np.empty((K, num_clouds), np.int64)
    first = K // STAGES if LONG <= K <= num_points // 4 and num_clouds * num_points >= MANY else K
    with np.errstate(over="ignore"):
        np.setbufsize(BUFFER)  # as it was again with errstate's end
        for k in range(first):
            rows[k] = whole.choose(whole.farthest() if k else start + first_rows)
        right = _among_few(whole, rows, first)
        for k in range(first, right if right < K else first):
            whole.choose(rows[k])
        for k in range(right, K):
            rows[k] = whole.choose(whole.farthest())
    np.subtract(rows.T, first_rows[:, None], out=idx)


class _Running:
    """Points [D, B, W] that may be chosen yet, and their distances far [B, W] to the nearest chosen one.

    centers [B * N, D] are all points, `rows` [B * W] where these stand there (None: they are all of them), and scratch
    holds no less than D * B * W numbers.
    """

    def __init__(
        self, coordinates: Cloud, far: Cloud, centers: Cloud, scratch: Cloud, rows: Rows | None = None
    ) -> None:
        self.coordinates, self.far, self.centers, self.rows, self.scratch = coordinates, far, centers, rows, scratch
        self._apart = scratch[: coordinates.size].reshape(coordinates.shape)
        self._flat_far = far.reshape(-1)
        self._first = np.arange(len(far)) * far.shape[1]

    def farthest(self) -> Rows:
        """Places [B] in B * W of the points to choose next."""
        at: Rows = self.far.argmax(1)
        at += self._first
        return at

    def distance(self, at: Rows) -> Cloud:
        """Running distances [B] at places [B]."""
        return self._flat_far.take(at)

    def choose(self, at: Rows) -> Rows:
        """Choose the points at places [B]; returns their rows in centers."""
        rows = at if self.rows is None else self.rows.take(at)
        np.subtract(self.coordinates, self.centers.take(rows, 0).T[:, :, None], out=self._apart)
        np.multiply(self._apart, self._apart, out=self._apart)
        distance, *others = self._apart
        for other in others:
            distance += other
        np.minimum(self.far, distance, out=self.far)
        self._flat_far[at] = CHOSEN
        return rows

    def beyond(self, floor: Cloud) -> "_Running":
        """The points no nearer than floor [B], in the order of their rows; chosen ones fill clouds that have fewer."""
        kept = self.far >= floor[:, None]
        counts = kept.sum(1)
        places = (self.far.argmin(1) + self._first)[:, None].repeat(counts.max(), 1)  # [B, W]
        places[np.arange(counts.max()) < counts[:, None]] = np.flatnonzero(kept)
        coordinates = np.stack([plane.reshape(-1).take(places) for plane in self.coordinates])
        rows = places.reshape(-1) if self.rows is None else self.rows.take(places.reshape(-1))
        return _Running(coordinates, self._flat_far.take(places), self.centers, self.scratch, rows)


def _among_few(whole: _Running, rows: Rows, first: int) -> int:
    """Fill rows [K, B] on from the `first` samples, looking at few points; returns how many of all are right.

    A point nearer to the chosen ones than the last sample will be is never chosen. How far that will be is guessed:
    over a surface, the squared distance of the k-th falls as 1 / k. Points below the guess are left out, more at each
    stage. Where a sample lies below the guess after all, one of those left out may come before it.
    """
    K = len(rows)
    few, floor = whole, np.zeros(rows.shape[1], whole.far.dtype)
    while first < K:
        reached = few.distance(few.farthest())
        if not ((reached > 0) & np.isfinite(reached)).all():
            return first
        floor = np.maximum(floor, reached * (GUESS * first / K))
        few = few.beyond(floor)
        last = min(K, first + K // STAGES)
        for k in range(first, last):
            at = few.farthest()
            if (few.distance(at) < floor).any():
                return k
            rows[k] = few.choose(at)
        first = last
    return K


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
