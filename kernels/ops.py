"""The ops as `torch.library` operators, which torch.compile, autograd and CUDA graphs take whole.

Each takes checked float32 (or, in plain torch, float64) tensors and the name of the backend that runs it. Backwards
are operators too, or made of them, so that they can be differentiated again. Nothing here reads a value back from a
device. Callers go through kernels.transforms, which stands in for them inside torch.func and forward mode.

| operator | its public op | its gradient | the gradient's gradient |
| --- | --- | --- | --- |
| require | checks of values | the identity | |
| take_rows, add_rows | knn_gather, chosen points | each the other's | |
| farthest_points | sample_farthest_points | none: indices | |
| knn | knn_points | matched_backward | _second_order |
| nearest | chamfer_distance | nearest_backward | _second_order, both ways |
| loss_ops.chamfer_loss | ChamferL1, ChamferL2 | loss_ops.chamfer_loss_backward | _second_order, both ways |
| groups | group_points | add_rows | take_rows |
| weight_ops.inverse_weights | interpolate_three | in plain torch | by torch |
| weighted_rows | interpolate_three | add_rows, take_rows | theirs |

The gradients of d(x, y) = sum_c (x_c - y_c)^2 are 2 (x - y) in x and its opposite in y; of sum_c |x_c - y_c| they are
sign(x - y), 0 where the coordinates are equal; of the root of the first (norm ROOT) (x - y) / root, 0 where that is 0.
An index is constant, so that each pair adds its own to the two points.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recon.kernels.backends import implementation
from recon.kernels.norms import ROOT
from recon.kernels.on_torch import rows as on_torch_rows
from recon.kernels.on_torch.knn import matched_backward as on_torch_matched_backward
from recon.kernels.on_torch.knn import padded
from recon.kernels.operator import operator

Pair = tuple[Tensor, Tensor]
Matches = tuple[Tensor, Tensor, Tensor, Tensor]


def no_tangents(*tensors: Tensor) -> None:
    """NotImplementedError where one carries a forward-mode tangent, which an operator would drop in silence.

    kernels.transforms keeps them away; what comes here was made before forward mode was entered.
    """
    if forward_ad._current_level < 0:
        return
    # Below autograd, where torch.func.linearize's tracer runs an operator, there are none, and torch cannot be asked.
    if torch._C._dispatch_tls_local_exclude_set().has(torch._C.DispatchKey.ADInplaceOrView):
        return
    unpacked = [forward_ad.unpack_dual(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    if any(each.tangent is not None for each in unpacked):
        raise NotImplementedError(
            "an operator of recon.kernels has no forward-mode formula: call the functions of recon.kernels, "
            "and do so inside forward mode, so that their backward is made there too"
        )


@operator("require")
def require(values: Tensor, fits: Tensor, message: str, most: int) -> Tensor:
    """A copy of `values`; ValueError with `message` and the values unless all of `fits` is true.

    "{most}" in the message stands for that number: written out by the caller, a compiler would take it for constant,
    and compile again for every size. On a GPU the test runs there and nobody waits for it: the failure surfaces as a
    device assert. (MPS has had none for long, and waits.)
    """
    if fits.device.type in ("cuda", "xpu"):
        torch._assert_async(fits.all(), message.format(most=most))
    elif not fits.all():
        raise ValueError(f"{message.format(most=most)}, got {list(values.shape)}: {values.flatten()[:16].tolist()}")
    return values.clone()


@require.register_fake
def _(values: Tensor, fits: Tensor, message: str, most: int) -> Tensor:
    return torch.empty_like(values)


def _require_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    pass


def _require_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return grad, None, None, None


require.register_autograd(_require_backward, setup_context=_require_setup)


@operator("take_rows")
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, M, U] at rows int64 [B, R] in [0, M) -> [B, R, U]."""
    no_tangents(x)
    return on_torch_rows.taken(x, rows)


@take_rows.register_fake
def _(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], rows.shape[1], x.shape[2])


