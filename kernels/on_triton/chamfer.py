"""The nearest point of the other cloud, both ways in one Triton launch: min_j and argmin_j of sum_c (x_ic - y_jc)^2.

The distances of the Chamfer losses (Fan, Su and Guibas 2017). Every pair is looked at, in the order of the points, so
that a strict "smaller" leaves ties to the lowest index.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.on_triton import on_device, tiles
from recon.kernels.on_triton.chamfer_backward import nearest_backward
from recon.kernels.on_triton.tiles import coordinates, distance, queries_of

__all__ = ["nearest", "nearest_backward"]

# Points walked between two looks at which run holds the nearest; tiny clouds note the index at every point. Compiled
# for sm_90 at [128, 1024], runs of 8, 16 and 32 take 93, 95 and 94 registers, 448, 401 and 384 instructions a point
# and 4, 6 and 12 s to compile; at [4992, 32], steps of 2, 4 and 8 take 50, 51 and 64, and 416, 302 and 255.
RUN, TINY_STEP = 16, 4
# Queries of which a warp finds the index within the run at once: one a lane.
QUERIES = 32
INF_BITS = tl.constexpr(0x7F800000)


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dists, idx [B, N] from x [B, N, D] to y [B, M, D], and [B, M] back, or [B, 0] if `single`; N, M >= 1.

    Contiguous float32 clouds on one device; lengths int64 [B]. Rows of padding, and all where the other cloud
    is empty, are arbitrary.
    """
    (num_clouds, num_x, width), num_y = x.shape, y.shape[1]
    dists_x, dists_y = x.new_empty(num_clouds, num_x), x.new_empty(num_clouds, 0 if single else num_y)
    idx_x, idx_y = (torch.empty(dists.shape, dtype=torch.int64, device=x.device) for dists in (dists_x, dists_y))
    if num_clouds:
        directions = 1 if single else 2
        size = num_x if single else max(num_x, num_y)
        cut = tiles.tile(num_clouds, size, width, directions)
        run = 1 if max(num_x, num_y) <= tiles.TINY or cut.clouds > 1 else RUN
        with on_device(x):
            nearest_kernel[cut.programs(num_clouds, size), directions](
                x,
                y,
                x_lengths,
                y_lengths,
                dists_x,
                idx_x,
                dists_y,
                idx_y,
                num_clouds,
                num_x,
                num_y,
                size,
                D=width,
                NORM=norm,
                R=cut.rows,
                C=cut.clouds,
                L=cut.lanes,
                RUN=run,
                STEP=max(run, TINY_STEP),
                QUERIES=min(QUERIES, cut.rows * cut.lanes),
                num_warps=1,
                enable_fp_fusion=False,
            )
    return dists_x, idx_x, dists_y, idx_y


@triton.jit
def distance_bits(one: tl.tuple, other: tl.tuple, D: tl.constexpr, NORM: tl.constexpr) -> tl.tensor:
    """As unsigned integers, which order as distances do, NaN of either sign above +inf."""
    return distance(one, other, D, NORM).to(tl.uint32, bitcast=True)


