"""Gradients of points that are the nearest of others, added up by segments of a sorted index, without atomics.

A stable sort of the matches brings those of each point together, in their order: a segment. Work is then as much as
there are matches, and who has many is summed WIDE at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.on_triton.tiles import SIZES, coordinates

# Points a program, and matches of each that it adds at a time: eight values a lane. Not tuned.
POINTS, WIDE = 32, 8


def subtracted(own: Tensor, others: Tensor, idx: Tensor, num_points: int) -> Tensor:
    """own [B, N, D], or nothing [B, 0, D], less the rows of others [B, M, D] by their points idx int64 [B, M].

    Rows of idx -1 belong to no point. With M = 0 it is own itself. The same bits every time.
    """
    num_clouds, num_others, width = others.shape
    if num_others == 0:
        return own
    keys, order = idx.int().sort(dim=1, stable=True)
    points = torch.arange(num_points + 1, dtype=torch.int32, device=idx.device)
    starts = torch.searchsorted(keys, points.repeat(num_clouds, 1), out_int32=True)
    total = others.new_empty(num_clouds, num_points, width)
    segments_kernel[(triton.cdiv(num_clouds * num_points, POINTS),)](
        own,
        others,
        order,
        starts,
        total,
        num_clouds,
        num_points,
        num_others,
        D=width,
        OWN=own.shape[1] > 0,
        POINTS=POINTS,
        WIDE=WIDE,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return total


@triton.jit(do_not_specialize=SIZES)
def segments_kernel(
    own: tl.tensor,  # [B, N, D], or [B, 0, D]
    others: tl.tensor,  # [B, M, D]
    order: tl.tensor,  # [B, M]
    starts: tl.tensor,  # [B, N + 1]
    total: tl.tensor,  # [B, N, D], result
    num_clouds: tl.tensor,  # B
    num_x: tl.tensor,  # N
    num_y: tl.tensor,  # M
    D: tl.constexpr,
    OWN: tl.constexpr,
    POINTS: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """POINTS of the B * N points along axis 0."""
    row = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)[:, None]  # [POINTS, 1]
    cloud = row // num_x
    here = cloud < num_clouds
    start = tl.load(starts + row + cloud, mask=here, other=0)
    end = tl.load(starts + row + cloud + 1, mask=here, other=0)
    sums: tl.tuple = ()
    for _ in tl.static_range(D):
        sums += (tl.zeros([POINTS, 1], tl.float32),)
    longest = tl.max(tl.max(end - start, 1), 0)
    done = tl.full([], 0, tl.int32)
    while done < longest:
        place = start + done + tl.arange(0, WIDE)[None, :]  # [POINTS, WIDE]
        inside = place < end
        match = tl.load(order + cloud * num_y + place, mask=inside, other=0)
        values = coordinates(others, cloud * num_y + match, inside, D)
        now: tl.tuple = ()
        for d in tl.static_range(D):
            now += (sums[d] + tl.sum(tl.where(inside, values[d], 0.0), 1)[:, None],)
        sums = now
        done += WIDE
    for d in tl.static_range(D):
        value = -sums[d]
        if OWN:
            value += tl.load(own + row * D + d, mask=here)
        tl.store(total + row * D + d, value, mask=here)
