"""The gradient of the distances to nearest points, added up in a fixed order by Triton kernels without atomics.

With n(i) the nearest of x_i in y, n'(j) that of y_j in x, g and g' the gradients of their distances, and s(a) = 2 a for
squares, sign(a) for Manhattan distances, a / |a| for the roots of squares:

    dx_i = g_i s(x_i - y_n(i)) - sum over the j with n'(j) = i of g'_j s(y_j - x_i), and dy_j likewise
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.norms import ROOT
from recon.kernels.on_triton import on_device, segments, tiles
from recon.kernels.on_triton.tiles import coordinates, distance, queries_of

# Pairs whose gradient a warp works out, four a lane, and points it then walks between two looks at the end. Not tuned.
PAIRS, STEP = 128, 4
ROOT = tl.constexpr(ROOT)


def nearest_backward(
    grad_x: Tensor,
    grad_y: Tensor,
    x: Tensor,
    y: Tensor,
    idx_x: Tensor,
    idx_y: Tensor,
    norm: int,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients in x and y of sum(grad_x * dists_x) + sum(grad_y * dists_y); one that is not needed is empty.

    grad_y and idx_y [B, M] or [B, 0]; norm 1, 2 or ROOT. Both grads are contiguous, or both one number expanded,
    which is then read where it stands. A pair of idx -1 or of a distance that is not finite adds nothing. Each
    point adds its pairs up in an order that the sizes settle: the same bits every time.
    """
    (num_clouds, num_x, width), num_y = x.shape, y.shape[1]
    of_x, of_y = x.new_empty(x.shape if needs_x else 0), y.new_empty(y.shape if needs_y else 0)
    if num_clouds == 0 or not (needs_x or needs_y):
        return of_x, of_y
    back = grad_y.shape[1] > 0
    own_x, own_y = torch.empty_like(x), torch.empty_like(y if back else y[:, :0])
    size = max(num_x, num_y)
    cut = tiles.tile(num_clouds, size, width, 1)
    inputs = (grad_x, grad_y, x, y, idx_x, idx_y, own_x, own_y)
    clouds = (num_clouds, num_x, num_y)
    shared = grad_x.stride() == grad_y.stride() == (0, 0)
    with on_device(x):
        if size <= cut.rows * cut.lanes:
            backward_kernel[(cut.programs(num_clouds, size),)](
                *inputs,
                of_x,
                of_y,
                *clouds,
                D=width,
                NORM=norm,
                SHARED=shared,
                BACK=back,
                NEEDS_X=needs_x,
                NEEDS_Y=needs_y,
                R=cut.rows,
                C=cut.clouds,
                L=cut.lanes,
                STEP=STEP,
                num_warps=1,
                enable_fp_fusion=False,
            )
            return of_x, of_y
        grid = (triton.cdiv(num_clouds * size, PAIRS), 2 if back else 1)
        pairs_kernel[grid](*inputs, *clouds, width, norm, shared, PAIRS, num_warps=1, enable_fp_fusion=False)
        if needs_x:
            of_x = segments.subtracted(own_x, own_y, idx_y, num_x)
        if needs_y:
            of_y = segments.subtracted(own_y, own_x, idx_x, num_y)
    return of_x, of_y


@triton.jit
def pair_gradients(
    grad: tl.tensor,  # [B, N], or one number
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    idx: tl.tensor,  # [B, N]
    own: tl.tensor,  # [B, N, D], result
    row: tl.tensor,
    cloud: tl.tensor,
    num_y: tl.tensor,
    here: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    SHARED: tl.constexpr,
) -> None:
    """Write the gradient of grad * distance in the rows of x into own, 0 where the pair does not count.

    SHARED: all distances have the gradient at `grad`.
    """
    near = tl.load(idx + row, mask=here, other=-1)  # of the shape of row
    paired = near >= 0
    one = coordinates(x, row, here, D)  # D of that shape
    other = coordinates(y, cloud * num_y + near, paired, D)
    found = distance(one, other, D, NORM)
    # NaN is not below +inf either.
    paired &= found < float("inf")
    slope = tl.load(grad) if SHARED else tl.load(grad + row, mask=here)
    if NORM == ROOT:
        paired &= found > 0
        slope = slope / tl.sqrt_rn(tl.where(paired, found, 1.0))
    for d in tl.static_range(D):
        apart = one[d] - other[d]
        along = slope * apart if NORM == ROOT else slope * (2 * apart)
        if NORM == 1:
            along = tl.where(apart > 0, slope, tl.where(apart < 0, -slope, 0.0))
        tl.store(own + row * D + d, tl.where(paired, along, 0.0), mask=here)


