"""Farthest point sampling in one Triton kernel, one program a cloud.

far_j = min(far_j, |p_j - p_i|^2) for the point i chosen last, then the next i = argmax_j far_j (Eldar et al. 1997;
Qi et al., "PointNet++", 2017): K steps over the N points, each with one reduction over the program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.on_triton import on_device

# Up to this many points of up to three coordinates stay in a program's registers; other clouds are walked in blocks.
# Compiled for sm_90, 1024 points take 56 registers of each thread, 8192 take 112, and 16384 spill 168 bytes.
RESIDENT = 8192
# Points a step of the walk: 16 warps of four points a thread. Not tuned.
WALKED = 2048

# Running distances are held as the bits of the float, which order as it does, so that negative numbers are free for
# points that come after every distance: non-finite ones, then chosen ones, then padding.
FAR = tl.constexpr(0x7F800000)
NON_FINITE = tl.constexpr(-1)
CHOSEN = tl.constexpr(-2)
PADDING = tl.constexpr(-3)
LAST = tl.constexpr(0x7FFFFFFF)


def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int) -> Tensor:
    """idx int64 [B, K] of K <= N points of contiguous float32 points [B, N, D], from start int64 [B].

    Each is the farthest from those before it, ties to the lowest index; no index comes twice. Non-finite points
    come after all others. Entries at and beyond lengths [B] are arbitrary indices below N.
    """
    idx = torch.empty(points.shape[0], K, dtype=torch.int64, device=points.device)
    launch(points, lengths, start, idx)
    return idx


def launch(
    points: Tensor, lengths: Tensor | None, start: Tensor | None, idx: Tensor, centers: Tensor | None = None
) -> None:
    """Fill idx [B, K] and, where given, centers [B, K, D] with the points chosen; without start from index 0."""
    num_clouds, num_points, width = points.shape
    if num_clouds == 0:
        return
    clouds = (points, lengths, start, idx, centers, num_points, idx.shape[1])
    with on_device(points):
        if width <= 3 and num_points <= RESIDENT:
            size = triton.next_power_of_2(num_points)
            warps = min(16, max(1, size // 256))
            resident_kernel[(num_clouds,)](*clouds, D=width, SIZE=size, num_warps=warps, enable_fp_fusion=False)
        else:
            size = min(WALKED, triton.next_power_of_2(num_points))
            far = torch.empty(num_clouds, num_points, dtype=torch.int32, device=points.device)
            warps = max(1, size // 128)
            walking_kernel[(num_clouds,)](*clouds, far, D=width, SIZE=size, num_warps=warps, enable_fp_fusion=False)


@triton.jit(do_not_specialize=("num_points", "K"))
def resident_kernel(
    points: tl.tensor,  # [B, N, D]
    lengths: tl.tensor,  # [B], or None
    start: tl.tensor,  # [B], or None
    idx: tl.tensor,  # [B, K], result
    centers: tl.tensor,  # [B, K, D], result, or None
    num_points: tl.tensor,  # N
    K: tl.tensor,
    D: tl.constexpr,
    SIZE: tl.constexpr,  # the power of two from N on
) -> None:
    """The whole cloud [num_points <= SIZE, D <= 3] and its running distances in registers."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * num_points * D
    idx += cloud * K
    length, chosen = bounds(lengths, start, cloud, num_points)
    place = tl.arange(0, SIZE)  # [SIZE], as x, y, z, finite and far
    x = tl.load(points + place * D, mask=place < length, other=0.0)
    y = tl.load(points + place * D + 1, mask=(place < length) & (D > 1), other=0.0)
    z = tl.load(points + place * D + 2, mask=(place < length) & (D > 2), other=0.0)
    finite = is_finite(x) & is_finite(y) & is_finite(z)
    # Any finite stand-in: no distance lifts a point above NON_FINITE, but NaN has bits below PADDING.
    x, y, z = tl.where(finite, x, 0.0), tl.where(finite, y, 0.0), tl.where(finite, z, 0.0)
    far = tl.where(place < length, tl.where(finite, FAR, NON_FINITE), PADDING)
    k = 0
    while k < K:
        tl.store(idx + k, chosen.to(tl.int64))
        row = points + chosen * D
        cx = tl.load(row)
        cy = tl.load(row + 1, mask=D > 1, other=0.0)
        cz = tl.load(row + 2, mask=D > 2, other=0.0)
        if centers is not None:
            out = centers + (cloud * K + k) * D
            tl.store(out, cx)
            tl.store(out + 1, cy, mask=D > 1)
            tl.store(out + 2, cz, mask=D > 2)
        dx, dy, dz = x - at_infinity(cx), y - at_infinity(cy), z - at_infinity(cz)
        distance = dx * dx + dy * dy + dz * dz  # [SIZE]
        far = tl.minimum(far, distance.to(tl.int32, bitcast=True))
        far = tl.where(place == chosen, CHOSEN, far)
        # Two reductions of one word, an instruction each in a warp, cost less than one of a distance and its index.
        chosen = tl.min(tl.where(far == tl.max(far, 0), place, LAST), 0)
        k += 1


