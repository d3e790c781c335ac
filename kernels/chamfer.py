"""Chamfer distance between clouds, and the two losses that ReCon calls L1 and L2: with d(x, Y) = min_j |x - y_j|^2,

    L2 = mean_i d(x_i, Y) + mean_j d(y_j, X)        L1 = (mean_i sqrt d(x_i, Y) + mean_j sqrt d(y_j, X)) / 2

(Fan, Su and Guibas, "A point set generation network for 3D object reconstruction from a single image", 2017).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from recon.kernels import transforms
from recon.kernels.backends import choose
from recon.kernels.checks import (
    check_beside,
    check_lengths,
    check_like,
    check_points,
    in_dtype,
    promoted,
    working_dtype,
)
from recon.kernels.knn import check_norm, knn_gather


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_normals: Tensor | None = None,
    y_normals: Tensor | None = None,
    weights: Tensor | None = None,
    batch_reduction: str | None = "mean",
    point_reduction: str | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
    *,
    backend: str | None = None,
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | tuple[Tensor, Tensor] | None]:
    """Distance of each point to the nearest of the other cloud, reduced as pytorch3d.loss.chamfer_distance does.

    x [B, N, D], y [B, M, D], lengths [B], normals [B, N, U] and [B, M, U] (both or neither, of any width and dtype),
    weights [B] >= 0 of any dtype; what has weight 0 adds 0, were it infinite. norm 2: squared Euclidean; norm 1:
    Manhattan (not the unsquared Euclid of `ChamferL1`). point_reduction "mean" or "sum" over the points in use, "max"
    (no normals), or None (batch_reduction None too), then batch_reduction "mean" (over the sum of weights), "sum" or
    None.

    Returns (distance, normals' distance or None): scalars, or [B] without batch reduction, or without point
    reduction a pair [B, N], [B, M] (the first alone if single_directional), 0 in the padding. float32
    unless float64. An empty cloud contributes 0 either way; a non-finite point is at +inf of all others.
    `backend` as in kernels.backends.choose. ValueError for arguments that do not fit each other.
    """
    x, y = check_pair(x, y)
    x_lengths = check_lengths("x_lengths", x_lengths, x)
    y_lengths = check_lengths("y_lengths", y_lengths, y)
    norm = check_norm(norm)
    _check_reductions(batch_reduction, point_reduction)
    has_normals = x_normals is not None or y_normals is not None
    if has_normals and (x_normals is None or y_normals is None or point_reduction == "max"):
        raise ValueError('x_normals and y_normals must be given together, and not with point_reduction="max"')
    if x_normals is not None and y_normals is not None:
        check_beside("x_normals", x_normals, (*x.shape[:2], None), x, "x")
        check_beside("y_normals", y_normals, (*y.shape[:2], x_normals.shape[2]), y, "y")
    if weights is not None:
        check_beside("weights", weights, x.shape[:1], x, "x")
        weights = transforms.require(weights, weights >= 0, "weights must not be negative or NaN")

    dists_x, idx_x, dists_y, idx_y = nearest(x, y, x_lengths, y_lengths, norm, single_directional, backend)
    distance = [_reduce_points(dists_x, x_lengths, weights, point_reduction)]
    if not single_directional:
        distance.append(_reduce_points(dists_y, y_lengths, weights, point_reduction))
    normal = None
    if x_normals is not None and y_normals is not None:
        normal = [_normal_distance(x_normals, y_normals, idx_x, x_lengths, weights, point_reduction, abs_cosine)]
        if not single_directional:
            normal.append(
                _normal_distance(y_normals, x_normals, idx_y, y_lengths, weights, point_reduction, abs_cosine)
            )
    return (
        _combine(distance, weights, batch_reduction, point_reduction),
        None if normal is None else _combine(normal, weights, batch_reduction, point_reduction),
    )


class ChamferL2(nn.Module):
    """Mean squared distance to the nearest point, x to y plus y to x.

    forward(x [B, N, 3], y [B, M, 3]) -> scalar.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [B, N, 3], y [B, M, 3] -> scalar. ValueError for shapes that do not fit or hold no point."""
        return _loss(x, y, root=False)


class ChamferL1(nn.Module):
    """Mean Euclidean distance to the nearest point, x to y and y to x, halved.

    forward(x [B, N, 3], y [B, M, 3]) -> scalar. Where a distance is 0 its gradient is 0, not the NaN of a square root.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [B, N, 3], y [B, M, 3] -> scalar. ValueError for shapes that do not fit or hold no point."""
        return _loss(x, y, root=True)


def _loss(x: Tensor, y: Tensor, root: bool) -> Tensor:
    x, y = check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if 0 in points.shape:
            # The mean of nothing would be NaN.
            raise ValueError(f"{name} must hold at least one cloud of at least one point, got {list(points.shape)}")
    dtype = working_dtype(x)
    backend = choose(None, x, "chamfer_distance")
    return transforms.chamfer_loss(in_dtype(x, dtype), in_dtype(y, dtype), root, backend)


def check_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, N, D] and y [B, M, D]; ValueError unless they are clouds of one dtype (but under autocast) and device."""
    check_points("x", x)
    check_points("y", y)
    if x.dtype != y.dtype:
        x, y = promoted(x, y)
    shape, other = x.shape, y.shape
    if shape[0] != other[0] or shape[2] != other[2] or x.dtype != y.dtype or x.device != y.device:
        check_like("y", y, (shape[0], None, shape[2]), x, "x")
    return x, y


def nearest(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    norm: int = 2,
    single: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dists, idx [B, N] from x to y and dists, idx [B, M] from y to x ([B, 0] if `single`), differentiable.

    dists 0 and idx -1 in padding and where the other cloud is empty.
    """
    dtype = working_dtype(x)
    backend = choose(backend, x, "chamfer_distance")
    if x.shape[1] and y.shape[1]:
        return transforms.nearest(x.to(dtype), y.to(dtype), x_lengths, y_lengths, norm, single, backend)
    # Zeros, and yet of both clouds, which may ask for gradients.
    both = (x[..., :0].sum((1, 2)) + y[..., :0].sum((1, 2))).to(dtype)
    dists_x, dists_y = (both[:, None].repeat(1, size) for size in (x.shape[1], 0 if single else y.shape[1]))
    return (
        dists_x,
        torch.full_like(dists_x, -1, dtype=torch.int64),
        dists_y,
        torch.full_like(dists_y, -1, dtype=torch.int64),
    )


def _normal_distance(
    source: Tensor,
    target: Tensor,
    idx: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    point_reduction: str | None,
    abs_cosine: bool,
) -> Tensor:
    """1 - (absolute) cosine between each normal and that of the nearest point, reduced over points."""
    dtype = torch.promote_types(working_dtype(source), working_dtype(target))
    near = knn_gather(target.to(dtype), idx[..., None])[:, :, 0]
    left_out = idx < 0  # [B, N]
    if weights is not None:
        left_out = left_out | ((weights[:, None] == 0) & ~(source.isfinite() & near.isfinite()).all(2))
    # Before as after: the gradient of what is left out would be 0 times NaN.
    source, near = (each.masked_fill(left_out[..., None], 0) for each in (source.to(dtype), near))
    cosine = cosine_similarity(source, near, dim=2, eps=1e-6)
    apart = (1 - (cosine.abs() if abs_cosine else cosine)).masked_fill(left_out, 0)
    return _reduce_points(apart, lengths, weights, point_reduction)


def _check_reductions(batch_reduction: str | None, point_reduction: str | None) -> None:
    if batch_reduction not in ("mean", "sum", None):
        raise ValueError(f'batch_reduction must be "mean", "sum" or None, got {batch_reduction!r}')
    if point_reduction not in ("mean", "sum", "max", None):
        raise ValueError(f'point_reduction must be "mean", "sum", "max" or None, got {point_reduction!r}')
    if point_reduction is None and batch_reduction is not None:
        raise ValueError("batch_reduction must be None where point_reduction is None")


def _reduce_points(
    values: Tensor, lengths: Tensor | None, weights: Tensor | None, point_reduction: str | None
) -> Tensor:
    """values [B, N], 0 in the padding -> [B], or [B, N] for None."""
    if weights is not None:
        weights = weights.to(values.dtype)[:, None]
        # Infinity times 0 would be NaN.
        values = torch.where((weights == 0) & ~values.isfinite(), 0, values) * weights
    if point_reduction == "max":
        return values.amax(1) if values.shape[1] else values.sum(1)
    if point_reduction == "sum":
        return values.sum(1)
    if point_reduction == "mean":
        size = max(1, values.shape[1]) if lengths is None else lengths.clamp(min=1)
        return values.sum(1) / size
    return values


def _combine(
    directions: list[Tensor], weights: Tensor | None, batch_reduction: str | None, point_reduction: str | None
) -> Tensor | tuple[Tensor, Tensor]:
    """Join the directions, then reduce over the batch."""
    if point_reduction is None:
        return directions[0] if len(directions) == 1 else (directions[0], directions[1])
    total = directions[0]
    for other in directions[1:]:
        total = torch.maximum(total, other) if point_reduction == "max" else total + other
    if batch_reduction is None:
        return total
    if batch_reduction == "sum":
        return total.sum()
    if weights is None:
        return total.sum() / max(1, total.shape[0])
    # All-zero weights give 0, as in pytorch3d, not 0 / 0.
    size = weights.to(total.dtype).sum()
    return total.sum() / torch.where(size > 0, size, 1)