@triton.jit(do_not_specialize=tiles.SIZES)
def pairs_kernel(
    grad_x: tl.tensor,  # [B, N], or one number if SHARED
    grad_y: tl.tensor,  # [B, M] or [B, 0], or one number
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    idx_x: tl.tensor,  # [B, N]
    idx_y: tl.tensor,  # [B, M], or [B, 0]
    own_x: tl.tensor,  # [B, N, D], what its own pair gives a point
    own_y: tl.tensor,  # [B, M, D], or [B, 0, D]
    num_clouds: tl.tensor,  # B
    num_x: tl.tensor,  # N
    num_y: tl.tensor,  # M
    D: tl.constexpr,
    NORM: tl.constexpr,
    SHARED: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """Gradients of PAIRS pairs each, axis 1: of x, of y."""
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)  # [PAIRS]
    if tl.program_id(1) == 0:
        pair_gradients(grad_x, x, y, idx_x, own_x, row, row // num_x, num_y, row // num_x < num_clouds, D, NORM, SHARED)
    else:
        pair_gradients(grad_y, y, x, idx_y, own_y, row, row // num_y, num_x, row // num_y < num_clouds, D, NORM, SHARED)


@triton.jit
def gather(
    own_x: tl.tensor,  # [B, N, D]
    own_y: tl.tensor,  # [B, M, D]
    idx_y: tl.tensor,  # [B, M]
    out: tl.tensor,  # [B, N, D], result
    query: tl.tensor,  # [R, 1, L]
    cloud: tl.tensor,  # [1, C, 1]
    here: tl.tensor,  # [R, C, L]
    num_x: tl.tensor,
    num_y: tl.tensor,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Gradient of x: its own pairs', less those of the points of y whose nearest it is, in their order."""
    sums: tl.tuple = ()
    for _ in tl.static_range(D):
        sums += (tl.zeros([R, C, L], tl.float32),)
    if OTHERS:
        start = tl.full([], 0, tl.int32)
        while start + STEP <= num_y:
            for u in tl.static_range(STEP):
                sums = add_where_nearest(sums, own_y, idx_y, query, cloud * num_y, start, u, D)
            start += STEP
        while start < num_y:
            sums = add_where_nearest(sums, own_y, idx_y, query, cloud * num_y, start, 0, D)
            start += 1
    row = (cloud * num_x + query) * D  # [R, C, L]
    for d in tl.static_range(D):
        total = -sums[d]
        if OWN:
            total += tl.load(own_x + row + d, mask=here)
        tl.store(out + row + d, total, mask=here)


@triton.jit
def add_where_nearest(
    sums: tl.tuple,  # D of [R, C, L]
    own: tl.tensor,  # [B, M, D]
    idx: tl.tensor,  # [B, M]
    query: tl.tensor,  # [R, 1, L]
    first: tl.tensor,  # [1, C, 1], where the clouds start
    start: tl.tensor,
    u: tl.constexpr,
    D: tl.constexpr,
) -> tl.tuple:
    """sums [R, C, L] plus the gradient of point start + u of the other cloud, where a query is its nearest."""
    first += start
    matched = tl.load(idx + first + u).to(tl.int32) == query  # [R, C, L]
    values = coordinates(own + first * D, u, None, D)  # D of [1, C, 1]
    totals: tl.tuple = ()
    for d in tl.static_range(D):
        totals += (tl.where(matched, sums[d] + values[d], sums[d]),)
    return totals


@triton.jit(do_not_specialize=tiles.SIZES)
def backward_kernel(
    grad_x: tl.tensor,  # [B, N], or one number if SHARED
    grad_y: tl.tensor,  # [B, M] or [B, 0], or one number
    x: tl.tensor,  # [B, N, D]
    y: tl.tensor,  # [B, M, D]
    idx_x: tl.tensor,  # [B, N]
    idx_y: tl.tensor,  # [B, M], or [B, 0]
    own_x: tl.tensor,  # [B, N, D], what its own pair gives a point
    own_y: tl.tensor,  # [B, M, D], or [B, 0, D]
    of_x: tl.tensor,  # [B, N, D], result
    of_y: tl.tensor,  # [B, M, D], result
    num_clouds: tl.tensor,  # B
    num_x: tl.tensor,  # N
    num_y: tl.tensor,  # M
    D: tl.constexpr,
    NORM: tl.constexpr,
    SHARED: tl.constexpr,
    BACK: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_Y: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Clouds no larger than a tile: a program does all of those in its own."""
    num_tiles = tl.cdiv(tl.maximum(num_x, num_y), R * L)
    numbers = (tl.program_id(0) // num_tiles).to(tl.int64) * C + tl.arange(0, C)[None, :, None]
    cloud = tl.minimum(numbers, num_clouds - 1)  # [1, C, 1]
    query, here_x = queries_of(cloud, num_tiles, num_x, R, L)  # [R, 1, L]
    here_x &= numbers < num_clouds
    here_y = (query < num_y) & (numbers < num_clouds)
    pair_gradients(grad_x, x, y, idx_x, own_x, cloud * num_x + query, cloud, num_y, here_x, D, NORM, SHARED)
    if BACK:
        pair_gradients(grad_y, y, x, idx_y, own_y, cloud * num_y + query, cloud, num_x, here_y, D, NORM, SHARED)
    tl.debug_barrier()
    if NEEDS_X:
        gather(own_x, own_y, idx_y, of_x, query, cloud, here_x, num_x, num_y, True, BACK, D, R, C, L, STEP)
    if NEEDS_Y:
        gather(own_y, own_x, idx_x, of_y, query, cloud, here_y, num_y, num_x, BACK, True, D, R, C, L, STEP)
