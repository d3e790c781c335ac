"""K nearest neighbours by direct differences, within a set amount of memory."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from recon.kernels.norms import ROOT
from recon.kernels.on_torch.rows import add_flat, flat_rows

# Distances held at once. On a CPU, what they need together should stay in the last cache; on a GPU few launches count.
# The most that either can cost, keys included, is 64 MB (2**22 x (4 + 4 + 8) bytes).
CPU_CHUNK = 2**20
GPU_CHUNK = 2**22
LOW_WORD = 0xFFFFFFFF
_kept = threading.local()


def padded(lengths: Tensor, size: int) -> Tensor:
    """bool [B, size]: True at and beyond lengths [B]."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]


def planes(points: Tensor, lengths: Tensor | None, outside: float) -> Tensor:
    """points [B, N, D] as [D, B, N], with `outside` for non-finite coordinates and for padding.

    With +inf in one cloud and -inf in the other no difference is NaN: whatever is outside is at +inf of
    everything, so it sorts after every finite distance however large, and padding, which has the highest
    indices, comes last.
    """
    coordinates = points.permute(2, 0, 1)
    inside = coordinates.isfinite()
    if lengths is not None:
        inside = inside & ~padded(lengths, points.shape[1])
    return torch.where(inside, coordinates, outside)


def blocked(coordinates: Tensor, run: int, outside: float) -> Tensor:
    """[..., N] -> contiguous [..., run * blocks], `outside` beyond N, point b * run + r at r * blocks + b.

    The points of a block lie apart, so that a minimum over a block is one of whole vectors.
    """
    filled = torch.nn.functional.pad(coordinates, (0, -coordinates.shape[-1] % run), value=outside)
    return filled.view(*filled.shape[:-1], filled.shape[-1] // run, run).transpose(-1, -2).flatten(-2).contiguous()


def workspace(count: int, limit: int, size: int, like: Tensor) -> Tensor:
    """[count, min(limit, size)] to write on, of the dtype and on the device of `like`.

    On a CPU each thread keeps its own from call to call: the system hands out fresh memory page by page, which takes
    longer than the arithmetic in it.
    """
    size = min(limit, size)
    if like.device.type != "cpu" or count * size > 4 * CPU_CHUNK:
        return like.new_empty(count, size)
    held: dict[str, Tensor] = _kept.__dict__
    name = str(like.dtype)
    if name not in held or held[name].numel() < count * size:
        with torch.inference_mode(False):  # else it could be written on in inference mode only
            held[name] = torch.empty(count * size, dtype=like.dtype, device=like.device)
    return held[name][: count * size].view(count, size)


def pair_distances(first: Tensor, second: Tensor, norm: int, held: Tensor | None = None) -> Tensor:
    """Distances between planes [D, ...] that broadcast, summed in the order of the coordinates.

    `held` [2, W], W no less than the distances, holds them and their parts.
    """
    shape: torch.Size = torch.broadcast_shapes(first.shape[1:], second.shape[1:])  # type: ignore[no-untyped-call]
    if held is None:
        held = first.new_empty(2, shape.numel())
    total: Tensor = held[0, : shape.numel()].view(shape)
    scratch = held[1, : shape.numel()].view(shape)
    for i, (one, two) in enumerate(zip(first, second, strict=True)):
        out = scratch if i else total
        torch.sub(one, two, out=out)
        torch.abs(out, out=out) if norm == 1 else out.mul_(out)
        if i:
            total.add_(scratch)
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
    """dists, idx [B, N, K] of the K <= M nearest, padding of p2 last; float32 or float64 clouds.

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
    first = planes(p1, None, torch.inf).contiguous()
    second = blocked(planes(p2, lengths2, -torch.inf), run, -torch.inf)
    select = _nearest if K == 1 else _nearest_float64 if p1.dtype == torch.float64 else _nearest_packed
    # A row may be longer than a chunk.
    held = workspace(2, max(chunk_size(p1.device), num_blocks * run), num_clouds * num_queries * num_blocks * run, p1)
    for clouds, rows in chunks(num_clouds, num_queries, num_blocks * run, p1.device):
        found = pair_distances(first[:, clouds, rows, None], second[:, clouds, None], norm, held)
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


def matched_backward(
    grad: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int, needs1: bool, needs2: bool
) -> tuple[Tensor, Tensor]:
    """Gradients in p1 [B, N, D] and p2 [B, M, D] of sum(grad * distance), for matches idx [B, N, K].

    Where idx is -1, or the distance not finite, nothing is added. A gradient that is not needed comes back empty.
    """
    grad1 = torch.empty_like(p1) if needs1 else p1.new_empty(0)
    grad2 = torch.empty_like(p2) if needs2 else p2.new_empty(0)
    step = max(1, GPU_CHUNK // max(1, idx[:1].numel() * p1.shape[2]))
    for start in range(0, p1.shape[0], step):
        some = slice(start, start + step)
        one, two, near = p1[some], p2[some], idx[some]
        inside = near >= 0
        rows = flat_rows(near.clamp(min=0).flatten(1), two.shape[1])
        # One coordinate at a time: flat arrays gather and scatter several times faster than rows of three.
        apart = [
            a[:, :, None] - b.reshape(-1).index_select(0, rows).view(near.shape)
            for a, b in zip(one.unbind(2), two.unbind(2), strict=True)
        ]
        distance = torch.zeros_like(apart[0])
        for a in apart:
            distance += a.abs() if norm == 1 else a * a
        inside &= distance.isfinite()
        if norm == ROOT:
            inside &= distance > 0
            root = distance.sqrt()
        for i, a in enumerate(apart):
            slope = torch.where(inside, a.sign() if norm == 1 else a / root if norm == ROOT else 2 * a, 0) * grad[some]
            if needs1:
                grad1[some, :, i] = slope.sum(2)
            if needs2:
                grad2[some, :, i] = add_flat(-slope.reshape(-1), rows, two[..., 0].numel()).view(two.shape[:2])
    return grad1, grad2