@triton.jit(do_not_specialize=("num_points", "K"))
def walking_kernel(
    points: tl.tensor,  # [B, N, D]
    lengths: tl.tensor,  # [B], or None
    start: tl.tensor,  # [B], or None
    idx: tl.tensor,  # [B, K], result
    centers: tl.tensor,  # [B, K, D], result, or None
    num_points: tl.tensor,  # N
    K: tl.tensor,
    far: tl.tensor,  # [B, N], to work in
    D: tl.constexpr,
    SIZE: tl.constexpr,  # points a step
) -> None:
    """The cloud [num_points, D] in blocks of SIZE, with its running distances in far int32 [B, num_points]."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * num_points * D
    idx += cloud * K
    far += cloud * num_points
    length, chosen = bounds(lengths, start, cloud, num_points)
    k = 0
    while k < K:
        tl.store(idx + k, chosen.to(tl.int64))
        row = points + chosen.to(tl.int64) * D
        if centers is not None:
            for d in tl.static_range(D):
                tl.store(centers + (cloud * K + k) * D + d, tl.load(row + d))
        best = tl.full([SIZE], -(1 << 63), tl.int64)  # keys: far above LAST - place
        first = 0
        while first < num_points:
            place = first + tl.arange(0, SIZE)  # [SIZE]
            finite = place < length
            total = tl.zeros([SIZE], tl.float32)
            for d in tl.static_range(D):
                value = tl.load(points + place.to(tl.int64) * D + d, mask=place < length, other=0.0)
                apart = value - at_infinity(tl.load(row + d))
                total += apart * apart
                finite &= is_finite(value)
            before = tl.load(far + place, mask=(place < length) & (k > 0), other=FAR)
            now = tl.minimum(before, tl.where(finite, total.to(tl.int32, bitcast=True), NON_FINITE))
            now = tl.where(place < length, tl.where(place == chosen, CHOSEN, now), PADDING)
            tl.store(far + place, now, mask=place < length)
            best = tl.maximum(best, (now.to(tl.int64) << 32) | (LAST - place))
            first += SIZE
        chosen = LAST - tl.max(best, 0).to(tl.int32)
        # Whichever thread wrote a running distance, another may read it in the next step.
        tl.debug_barrier()
        k += 1


@triton.jit
def bounds(
    lengths: tl.tensor, start: tl.tensor, cloud: tl.tensor, num_points: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Points in use and the first to choose."""
    length = num_points
    if lengths is not None:
        length = tl.load(lengths + cloud).to(tl.int32)
    chosen = cloud.to(tl.int32) * 0
    if start is not None:
        chosen = tl.load(start + cloud).to(tl.int32)
    return length, chosen


@triton.jit
def is_finite(value: tl.tensor) -> tl.tensor:
    """False for NaN and for either infinity."""
    return tl.abs(value) < float("inf")


@triton.jit
def at_infinity(value: tl.tensor) -> tl.tensor:
    """+inf for NaN as well, so that a non-finite center is at +inf, never NaN, of finite points."""
    return tl.where(is_finite(value), value, float("inf"))