@operator("add_rows")
def add_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[B, num_rows, U] sums of values [B, R, U] by their rows int64 [B, R], in the order of R."""
    no_tangents(values)
    return on_torch_rows.add(values, rows, num_rows)


@add_rows.register_fake
def _(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    return values.new_empty(values.shape[0], num_rows, values.shape[2])


def _take_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, rows = inputs
    ctx.save_for_backward(rows)
    ctx.num_rows = x.shape[1]


def _take_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return add_rows(grad, *ctx.saved_tensors, ctx.num_rows), None


def _add_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return take_rows(grad, *ctx.saved_tensors), None, None


take_rows.register_autograd(_take_backward, setup_context=_take_setup)
add_rows.register_autograd(_add_backward, setup_context=_add_setup)


@operator("farthest_points")
def farthest_points(points: Tensor, lengths: Tensor | None, start: Tensor, K: int, backend: str) -> Tensor:
    """idx int64 [B, K <= N] of points [B, N, D], start [B] first; -1 beyond lengths [B]."""
    idx: Tensor = implementation(backend, "fps").farthest_points(points.contiguous(), lengths, start, K)
    return idx if lengths is None else idx.masked_fill_(padded(lengths, K), -1)


@farthest_points.register_fake
def _(points: Tensor, lengths: Tensor | None, start: Tensor, K: int, backend: str) -> Tensor:
    return start.new_empty(points.shape[0], K)


@operator("knn")
def knn(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int, backend: str) -> Pair:
    """dists and idx [B, N, K <= M]; 0 and -1 beyond lengths2 [B]."""
    no_tangents(p1, p2)
    dists, idx = implementation(backend, "knn").search(p1.contiguous(), p2.contiguous(), lengths2, norm, K)
    if lengths2 is not None:
        missing = padded(lengths2, K)[:, None]
        dists, idx = dists.masked_fill_(missing, 0), idx.masked_fill_(missing, -1)
    return dists, idx


@knn.register_fake
def _(p1: Tensor, p2: Tensor, lengths2: Tensor | None, norm: int, K: int, backend: str) -> Pair:
    dists = p1.new_empty(p1.shape[0], p1.shape[1], K)
    return dists, dists.new_empty(dists.shape, dtype=torch.int64)


@operator("matched_backward")
def matched_backward(grad: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int, needs1: bool, needs2: bool) -> Pair:
    """Gradients in p1 and p2 of sum(grad [B, N, K] * distance to the matches idx); empty where not needed."""
    no_tangents(grad, p1, p2)
    return on_torch_matched_backward(grad, p1.contiguous(), p2.contiguous(), idx, norm, needs1, needs2)


@matched_backward.register_fake
def _(grad: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int, needs1: bool, needs2: bool) -> Pair:
    return p1.new_empty(p1.shape if needs1 else 0), p2.new_empty(p2.shape if needs2 else 0)


def _knn_setup(ctx: Any, inputs: Any, output: Pair) -> None:
    p1, p2, _, ctx.norm, _, _ = inputs
    ctx.save_for_backward(p1, p2, output[1])


def _knn_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs1, needs2 = ctx.needs_input_grad[:2]
    grad1, grad2 = matched_backward(grad, *ctx.saved_tensors, ctx.norm, needs1, needs2)
    return grad1 if needs1 else None, grad2 if needs2 else None, None, None, None, None


knn.register_autograd(_knn_backward, setup_context=_knn_setup)


def _matched_setup(ctx: Any, inputs: Any, output: Pair) -> None:
    grad, p1, p2, idx, ctx.norm, ctx.needs1, ctx.needs2 = inputs
    ctx.save_for_backward(grad, p1, p2, idx)


def _matched_twice(ctx: Any, along1: Tensor, along2: Tensor) -> tuple[Tensor | None, ...]:
    grad, p1, p2, idx = ctx.saved_tensors
    along1 = along1 if ctx.needs1 else torch.zeros_like(p1)
    along2 = along2 if ctx.needs2 else torch.zeros_like(p2)
    return *_second_order(grad, p1, p2, idx, ctx.norm, along1, along2), None, None, None, None


def _second_order(
    grad: Tensor, p1: Tensor, p2: Tensor, idx: Tensor, norm: int, along1: Tensor, along2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in grad [B, N, K], p1 and p2 of the first gradients' inner product with along1 and along2.

    The first is a sum of grad * slope(p1 - p2): this is linear in along1 - along2, and for norm 2 of the first's form.
    """
    rows = idx.clamp(min=0).flatten(1)

    def difference(one: Tensor, two: Tensor) -> Tensor:
        matched: Tensor = take_rows(two, rows)
        return one[:, :, None] - matched.view(*idx.shape, two.shape[2])

    apart = difference(p1, p2)
    distance = (apart.abs() if norm == 1 else apart.square()).sum(3)
    inside = (idx >= 0) & distance.isfinite() & ((distance > 0) if norm == ROOT else True)
    steps = difference(along1, along2)
    if norm == ROOT:
        root = torch.where(inside, distance, 1).sqrt()[..., None]
        slope = torch.where(inside[..., None], apart / root, 0)
        of_grad = (slope * steps).sum(3)
        bend = torch.where(inside[..., None], grad[..., None] * (steps - slope * of_grad[..., None]) / root, 0)
        return of_grad, bend.sum(2), -add_rows(bend.flatten(1, 2), rows, p2.shape[1])
    slope = torch.where(inside[..., None], apart.sign() if norm == 1 else 2 * apart, 0)
    of_grad = (slope * steps).sum(3)
    if norm == 1:
        return of_grad, torch.zeros_like(p1), torch.zeros_like(p2)
    return of_grad, *matched_backward(grad, along1, along2, idx.where(inside, -1), 2, True, True)


