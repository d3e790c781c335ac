"""Groups of neighbours around sampled centers: sampling, then a search from the samples."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_numba.compiled import compiled, shared
from recon.kernels.on_numba.fps import farthest_points
from recon.kernels.on_numba.knn import search

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]


def groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Neighbours minus centers [B, G, S, D], centers [B, G, D], and where both stand: [B, G], [B, G, S]."""
    clouds = points.detach().numpy()
    num_clouds, _, width = clouds.shape
    start = torch.zeros(num_clouds, dtype=torch.int64, device=points.device)
    chosen = farthest_points(points, None, start, num_group)
    centers = np.empty((num_clouds, num_group, width), clouds.dtype)
    _take(clouds, chosen.numpy(), centers)
    _, idx = search(torch.from_numpy(centers), points, None, 2, group_size)
    near, rows = np.empty((*idx.shape, width), clouds.dtype), idx.numpy()

    def some(low: int, high: int) -> None:
        _take_around(clouds[low:high], centers[low:high], rows[low:high], near[low:high])

    shared(some, num_clouds, num_group * group_size)
    return torch.from_numpy(near), torch.from_numpy(centers), chosen, idx


@compiled
def _take(clouds: Cloud, rows: Rows, taken: Cloud) -> None:
    """taken [B, R, D] of clouds [B, N, D] at rows [B, R]."""
    for b in range(len(taken)):
        for r in range(taken.shape[1]):
            for d in range(taken.shape[2]):
                taken[b, r, d] = clouds[b, rows[b, r], d]


@compiled
def _take_around(clouds: Cloud, centers: Cloud, rows: Rows, near: Cloud) -> None:
    """near [B, G, S, D]: clouds [B, N, D] at rows [B, G, S] minus centers [B, G, D]."""
    num_clouds, num_group, group_size, width = near.shape
    for b in range(num_clouds):
        for g in range(num_group):
            for s in range(group_size):
                for d in range(width):
                    near[b, g, s, d] = clouds[b, rows[b, g, s], d] - centers[b, g, d]
