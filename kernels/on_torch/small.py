"""Neighbours in small clouds on a CPU: all pairs at once in NumPy, whose calls cost a fraction of torch's.

Distances have the bits of the other searches: the same differences, summed in the same order.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pairs = NDArray[np.floating]

PAIRS = 2**13
"""Pairs up to which calls, more than arithmetic, are what a search costs."""


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K <= M] of CPU clouds [B, N, D] and [B, M, D], padding of p2 last."""
    found = _without_padding(_distances(p1, p2, norm), lengths2, 2)
    if K == 1:
        dists, idx = _minimum(found, 2)
        return dists[:, :, None], idx[:, :, None]
    idx = torch.from_numpy(found.argsort(2, kind="stable")[:, :, :K].copy())
    found.sort(2)
    return torch.from_numpy(found[:, :, :K].copy()), idx


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dists, idx [B, N] from CPU clouds x [B, N, D] to y [B, M, D], and [B, M] back; N, M >= 1."""
    found = _distances(x, y, norm)
    forth, back = _without_padding(found, y_lengths, 2), _without_padding(found, x_lengths, 1)
    return *_minimum(forth, 2), *_minimum(back, 1)


def _distances(p1: Tensor, p2: Tensor, norm: int) -> Pairs:
    """[B, N, M]; +inf from and to whatever is not finite."""
    first, second = (points.detach().numpy().transpose(2, 0, 1) for points in (p1, p2))
    with np.errstate(over="ignore", invalid="ignore"):
        total: Pairs | None = None
        for one, two in zip(first, second, strict=True):
            apart = one[:, :, None] - two[:, None, :]
            np.abs(apart, out=apart) if norm == 1 else np.multiply(apart, apart, out=apart)
            total = apart if total is None else np.add(total, apart, out=total)
        assert total is not None
        return np.fmin(total, np.inf, out=total)  # NaN is the other


def _without_padding(found: Pairs, lengths: Tensor | None, axis: int) -> Pairs:
    """`found` with +inf at and beyond lengths [B] of an axis."""
    if lengths is None:
        return found
    padding = np.arange(found.shape[axis]) >= lengths.numpy()[:, None]
    return np.where(np.expand_dims(padding, 3 - axis), found.dtype.type(np.inf), found)


def _minimum(found: Pairs, axis: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(found.min(axis)), torch.from_numpy(found.argmin(axis))