@triton.jit
def look(
    queries: tl.tuple,  # D of [R, C, L]
    targets: tl.tensor,  # [1, C, 1], where the clouds start
    start: tl.tensor,
    limit: tl.tensor,
    best: tl.tensor,  # [R, C, L]
    near: tl.tensor,  # [R, C, L]
    D: tl.constexpr,
    NORM: tl.constexpr,
    RUN: tl.constexpr,
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Update `best` bits and the start `near` of their run with the STEP targets from `start`, or those below limit."""
    for first in tl.static_range(0, STEP, RUN):
        lowest = tl.full(best.shape, 0xFFFFFFFF, tl.uint32)
        if MASKED and RUN > 1:
            # The last run alone, and not unrolled: a cloud's end would take as long to compile as all the rest.
            for u in range(RUN):
                bits = bits_of(queries, targets, start + first + u, 0, limit, D, NORM, True)
                lowest = tl.minimum(lowest, bits)
        else:
            # Two at a time: the compiler makes one three-way minimum of each two.
            for u in tl.static_range(first, first + RUN, 2 if RUN > 1 else 1):
                bits = bits_of(queries, targets, start, u, limit, D, NORM, MASKED)
                if RUN > 1:
                    bits = tl.minimum(bits, bits_of(queries, targets, start, u + 1, limit, D, NORM, MASKED))
                lowest = tl.minimum(lowest, bits)
        near = tl.where(lowest < best, start + first, near)
        best = tl.minimum(lowest, best)
    return best, near


@triton.jit
def bits_of(
    queries: tl.tuple,  # D of [R, C, L]
    targets: tl.tensor,  # [1, C, 1], where the clouds start
    start: tl.tensor,
    u: tl.constexpr,
    limit: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Distances of the queries to target start + u; the highest bits from the limit on."""
    # The large number first: what is left to add is part of the load.
    targets += start.to(tl.int64) * D
    if not MASKED:
        return distance_bits(queries, coordinates(targets, u, None, D), D, NORM)
    here = start + u < limit
    return tl.where(here, distance_bits(queries, coordinates(targets, u, here, D), D, NORM), 0xFFFFFFFF)


@triton.jit
def search(
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    y_lengths: tl.tensor,  # [B], or None
    dists: tl.tensor,  # [B, N], result
    idx: tl.tensor,  # [B, N], result
    num_clouds: tl.tensor,
    num_x: tl.tensor,
    num_y: tl.tensor,
    num_tiles: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    RUN: tl.constexpr,
    STEP: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    """One direction of one tile."""
    first_cloud = (tl.program_id(0) // num_tiles).to(tl.int64) * C
    # The last group's missing clouds repeat the last cloud, and are not stored.
    numbers = first_cloud + tl.arange(0, C)[None, :, None]  # [1, C, 1]
    cloud = tl.minimum(numbers, num_clouds - 1)  # [1, C, 1]
    query, here = queries_of(cloud, num_tiles, num_x, R, L)  # [R, 1, L]
    queries = coordinates(x, cloud * num_x + query, here, D)  # D of [R, C, L]
    targets = y + cloud * num_y * D  # [1, C, 1]
    size = num_y
    limit = num_y
    unmasked = num_y
    if y_lengths is not None:
        if C == 1:
            size = tl.load(y_lengths + first_cloud).to(tl.int32)
            limit = size
            unmasked = size
        else:
            limit = tl.load(y_lengths + cloud).to(tl.int32)
            unmasked = tl.min(limit)

    best = tl.full([R, C, L], INF_BITS, tl.uint32)
    near = tl.full([R, C, L], 0, tl.int32)  # where the run of the nearest starts
    start = tl.full([], 0, tl.int32)
    while start + STEP <= unmasked:
        best, near = look(queries, targets, start, limit, best, near, D, NORM, RUN, STEP, False)
        start += STEP
    while start < size:
        best, near = look(queries, targets, start, limit, best, near, D, NORM, RUN, STEP, True)
        start += STEP
    out = cloud * num_x + query  # [R, C, L]
    here &= numbers < num_clouds
    tl.store(dists + out, best.to(tl.float32, bitcast=True), mask=here)
    tl.store(idx + out, near.to(tl.int64), mask=here)
    if RUN > 1:
        tl.debug_barrier()
        start = tl.program_id(0) % num_tiles * (R * L)
        stop = tl.minimum(start + R * L, num_x)
        while start < stop:
            find_in_run(x, y, dists, idx, first_cloud, start, num_x, num_y, size, D, NORM, RUN, QUERIES)
            start += QUERIES


@triton.jit
def find_in_run(
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    dists: tl.tensor,  # [B, N]
    idx: tl.tensor,  # [B, N], read and written
    cloud: tl.tensor,  # which
    start: tl.tensor,  # first query
    num_x: tl.tensor,
    num_y: tl.tensor,
    size: tl.tensor,  # points of y in use
    D: tl.constexpr,
    NORM: tl.constexpr,
    RUN: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    """Replace the starts of runs in idx by the first point of the run at the distance found; lanes along the run."""
    query = start + tl.arange(0, QUERIES)[:, None]  # [QUERIES, 1]
    here = query < num_x
    row = cloud * num_x + query
    best = tl.load(dists + row, mask=here).to(tl.uint32, bitcast=True)
    near = tl.load(idx + row, mask=here, other=0).to(tl.int32) + tl.arange(0, RUN)[None, :]  # [QUERIES, RUN]
    valid = here & (near < size)
    targets = coordinates(y + cloud * num_y * D, near.to(tl.int64), valid, D)
    bits = distance_bits(coordinates(x, row, here, D), targets, D, NORM)  # [QUERIES, RUN]
    near = tl.min(tl.where(valid & (bits == best), near, 0x7FFFFFFF), 1, keep_dims=True)
    near = tl.where(best == INF_BITS, 0, near)
    # Lanes that share a query must all have read its run.
    tl.debug_barrier()
    tl.store(idx + row, near.to(tl.int64), mask=here)


@triton.jit(do_not_specialize=(*tiles.SIZES, "size"))
def nearest_kernel(
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    x_lengths: tl.tensor,  # [B], or None
    y_lengths: tl.tensor,  # [B], or None
    dists_x: tl.tensor,  # [B, N], results
    idx_x: tl.tensor,  # [B, N]
    dists_y: tl.tensor,  # [B, M], or [B, 0]
    idx_y: tl.tensor,  # [B, M], or [B, 0]
    num_clouds: tl.tensor,  # B
    num_x: tl.tensor,  # N
    num_y: tl.tensor,  # M
    size: tl.tensor,  # the larger of them, or N of one direction
    D: tl.constexpr,
    NORM: tl.constexpr,
    R: tl.constexpr,  # queries of a lane
    C: tl.constexpr,  # clouds of a warp
    L: tl.constexpr,  # lanes of a cloud
    RUN: tl.constexpr,  # points between two looks at the index
    STEP: tl.constexpr,  # points a step of the walk
    QUERIES: tl.constexpr,  # whose index is found at once
) -> None:
    """Programs along axis 0: tiles of clouds of up to `size` queries; along axis 1: x to y, y to x."""
    num_tiles = tl.cdiv(size, R * L)
    if tl.program_id(1) == 0:
        search(
            x, y, y_lengths, dists_x, idx_x, num_clouds, num_x, num_y, num_tiles, D, NORM, R, C, L, RUN, STEP, QUERIES
        )
    else:
        search(
            y, x, x_lengths, dists_y, idx_y, num_clouds, num_y, num_x, num_tiles, D, NORM, R, C, L, RUN, STEP, QUERIES
        )
