"""K nearest neighbours by direct differences, in plain torch, within a set amount of memory."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.checks import check_count, check_integers, check_lengths, check_like, check_points, working_dtype

# Distances held at once. On a CPU a chunk that stays in cache beats a larger one; on a GPU few launches do.
# The most that either can cost, keys included, is 64 MB (2**22 x (4 + 4 + 8) bytes).
CPU_CHUNK = 2**17
GPU_CHUNK = 2**22
LOW_WORD = 0xFFFFFFFF


class KNN(NamedTuple):
    """dists [B, N, K] (squared for norm 2), idx int64 [B, N, K], knn [B, N, K, D] or None."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """The K points of `p2` nearest to each point of `p1`, nearest first, ties to the lowest index.

    p1 [B, N, D], p2 [B, M, D]: the same floating dtype and device. lengths1, lengths2 [B]: points in use, the
    rest is padding. norm 2 gives squared Euclidean distances, norm 1 Manhattan ones, as in
    pytorch3d.ops.knn_points, whose signature this is; `return_sorted=False` permits any order, and here the
    order is sorted all the same.

    Returns dists [B, N, K] (float32, or float64 for float64 clouds; differentiable in both clouds, twice
    for norm 2), idx int64 [B, N, K] and, with return_nn, knn [B, N, K, D]. Beyond min(K, lengths2)
    neighbours and beyond lengths1 rows, idx is -1 and dists and knn are 0. A point with a NaN or infinite
    coordinate lies at distance +inf of every point: last, in index order. No gradient flows through an
    infinite distance. ValueError for arguments that do not fit each other.
    """
    check_points("p1", p1)
    check_points("p2", p2)
    check_like("p2", p2, (p1.shape[0], None, p1.shape[2]), p1, "p1")
    check_lengths("lengths1", lengths1, p1)
    check_lengths("lengths2", lengths2, p2)
    check_norm(norm)
    check_count("K", K)
    dtype = working_dtype(p1)
    source, target = p1.to(dtype), p2.to(dtype)
    with torch.no_grad():
        dists, idx = search(source, target, lengths2, norm, min(K, p2.shape[1]))
    dists = matched_distance(source, target, dists, idx, norm)
    num_missing = K - idx.shape[2]
    if num_missing:
        dists = torch.nn.functional.pad(dists, (0, num_missing))
        idx = torch.nn.functional.pad(idx, (0, num_missing), value=-1)
    if lengths1 is not None or lengths2 is not None:
        padding = torch.zeros_like(idx, dtype=torch.bool)
        if lengths1 is not None:
            padding |= padded(lengths1, p1.shape[1])[:, :, None]
        if lengths2 is not None:
            padding |= padded(lengths2, K)[:, None, :]
        dists, idx = dists.masked_fill(padding, 0), idx.masked_fill(padding, -1)
    return KNN(dists, idx, knn_gather(p2, idx) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Rows of x [B, M, U] at idx int64 [B, N, K] -> [B, N, K, U]; 0 where idx is -1 or k >= lengths [B].

    Differentiable in x to any order. ValueError for arguments that do not fit each other, or idx beyond M.
    """
    check_points("x", x)
    num_rows = x.shape[1]
    if not isinstance(idx, Tensor) or idx.dim() != 3:
        raise ValueError("idx must be an int64 tensor [B, N, K]")
    check_integers("idx", idx, -1, num_rows - 1, (x.shape[0], *idx.shape[1:]), x)
    check_lengths("lengths", lengths, x)
    missing = idx < 0
    if lengths is not None:
        missing = missing | padded(lengths, idx.shape[2])[:, None, :]
    if num_rows == 0:
        return x.new_zeros(*idx.shape, x.shape[2])
    rows = take_rows(x, idx.clamp(min=0).flatten(1).long())
    return rows.view(*idx.shape, x.shape[2]).masked_fill(missing[..., None], 0)


def check_norm(norm: int) -> None:
    """Raise ValueError unless norm is 1 (Manhattan) or 2 (squared Euclidean)."""
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 (Manhattan) or 2 (squared Euclidean), got {norm!r}")


