"""Weighted sums of rows."""

import torch
from torch import Tensor

from recon.kernels.on_torch.rows import flat_rows

# Values of the result worked on at once; larger temporaries leave a CPU's cache, and cost memory.
CPU_CHUNK, GPU_CHUNK = 2**18, 2**24


def weighted_rows(features: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
    """sum over k of weights [B, N, K] * features [B, M, C] at idx [B, N, K] -> [B, N, C]; 0 where the first is 0."""
    num_clouds, num_queries, num_near = idx.shape
    width = features.shape[2]
    rows = flat_rows(idx.flatten(1), features.shape[1]).view(-1, num_near).T.contiguous()
    weights = weights.reshape(-1, num_near).T.contiguous()[:, :, None]
    features = features.reshape(-1, width)
    total = features.new_empty(num_clouds * num_queries, width)
    step = max(1, (CPU_CHUNK if features.device.type == "cpu" else GPU_CHUNK) // max(1, width))
    for start in range(0, len(total), step):
        some = slice(start, start + step)
        torch.mul(features.index_select(0, rows[0, some]), weights[0, some], out=total[some])
        for k in range(1, num_near):
            # Not addcmul, which may round once where the other ways round twice.
            total[some].add_(features.index_select(0, rows[k, some]).mul_(weights[k, some]))
    # Whatever its features: 0 x NaN is NaN.
    return total.masked_fill_(weights[0] == 0, 0).view(num_clouds, num_queries, width)