matched_backward.register_autograd(_matched_twice, setup_context=_matched_setup)


@operator("nearest")
def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool, backend: str
) -> Matches:
    """dists, idx [B, N] from x to y and [B, M] back ([B, 0] if `single`), N, M >= 1.

    0 and -1 in the padding and where the other cloud is empty.
    """
    no_tangents(x, y)
    chamfer = implementation(backend, "chamfer")
    forth_and_back = chamfer.nearest(x.contiguous(), y.contiguous(), x_lengths, y_lengths, norm, single)
    for dists, idx, own, other in (
        (*forth_and_back[:2], x_lengths, y_lengths),
        (*forth_and_back[2:], y_lengths, x_lengths),
    ):
        if own is not None:
            missing = padded(own, dists.shape[1])
            dists.masked_fill_(missing, 0), idx.masked_fill_(missing, -1)
        if other is not None:
            missing = (other == 0)[:, None]
            dists.masked_fill_(missing, 0), idx.masked_fill_(missing, -1)
    found: Matches = forth_and_back
    return found


@nearest.register_fake
def _(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool, backend: str
) -> Matches:
    dists_x, dists_y = x.new_empty(x.shape[:2]), y.new_empty(y.shape[0], 0 if single else y.shape[1])
    idx_x, idx_y = (dists.new_empty(dists.shape, dtype=torch.int64) for dists in (dists_x, dists_y))
    return dists_x, idx_x, dists_y, idx_y


@operator("nearest_backward")
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
    backend: str,
) -> Pair:
    """Gradients in x and y of sum(grad_x * dists_x) + sum(grad_y * dists_y); empty where not needed."""
    no_tangents(grad_x, grad_y, x, y)
    tensors = [tensor.contiguous() for tensor in (grad_x, grad_y, x, y, idx_x, idx_y)]
    found: Pair = implementation(backend, "chamfer").nearest_backward(*tensors, norm, needs_x, needs_y)
    return found


@nearest_backward.register_fake
def _(*arguments: Any) -> Pair:
    _, _, x, y, _, _, _, needs_x, needs_y, _ = arguments
    return x.new_empty(x.shape if needs_x else 0), y.new_empty(y.shape if needs_y else 0)


def _nearest_setup(ctx: Any, inputs: Any, output: Matches) -> None:
    x, y, _, _, ctx.norm, _, ctx.backend = inputs
    ctx.save_for_backward(x, y, output[1], output[3])


def _nearest_backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    grad_x, grad_y = grads[::2] if len(grads) == 4 else grads
    needs_x, needs_y = ctx.needs_input_grad[:2]
    of_x, of_y = nearest_backward(grad_x, grad_y, *ctx.saved_tensors, ctx.norm, needs_x, needs_y, ctx.backend)
    return of_x if needs_x else None, of_y if needs_y else None, None, None, None, None, None


nearest.register_autograd(_nearest_backward, setup_context=_nearest_setup)


def _nearest_backward_setup(ctx: Any, inputs: Any, output: Pair) -> None:
    *tensors, ctx.norm, ctx.needs_x, ctx.needs_y, _ = inputs
    ctx.save_for_backward(*tensors)


