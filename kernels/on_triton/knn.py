"""K nearest neighbours in one Triton kernel: block minima first, then only the blocks that can hold neighbours.

The K smallest d_j = sum_c (q_c - p_jc)^2 in the order (d, j). Of any cut of the points into blocks, they lie in the K
blocks whose own smallest (d, j) come first: each block before the one of the last neighbour holds a neighbour. tl.topk
is the bitonic selection of Shanbhag, Pirk and Madden, "Efficient top-k query processing on GPUs", 2018.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.kernels.on_triton import on_device

# Keys that one program, a warp, orders at once: enough to keep it busy, few enough for its registers. Compiled for
# sm_90 at 64 x 1024, K = 32, by 256, 512 and 1024: 63, 80 and 127 registers, and 2432, 2196 and 2004 instructions a
# query; by 1024 a multiprocessor has room for 16 warps where 512 leave 25.
KEYS = 512
# Coordinates up to which a distance is one run of instructions.
UNROLLED = tl.constexpr(8)


class Tile(NamedTuple):
    """How one program cuts its work; every number is a power of two."""

    queries: int
    blocks: int
    run: int
    keep: int


def tile(num_queries: int, num_points: int, K: int) -> Tile:
    """The cut of p2 into `blocks` of `run` strided points, of which `keep` >= K blocks are looked into.

    Ordered are first `blocks`, then `keep` * `run` keys a query: about equal numbers are the fewest.
    """
    # Triton 3.6 compiles no tl.topk down to a single number.
    keep = max(2, triton.next_power_of_2(K))
    size = min(KEYS * (KEYS // keep), max(2, triton.next_power_of_2(num_points)))
    run = 1
    while (2 * run) ** 2 <= size // keep or size // run > KEYS:
        run *= 2
    queries = min(8, KEYS // max(size // run, keep * run), triton.next_power_of_2(num_queries))
    return Tile(queries, size // run, run, keep)


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K] of the K <= min(M, 128) nearest of p2 [B, M, D] to each of p1 [B, N, D].

    Contiguous float32 clouds on one device. Ascending by (distance, index); norm 2 squared Euclidean, norm 1
    Manhattan, added up in the order of the coordinates. NaN counts as +inf. Points at and beyond lengths2 [B]
    come last, with arbitrary distances and indices below M.
    """
    dists = p1.new_empty(*p1.shape[:2], K)
    idx = torch.empty(dists.shape, dtype=torch.int64, device=p1.device)
    launch(p1, p2, lengths2, norm, K, idx, dists=dists)
    return dists, idx


def launch(
    p1: Tensor,
    p2: Tensor,
    lengths2: Tensor | None,
    norm: int,
    K: int,
    idx: Tensor,
    dists: Tensor | None = None,
    groups: Tensor | None = None,
) -> None:
    """Fill idx [B, N, K], and where given dists [B, N, K] and groups [B, N, K, D]: neighbours minus query."""
    num_clouds, num_queries, width = p1.shape
    if idx.numel() == 0:
        return
    cut = tile(num_queries, p2.shape[1], K)
    grid = (num_clouds * triton.cdiv(num_queries, cut.queries),)
    with on_device(p1):
        nearest_kernel[grid](
            p1,
            p2,
            lengths2,
            dists,
            idx,
            groups,
            num_queries,
            p2.shape[1],
            K=K,
            D=width,
            NORM=norm,
            QUERIES=cut.queries,
            BLOCKS=cut.blocks,
            RUN=cut.run,
            KEEP=cut.keep,
            WHOLE=p2.shape[1] <= cut.blocks * cut.run,
            num_warps=1,
            enable_fp_fusion=False,
        )


