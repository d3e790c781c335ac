"""Weighted sums of rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.on_numba.compiled import compiled, shared

Cloud = NDArray[np.floating]


def weighted_rows(features: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
    """sum over k of weights [B, N, K] * features [B, M, C] at idx [B, N, K] -> [B, N, C]; 0 where the first is 0."""
    values, rows, shares = features.detach().numpy(), idx.numpy(), weights.detach().numpy()
    total = np.empty((*rows.shape[:2], values.shape[2]), values.dtype)

    def some(low: int, high: int) -> None:
        _weigh(values[low:high], rows[low:high], shares[low:high], total[low:high])

    shared(some, len(total), total[:1].size * rows.shape[2] / 4)
    return torch.from_numpy(total)


@compiled
def _weigh(values: Cloud, rows: NDArray[np.int64], shares: Cloud, total: Cloud) -> None:
    num_clouds, num_queries, num_near = rows.shape
    for b in range(num_clouds):
        for n in range(num_queries):
            if shares[b, n, 0] == 0:  # whatever its features: 0 x NaN is NaN
                total[b, n, :] = 0
                continue
            for k in range(num_near):
                row, share = rows[b, n, k], shares[b, n, k]
                for c in range(total.shape[2]):
                    part = values[b, row, c] * share
                    total[b, n, c] = part if k == 0 else total[b, n, c] + part