def _nearest_twice(ctx: Any, along_x: Tensor, along_y: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_y, x, y, idx_x, idx_y = ctx.saved_tensors
    along = along_x if ctx.needs_x else torch.zeros_like(x), along_y if ctx.needs_y else torch.zeros_like(y)
    return *nearest_twice((grad_x, grad_y), (x, y), (idx_x, idx_y), ctx.norm, along), *[None] * 6


def nearest_twice(grads: Pair, clouds: Pair, idx: Pair, norm: int, along: Pair) -> Matches:
    """Gradients in both grads and both clouds of nearest_backward's inner product with `along`."""
    forth = _second_order(grads[0][..., None], *clouds, idx[0][..., None], norm, *along)
    if grads[1].shape[1] == 0:
        return forth[0][..., 0], torch.zeros_like(grads[1]), *forth[1:]
    back = _second_order(grads[1][..., None], *clouds[::-1], idx[1][..., None], norm, *along[::-1])
    return forth[0][..., 0], back[0][..., 0], forth[1] + back[2], forth[2] + back[1]


nearest_backward.register_autograd(_nearest_twice, setup_context=_nearest_backward_setup)


@operator("groups")
def groups(points: Tensor, num_group: int, group_size: int, backend: str) -> Matches:
    """Neighbours minus centers [B, G, S, D], centers [B, G, D], and where both stand: [B, G], [B, G, S]."""
    no_tangents(points)
    found: Matches = implementation(backend, "group").groups(points.contiguous(), num_group, group_size)
    return found


@groups.register_fake
def _(points: Tensor, num_group: int, group_size: int, backend: str) -> Matches:
    num_clouds, _, width = points.shape
    near = points.new_empty(num_clouds, num_group, group_size, width)
    chosen = torch.empty(num_clouds, num_group, dtype=torch.int64, device=points.device)
    return near, near.new_empty(num_clouds, num_group, width), chosen, chosen.new_empty(near.shape[:3])


def _groups_setup(ctx: Any, inputs: Any, output: Matches) -> None:
    ctx.num_points = inputs[0].shape[1]
    ctx.save_for_backward(*output[2:])


def _groups_backward(ctx: Any, of_near: Tensor, of_centers: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    chosen, idx = ctx.saved_tensors
    num_clouds, num_group, group_size, width = of_near.shape
    # Not flatten, for which is_grads_batched has no rule.
    of_rows = of_near.reshape(num_clouds, num_group * group_size, width)
    values = torch.cat([of_rows, of_centers - of_near.sum(2)], 1)
    return add_rows(values, torch.cat([idx.flatten(1), chosen], 1), ctx.num_points), None, None, None


groups.register_autograd(_groups_backward, setup_context=_groups_setup)


@operator("weighted_rows")
def weighted_rows(features: Tensor, idx: Tensor, weights: Tensor, backend: str) -> Tensor:
    """sum over k of weights [B, N, K] * features [B, M, C] at idx int64 [B, N, K] -> [B, N, C]; 0 if the first is 0."""
    no_tangents(features, weights)
    module = implementation(backend, "interpolate")
    total: Tensor = module.weighted_rows(features.contiguous(), idx.contiguous(), weights.contiguous())
    return total


@weighted_rows.register_fake
def _(features: Tensor, idx: Tensor, weights: Tensor, backend: str) -> Tensor:
    return features.new_empty(*idx.shape[:2], features.shape[2])


def _weighted_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _weighted_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, idx, weights = ctx.saved_tensors
    of_features = of_weights = None
    # One neighbour at a time: [B, N, K, C] at once is K times the result.
    each = list(zip(idx.unbind(2), weights.unbind(2), strict=True))
    if ctx.needs_input_grad[0]:
        parts = [add_rows(grad * weight[..., None], near, features.shape[1]) for near, weight in each]
        of_features = torch.stack(parts).sum(0)
    if ctx.needs_input_grad[2]:
        of_weights = torch.stack([(grad * take_rows(features, near)).sum(2) for near, _ in each], 2)
    return of_features, None, of_weights, None


weighted_rows.register_autograd(_weighted_backward, setup_context=_weighted_setup)