def padded(lengths: Tensor, size: int) -> Tensor:
    """bool [B, size]: True at and beyond lengths [B]."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]


def planes(points: Tensor, lengths: Tensor | None, outside: float) -> Tensor:
    """points [B, N, D] as contiguous [D, B, N], with `outside` for non-finite coordinates and for padding.

    With +inf in one cloud and -inf in the other no difference is NaN: whatever is outside is at +inf of
    everything, so it sorts after every finite distance however large, and padding, which has the highest
    indices, comes last.
    """
    coordinates = points.permute(2, 0, 1)
    inside = coordinates.isfinite()
    if lengths is not None:
        inside = inside & ~padded(lengths, points.shape[1])
    return torch.where(inside, coordinates, outside).contiguous()


def pair_distances(first: Tensor, second: Tensor, norm: int) -> Tensor:
    """Distances between planes [D, ...] that broadcast, summed in the order of the coordinates."""
    total = first[0] - second[0]
    total = total.abs_() if norm == 1 else total.mul_(total)
    if first.shape[0] > 1:
        scratch = torch.empty_like(total)
    for one, two in zip(first[1:], second[1:], strict=True):
        torch.sub(one, two, out=scratch)
        total.add_(scratch.abs_() if norm == 1 else scratch.mul_(scratch))
    return total


def chunk_size(device: torch.device) -> int:
    """Distances to hold at once."""
    return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK


def chunks(num_clouds: int, num_rows: int, num_columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """(clouds, rows) slices that cover [B, n, m] with a bounded number of entries at a time."""
    limit = chunk_size(device)
    clouds = max(1, limit // max(1, num_rows * num_columns))
    rows = max(1, min(num_rows, limit // max(1, num_columns)))
    for b in range(0, num_clouds, clouds):
        for n in range(0, num_rows, rows):
            yield slice(b, b + clouds), slice(n, n + rows)


def search(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int) -> tuple[Tensor, Tensor]:
    """dists, idx [B, N, K] of the K <= M nearest, padding of p2 last; no gradient, float32 or float64 clouds.

    p2 is cut into blocks of `run` consecutive points. Its K nearest lie in the K blocks whose nearest
    points come first in the order (distance, index), so only the block minima and those blocks' points have
    to be ordered.
    """
    num_clouds, num_queries, num_points = p1.shape[0], p1.shape[1], p2.shape[1]
    dists = p1.new_empty(num_clouds, num_queries, K)
    idx = torch.empty(dists.shape, dtype=torch.int64, device=p1.device)
    if dists.numel() == 0:
        return dists, idx
    run = 1 if K > 1 and p1.dtype == torch.float64 else max(1, round((num_points / K) ** 0.5))
    num_blocks = -(-num_points // run)
    first = planes(p1, None, torch.inf)
    second = planes(p2, lengths2, -torch.inf)
    second = torch.nn.functional.pad(second, (0, num_blocks * run - num_points), value=-torch.inf)
    # A block's points lie num_blocks apart, so that the minimum over a block is a minimum of whole vectors.
    second = second.view(*second.shape[:2], num_blocks, run).transpose(2, 3).flatten(2)
    select = _nearest if K == 1 else _nearest_float64 if p1.dtype == torch.float64 else _nearest_packed
    for clouds, rows in chunks(num_clouds, num_queries, num_blocks * run, p1.device):
        found = pair_distances(first[:, clouds, rows, None], second[:, clouds, None], norm)
        dists[clouds, rows], idx[clouds, rows] = select(found.view(*found.shape[:2], run, num_blocks), K)
    return dists, idx


def _nearest(found: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """K = 1 of `found` [b, n, run, blocks]: the first block that holds the minimum, then its first point."""
    run = found.shape[2]
    block = found.amin(2).argmin(2)[:, :, None]
    dists, offset = found.gather(3, block[:, :, None].expand(-1, -1, run, 1)).min(2)
    return dists, block * run + offset


def _nearest_float64(found: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """K smallest of `found` [b, n, 1, blocks]: a float64 leaves no room for an index, so a stable sort."""
    dists, idx = found.squeeze(2).sort(dim=2, stable=True)
    return dists[..., :K], idx[..., :K]


def _nearest_packed(found: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """K smallest of float32 `found` [b, n, run, blocks], ordered as 64-bit keys (distance, index)."""
    run, num_blocks = found.shape[2:]
    numbers = torch.arange(num_blocks, device=found.device)
    if run == 1:
        keys = _smallest(found.squeeze(2), numbers, K)
    else:
        blocks = _smallest(found.amin(2), numbers, K)[:, :, None] & LOW_WORD
        near = found.gather(3, blocks.expand(-1, -1, run, -1))
        index = blocks * run + torch.arange(run, device=found.device)[:, None]
        keys = _smallest(near.flatten(2), index.flatten(2), K)
    return (keys >> 32).int().view(torch.float32), keys & LOW_WORD


def _smallest(dists: Tensor, index: Tensor, K: int) -> Tensor:
    """The K smallest keys (bits of a non-negative float32 << 32 | index) along the last axis, ascending."""
    keys = dists.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)
    if keys.device.type == "cpu":
        # NumPy sorts 64-bit integers with vector instructions: about ten times torch.topk on rows this short.
        keys.numpy().sort(axis=-1)
        return keys[..., :K]
    return keys.topk(K, largest=False, sorted=True).values


def matched_distance(p1: Tensor, p2: Tensor, dists: Tensor, idx: Tensor, norm: int) -> Tensor:
    """`dists` [B, N, K] made differentiable in p1 and p2, given the idx they were found at."""
    if torch.is_grad_enabled() and (p1.requires_grad or p2.requires_grad):
        result: Tensor = _MatchedDistance.apply(p1, p2, dists, idx, norm)  # type: ignore[no-untyped-call]
        return result
    return dists


class _MatchedDistance(torch.autograd.Function):
    """Distances that the search has already found; the backward is written in differentiable operations."""

    @staticmethod
    def forward(ctx: Any, p1: Tensor, p2: Tensor, dists: Tensor, idx: Tensor, norm: int) -> Tensor:
        ctx.save_for_backward(p1, p2, dists, idx)
        ctx.norm = norm
        return dists.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        p1, p2, dists, idx = ctx.saved_tensors
        needs1, needs2 = ctx.needs_input_grad[:2]
        rows = flat_rows(idx.flatten(1), p2.shape[1])
        # One coordinate at a time: flat arrays gather and scatter several times faster than rows of three.
        grads1, grads2 = [], []
        for one, two in zip(p1.unbind(2), p2.unbind(2), strict=True):
            slope = one[:, :, None] - _take(two.reshape(-1), rows).view(idx.shape)
            slope = slope.sign() if ctx.norm == 1 else 2 * slope
            slope = slope.masked_fill(dists.isinf(), 0) * grad
            if needs1:
                grads1.append(slope.sum(2))
            if needs2:
                grads2.append(add_rows(-slope.reshape(-1), rows, two.numel()).view(two.shape))
        grad1 = torch.stack(grads1, 2) if needs1 else None
        grad2 = torch.stack(grads2, 2) if needs2 else None
        return grad1, grad2, None, None, None


def flat_rows(rows: Tensor, num_rows: int) -> Tensor:
    """rows [B, R] within each cloud -> [B * R] rows of the clouds laid end to end."""
    return (rows + torch.arange(rows.shape[0], device=rows.device)[:, None] * num_rows).reshape(-1)


def add_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[num_rows, ...] sums of values [R, ...] by row, the same bits every time."""
    total = values.new_zeros(num_rows, *values.shape[1:])
    if values.device.type == "cpu":
        return total.index_add(0, rows, values)
    # Sorted on a GPU, where index_add would use atomics.
    return total.index_put((rows,), values, accumulate=True)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, M, U] at rows [B, R] -> [B, R, U], with a deterministic backward that can be differentiated."""
    num_clouds, num_rows, width = x.shape
    taken = _take(x.reshape(num_clouds * num_rows, width), flat_rows(rows, num_rows))
    return taken.view(num_clouds, rows.shape[1], width)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    taken: Tensor = _TakeRows.apply(x, rows)  # type: ignore[no-untyped-call]
    return taken


class _TakeRows(torch.autograd.Function):
    """index_select whose backward is add_rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return add_rows(grad, rows, ctx.num_rows), None