@triton.jit(do_not_specialize=("num_queries", "num_points"))
def nearest_kernel(
    p1: tl.tensor,  # [B, N, D]
    p2: tl.tensor,  # [B, M, D]
    lengths2: tl.tensor,  # [B], or None
    dists: tl.tensor,  # [B, N, K], result, or None
    idx: tl.tensor,  # [B, N, K], result
    groups: tl.tensor,  # [B, N, K, D], result, or None
    num_queries: tl.tensor,  # N
    num_points: tl.tensor,  # M
    K: tl.constexpr,
    D: tl.constexpr,
    NORM: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
    RUN: tl.constexpr,
    KEEP: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    """QUERIES rows of one cloud: their K nearest of num_points, in chunks of BLOCKS * RUN unless WHOLE."""
    tiles = tl.cdiv(num_queries, QUERIES)
    cloud = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * QUERIES
    here = tl.arange(0, QUERIES) < num_queries - first  # [QUERIES]
    p1 += (cloud * num_queries + first) * D
    p2 += cloud * num_points * D
    length = num_points
    if lengths2 is not None:
        length = tl.load(lengths2 + cloud).to(tl.int32)
    if WHOLE:
        keys = chunk_keys(p1, p2, here, length, D, NORM, QUERIES, BLOCKS, RUN, KEEP)
    else:
        keys = tl.full([QUERIES, KEEP], -(1 << 63), tl.int64)  # after every point's
        start = 0
        while start < num_points:
            chunk = p2 + tl.cast(start, tl.int64) * D
            # Inverted, an index that counts from the chunk's start becomes one from the cloud's by subtraction.
            more = chunk_keys(p1, chunk, here, length - start, D, NORM, QUERIES, BLOCKS, RUN, KEEP) - start
            keys = tl.topk(tl.reshape(tl.join(keys, more), [QUERIES, 2 * KEEP]), KEEP)
            start += BLOCKS * RUN
    keys = ~keys

    column = tl.arange(0, KEEP)
    wanted = here[:, None] & (column < K)[None, :]  # [QUERIES, KEEP]
    row = tl.arange(0, QUERIES)[:, None] * K + column[None, :]  # [QUERIES, KEEP]
    out = (cloud * num_queries + first) * K
    near = keys & 0xFFFFFFFF  # [QUERIES, KEEP]
    tl.store(idx + out + row, near, mask=wanted)
    if dists is not None:
        tl.store(dists + out + row, (keys >> 32).to(tl.int32).to(tl.float32, bitcast=True), mask=wanted)
    if groups is not None:
        for d in tl.static_range(D):
            query = tl.load(p1 + tl.arange(0, QUERIES) * D + d, mask=here, other=0.0)  # [QUERIES]
            value = tl.load(p2 + near * D + d, mask=wanted, other=0.0)  # [QUERIES, KEEP]
            tl.store(groups + (out + row) * D + d, value - query[:, None], mask=wanted)


@triton.jit
def chunk_keys(
    p1: tl.tensor,  # [QUERIES, D]
    p2: tl.tensor,  # [BLOCKS * RUN, D]
    here: tl.tensor,  # [QUERIES]
    length: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
    RUN: tl.constexpr,
    KEEP: tl.constexpr,
) -> tl.tensor:
    """[QUERIES, KEEP] inverted keys, largest first, of the nearest of BLOCKS * RUN points.

    A key is the bits of a distance, which order as the distance does, above the point's index. tl.topk gives
    the largest, so keys are inverted. Block b holds the points b + r * BLOCKS.
    """
    block = tl.arange(0, BLOCKS)
    rows = (p2 + block * D)[None, :]  # [1, BLOCKS], the blocks' first members
    best = tl.full([QUERIES, BLOCKS], float("inf"), tl.float32)
    member = tl.zeros([QUERIES, BLOCKS], tl.int32)
    # A loop, not unrolled: its loads would fill all registers.
    for r in range(RUN):
        valid = (block < length - r * BLOCKS)[None, :]
        found = distance(p1, rows + r * BLOCKS * D, here, valid, D, NORM, QUERIES, 2)  # [QUERIES, BLOCKS]
        # False for NaN, and for an equal distance at a higher index.
        nearer = found < best
        best = tl.where(nearer, found, best)
        member = tl.where(nearer, r, member)
    keys = tl.topk(~pack(best, member * BLOCKS + block[None, :], block[None, :] < length), KEEP)
    if RUN > 1:
        chosen = (~keys).to(tl.int32) & (BLOCKS - 1)  # [QUERIES, KEEP]
        point = chosen[:, :, None] + tl.arange(0, RUN)[None, None, :] * BLOCKS  # [QUERIES, KEEP, RUN]
        valid = point < length
        found = distance(p1, p2 + point * D, here, valid, D, NORM, QUERIES, 3)
        found = tl.where(found == found, found, float("inf"))
        keys = tl.topk(~tl.reshape(pack(found, point, valid), [QUERIES, KEEP * RUN]), KEEP)
    return keys


@triton.jit
def distance(
    p1: tl.tensor,
    rows: tl.tensor,
    here: tl.tensor,
    valid: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    QUERIES: tl.constexpr,
    RANK: tl.constexpr,
) -> tl.tensor:
    """Distances from each query to the points at `rows` [1 or QUERIES, ...] of `RANK` axes, in coordinate order."""
    total = term(p1, rows, here, valid, 0, D, NORM, QUERIES, RANK)
    if D <= UNROLLED:
        for d in tl.static_range(1, D):
            total += term(p1, rows, here, valid, d, D, NORM, QUERIES, RANK)
    else:
        for d in range(1, D):
            total += term(p1, rows, here, valid, d, D, NORM, QUERIES, RANK)
    return total


@triton.jit
def term(
    p1: tl.tensor,
    rows: tl.tensor,
    here: tl.tensor,
    valid: tl.tensor,
    d: tl.tensor,
    D: tl.constexpr,
    NORM: tl.constexpr,
    QUERIES: tl.constexpr,
    RANK: tl.constexpr,
) -> tl.tensor:
    """What coordinate d adds to the distances."""
    query = tl.load(p1 + tl.arange(0, QUERIES) * D + d, mask=here, other=0.0)
    query = query[:, None] if RANK == 2 else query[:, None, None]
    apart = query - tl.load(rows + d, mask=valid, other=float("inf"))
    return tl.abs(apart) if NORM == 1 else apart * apart


@triton.jit
def pack(found: tl.tensor, index: tl.tensor, valid: tl.tensor) -> tl.tensor:
    """Keys that order by (distance, index), invalid ones after +inf."""
    bits = tl.where(valid, found.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | index
