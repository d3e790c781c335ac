"""Weighted sums of rows in one Triton kernel: out_n = sum over k of w_nk f_idx(n, k), the propagation of PointNet++,
or 0 where w_n0 is 0.
"""

import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.on_triton import on_device

# Values of the result one program makes, eight a thread, and how many of them at most lie along a row: 512 bytes, four
# of a GPU's lines. Not tuned.
VALUES, COLUMNS = 1024, 128


def weighted_rows(features: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
    """sum over k of weights [B, N, K] * features [B, M, C] at idx [B, N, K] -> [B, N, C], k in order; 0 where the
    first weight is 0.

    Contiguous float32 tensors on one device, idx int64 in [0, M), K >= 1.
    """
    (num_clouds, num_queries, num_near), (num_points, width) = idx.shape, features.shape[1:]
    total = features.new_empty(num_clouds, num_queries, width)
    if total.numel():
        num_rows = num_clouds * num_queries
        columns = min(COLUMNS, triton.next_power_of_2(width))
        rows = min(VALUES // columns, triton.next_power_of_2(num_rows))
        with on_device(features):
            rows_kernel[triton.cdiv(num_rows, rows), triton.cdiv(width, columns)](
                features,
                idx,
                weights,
                total,
                num_rows,
                num_queries,
                num_points,
                width,
                K=num_near,
                ROWS=rows,
                COLUMNS=columns,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return total


@triton.jit
def rows_kernel(
    features: tl.tensor,  # [B, M, C]
    idx: tl.tensor,  # [B, N, K]
    weights: tl.tensor,  # [B, N, K]
    out: tl.tensor,  # [B, N, C], result
    num_rows: tl.tensor,  # B * N
    num_queries: tl.tensor,  # N
    num_points: tl.tensor,  # M
    width: tl.tensor,  # C
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """ROWS of the B * N results along axis 0, COLUMNS of their channels along axis 1."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    here = row < num_rows
    mask = here & (column < width)  # [ROWS, COLUMNS]
    first = row // num_queries * num_points  # [ROWS, 1], where the row's cloud starts in features
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(K):
        near = tl.load(idx + row * K + k, mask=here, other=0)
        part = tl.load(weights + row * K + k, mask=here) * tl.load(
            features + (first + near) * width + column, mask=mask
        )
        total += part
    total = tl.where(tl.load(weights + row * K, mask=here, other=0) != 0, total, 0.0)
    tl.store(out + row * width + column, total, mask=mask)
