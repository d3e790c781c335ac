"""The nearest point of the other cloud, both ways, and the gradient of its distance."""

import torch
from torch import Tensor

from recon.kernels.on_torch.knn import blocked, chunk_size, matched_backward, pair_distances, planes, search, workspace

# Up to this many pairs a cloud, clouds lie innermost.
TINY = 2**12


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dists, idx [B, N] from x [B, N, D] to y [B, M, D], and [B, M] back, or [B, 0] if `single`; N, M >= 1."""
    if x.shape[1] * y.shape[1] <= TINY:
        return _nearest_tiny(x, y, x_lengths, y_lengths, norm, single)
    if not single and x.shape[1] * y.shape[1] <= chunk_size(x.device):
        return _nearest_shared(x, y, x_lengths, y_lengths, norm)
    forth = search(x, y, y_lengths, norm, 1)
    back = search(y[:, :0] if single else y, x, x_lengths, norm, 1)
    return forth[0][..., 0], forth[1][..., 0], back[0][..., 0], back[1][..., 0]


def _nearest_tiny(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions from one set of distances; N x M is small, B may be thousands.

    The clouds lie innermost, [N, M, B], so that the minima of both directions are minima of whole vectors.
    """
    num_x, num_y, num_clouds = x.shape[1], y.shape[1], x.shape[0]
    first = planes(x, x_lengths, torch.inf).transpose(1, 2).contiguous()
    second = planes(y, y_lengths, -torch.inf).transpose(1, 2).contiguous()
    dists_x, dists_y = x.new_empty(num_x, num_clouds), x.new_empty(0 if single else num_y, num_clouds)
    idx_x = torch.empty(dists_x.shape, dtype=torch.int64, device=x.device)
    idx_y = torch.empty(dists_y.shape, dtype=torch.int64, device=x.device)
    step = max(1, chunk_size(x.device) // (num_x * num_y))
    held = workspace(3, step * num_x * num_y, num_clouds * num_x * num_y, x)
    for start in range(0, num_clouds, step):
        some = slice(start, start + step)
        found = pair_distances(first[:, :, None, some], second[:, None, :, some], norm, held[:2])
        scratch = held[2, : found.numel()].view(found.shape)
        dists_x[:, some], idx_x[:, some] = _first_minimum(found, 1, scratch)
        if not single:
            dists_y[:, some], idx_y[:, some] = _first_minimum(found, 0, scratch)
    return dists_x.T.contiguous(), idx_x.T.contiguous(), dists_y.T.contiguous(), idx_y.T.contiguous()


def _nearest_shared(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions from one set of distances; the nearest is sought among block minima, then in its block."""
    num_clouds, runs = x.shape[0], [max(1, round(points.shape[1] ** 0.5)) for points in (x, y)]
    first = blocked(planes(x, x_lengths, torch.inf), runs[0], torch.inf)
    second = blocked(planes(y, y_lengths, -torch.inf), runs[1], -torch.inf)
    num_x, num_y = first.shape[2], second.shape[2]
    dists = [x.new_empty(num_clouds, size) for size in (num_x, num_y)]
    idx = [torch.empty(part.shape, dtype=torch.int64, device=x.device) for part in dists]
    step = max(1, chunk_size(x.device) // (num_x * num_y))
    held = workspace(2, step * num_x * num_y, num_clouds * num_x * num_y, x)
    for start in range(0, num_clouds, step):
        some = slice(start, start + step)
        found = pair_distances(first[:, some, :, None], second[:, some, None], norm, held)
        # [clouds, run, blocks] of x and of y.
        found = found.view(-1, runs[0], num_x // runs[0], runs[1], num_y // runs[1])
        for part, axis in ((0, 3), (1, 1)):
            block = found.amin(axis, keepdim=True).argmin(axis + 1, keepdim=True)
            shape = [found.shape[i] if i == axis else block.shape[i] for i in range(5)]
            nearest, offset = found.gather(axis + 1, block.expand(shape)).min(axis, keepdim=True)
            dists[part][some] = nearest.flatten(1)
            idx[part][some] = (block * runs[1 - part] + offset).flatten(1)
    sizes = x.shape[1], y.shape[1]
    for part, run in enumerate(runs):
        dists[part], idx[part] = (
            values[part]
            .view(num_clouds, run, values[part].shape[1] // run)
            .transpose(1, 2)
            .flatten(1)[:, : sizes[part]]
            .contiguous()
            for values in (dists, idx)
        )
    return dists[0], idx[0], dists[1], idx[1]


def _first_minimum(found: Tensor, dim: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum of non-negative `found` [N, M, B] along dim 0 or 1, and its lowest index; scratch is of found's shape.

    The bits of non-negative floats order as integers do, and integer arithmetic on them is several times faster
    than a minimum that tracks its index: `above` is 0 at the minima and 1 elsewhere.
    """
    integer = torch.int64 if found.dtype == torch.float64 else torch.int32
    bits, above = found.view(integer), scratch.view(integer)
    lowest = bits.amin(dim, keepdim=True)
    torch.sub(bits, lowest, out=above).clamp_max_(1)
    size = found.shape[dim]
    number = torch.arange(size, dtype=bits.dtype, device=bits.device).view(-1, *[1] * (2 - dim))
    idx = torch.add(number, above, alpha=size, out=above).amin(dim)
    return lowest.view(found.dtype).squeeze(dim), idx


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
    """Gradients in x and y of sum(grad_x * dists_x) + sum(grad_y * dists_y); one that is not needed is empty."""
    of_x, of_y = matched_backward(grad_x[..., None], x, y, idx_x[..., None], norm, needs_x, needs_y)
    back = matched_backward(grad_y[..., None], y[:, : grad_y.shape[1]], x, idx_y[..., None], norm, needs_y, needs_x)
    if needs_x:
        of_x += back[1]
    if needs_y and grad_y.shape[1]:
        of_y += back[0]
    return of_x, of_y
