"""The operators inside `torch.func` and forward mode, where `torch.library` fails them: it would drop tangents in
silence, and its backward formulas stop `torch.func.grad` (pytorch issues 168393 and 179652).

Which points are matched or chosen does not change with a small enough step. So there indices come from the operators,
given values alone, and what depends on the points follows from the indices in plain torch, which torch differentiates
in any mode and to any order; the values are the operators' to the bit. Each function below is the operator of its name
with that done. Under vmap the mapped axis joins the batch, and one call of an operator does it all.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recon.kernels import loss_ops, ops, weight_ops
from recon.kernels.on_torch import rows as on_torch_rows
from recon.kernels.operator import Operator


def transformed() -> bool:
    """Whether a tensor may carry a tangent, or belong to a transform of `torch.func`."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def require(values: Tensor, fits: Tensor, message: str) -> Tensor:
    """`values`; ValueError with `message` unless all of `fits` [like values] is true."""
    checked: Tensor = ops.require(values.detach() if transformed() else values, fits, message, 0)
    return torch.where(fits, values, checked) if transformed() else checked


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, M, U] at rows int64 [B, R] in [0, M) -> [B, R, U]."""
    taken: Tensor = on_torch_rows.take(x, rows) if transformed() else ops.take_rows(x, rows)
    return taken


def knn(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int, backend: str) -> ops.Pair:
    """dists and idx [B, N, K <= M]."""
    if not transformed():
        found: ops.Pair = ops.knn(p1, p2, lengths2, norm, K, backend)
        return found
    dists, idx = ops.knn(p1.detach(), p2.detach(), lengths2, norm, K, backend)
    return _matched(dists, p1, p2, idx, norm), idx


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool, backend: str
) -> ops.Matches:
    """dists, idx [B, N] from x to y and [B, M] back ([B, 0] if `single`)."""
    if not transformed():
        found: ops.Matches = ops.nearest(x, y, x_lengths, y_lengths, norm, single, backend)
        return found
    values = x.detach(), y.detach()
    dists_x, idx_x, dists_y, idx_y = ops.nearest(*values, x_lengths, y_lengths, norm, single, backend)
    dists_x = _matched(dists_x[..., None], x, y, idx_x[..., None], norm)[..., 0]
    if not single:
        dists_y = _matched(dists_y[..., None], y, x, idx_y[..., None], norm)[..., 0]
    return dists_x, idx_x, dists_y, idx_y


def chamfer_loss(x: Tensor, y: Tensor, root: bool, backend: str) -> Tensor:
    """ReCon's L1 if `root`, else its L2."""
    if not transformed():
        return loss_ops.loss(x, y, root, backend)
    dists_x, _, dists_y, _ = nearest(x, y, None, None, 2, False, backend)
    if root:
        return (_root(dists_x).mean() + _root(dists_y).mean()) / 2
    return dists_x.mean() + dists_y.mean()


def _root(squared: Tensor) -> Tensor:
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def groups(points: Tensor, num_group: int, group_size: int, backend: str) -> ops.Matches:
    """Neighbours minus centers [B, G, S, D], centers [B, G, D], and where both stand: [B, G], [B, G, S]."""
    if not transformed():
        found: ops.Matches = ops.groups(points, num_group, group_size, backend)
        return found
    _, _, chosen, idx = ops.groups(points.detach(), num_group, group_size, backend)
    centers = take_rows(points, chosen)
    near = take_rows(points, idx.flatten(1)).view(*idx.shape, points.shape[2])
    return near - centers[:, :, None], centers, chosen, idx


def inverse_weights(dists: Tensor, idx: Tensor) -> ops.Pair:
    """Weights [B, N, K] by distance, and the rows to take."""
    found: ops.Pair = (weight_ops.plain if transformed() else weight_ops.inverse_weights)(dists, idx)
    return found


def weighted_rows(features: Tensor, idx: Tensor, weights: Tensor, backend: str) -> Tensor:
    """sum over k of weights [B, N, K] * features [B, M, C] at idx int64 [B, N, K] in [0, M) -> [B, N, C]; 0 where the
    first is 0.
    """
    if not transformed():
        found: Tensor = ops.weighted_rows(features, idx, weights, backend)
        return found
    each = zip(idx.unbind(2), weights.unbind(2), strict=True)
    first, *more = (take_rows(features, near) * weight[..., None] for near, weight in each)
    return torch.where(weights[..., :1] != 0, sum(more, first), 0)


def _matched(dists: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int) -> Tensor:
    """The distances dists [B, N, K] again, from p1 [B, N, D], p2 [B, M, D] and the matches idx [B, N, K]."""
    near = take_rows(p2, idx.clamp(min=0).flatten(1)).view(*idx.shape, p2.shape[2])
    inside = (idx >= 0) & dists.isfinite()
    apart = torch.where(inside[..., None], p1[:, :, None] - near, 0)
    first, *more = (apart.abs() if norm == 1 else apart.square()).unbind(3)
    return torch.where(inside, sum(more, first), dists)


def _in_one_batch(op: Operator) -> None:
    """Register for an operator of batches: under vmap, all of them are one."""

    @op.registered.register_vmap
    def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def folded(argument: Any, axis: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            mapped = argument.expand(size, *argument.shape) if axis is None else argument.movedim(axis, 0)
            return mapped.flatten(0, 1)

        found = op(*map(folded, arguments, in_dims))
        if isinstance(found, Tensor):
            return _unfolded(found, size), 0
        return tuple(_unfolded(each, size) for each in found), (0,) * len(found)


def _unfolded(tensor: Tensor, size: int) -> Tensor:
    return tensor.view(size, tensor.shape[0] // size, *tensor.shape[1:])


for _op in (
    ops.require,
    ops.take_rows,
    ops.add_rows,
    ops.farthest_points,
    ops.knn,
    ops.matched_backward,
    ops.nearest,
    ops.nearest_backward,
    ops.groups,
    ops.weighted_rows,
    weight_ops.inverse_weights,
):
    _in_one_batch(_op)
