"""ReCon's two losses as one operator forwards and one backwards, which a training step calls thousands of times.

    L2 = mean_i d_i + mean_j d'_j        L1 = (mean_i sqrt d_i + mean_j sqrt d'_j) / 2

with d_i the squared distance of x_i to the nearest of y, d'_j that of y_j to the nearest of x. Their gradients are
those of kernels.ops.nearest_backward, for one and the same gradient of every distance.
"""

from typing import Any

import torch
from torch import Tensor

from recon.kernels import ops
from recon.kernels.backends import implementation
from recon.kernels.norms import ROOT
from recon.kernels.operator import bare_apply, needs_gradient, observed, operator


@operator("chamfer_loss")
def chamfer_loss(x: Tensor, y: Tensor, root: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """L1 if `root`, else L2, of x [B, N, D] and y [B, M, D], none of them empty; nearest points [B, N] and [B, M]."""
    ops.no_tangents(x, y)
    module = implementation(backend, "chamfer")
    if backend == "numba":
        total, *rows = module.loss(x.contiguous(), y.contiguous(), root)
        return total, torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    dists_x, idx_x, dists_y, idx_y = module.nearest(x.contiguous(), y.contiguous(), None, None, 2, False)
    if root:
        return (dists_x.sqrt_().mean() + dists_y.sqrt_().mean()) / 2, idx_x, idx_y
    return dists_x.mean() + dists_y.mean(), idx_x, idx_y


@chamfer_loss.register_fake
def _(x: Tensor, y: Tensor, root: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    idx_x, idx_y = (points.new_empty(points.shape[:2], dtype=torch.int64) for points in (x, y))
    return x.new_empty(()), idx_x, idx_y


@operator("chamfer_loss_backward")
def chamfer_loss_backward(
    grad: Tensor, x: Tensor, y: Tensor, idx_x: Tensor, idx_y: Tensor, root: bool, needs: list[bool], backend: str
) -> ops.Pair:
    """Gradients in x and y of grad [] * the loss; empty where not needed."""
    ops.no_tangents(grad, x, y)
    module = implementation(backend, "chamfer")
    found: ops.Pair
    if backend == "numba":
        found = module.loss_backward(grad, x.contiguous(), y.contiguous(), idx_x.numpy(), idx_y.numpy(), root, *needs)
        return found
    of_x, of_y = _of_distances(grad, idx_x, idx_y, root)
    found = module.nearest_backward(
        of_x, of_y, x.contiguous(), y.contiguous(), idx_x, idx_y, ROOT if root else 2, *needs
    )
    return found


@chamfer_loss_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, idx_x: Tensor, idx_y: Tensor, root: bool, needs: list[bool], backend: str
) -> ops.Pair:
    return x.new_empty(x.shape if needs[0] else 0), y.new_empty(y.shape if needs[1] else 0)


def _of_distances(grad: Tensor, idx_x: Tensor, idx_y: Tensor, root: bool) -> ops.Pair:
    """The gradients of d (or of its root) [B, N] and [B, M]: one number each, expanded."""
    each = (grad / (idx_x.numel() * (2 if root else 1))).expand(idx_x.shape)
    if idx_y.shape == idx_x.shape:
        return each, each
    return each, (grad / (idx_y.numel() * (2 if root else 1))).expand(idx_y.shape)


def _loss_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, y, ctx.root, ctx.backend = inputs
    ctx.save_for_backward(x, y, *output[1:])


def _loss_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs_x, needs_y = ctx.needs_input_grad[:2]
    of_x, of_y = chamfer_loss_backward(grad, *ctx.saved_tensors, ctx.root, [needs_x, needs_y], ctx.backend)
    return of_x if needs_x else None, of_y if needs_y else None, None, None


chamfer_loss.register_autograd(_loss_backward, setup_context=_loss_setup)


def _twice_setup(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.root, ctx.needs, _ = inputs
    ctx.save_for_backward(*tensors)


def _twice(ctx: Any, along_x: Tensor, along_y: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, y, idx_x, idx_y = ctx.saved_tensors
    along = along_x if ctx.needs[0] else torch.zeros_like(x), along_y if ctx.needs[1] else torch.zeros_like(y)
    grads = _of_distances(grad, idx_x, idx_y, ctx.root)
    twice = ops.nearest_twice(grads, (x, y), (idx_x, idx_y), ROOT if ctx.root else 2, along)
    of_forth, of_back, of_x, of_y = twice
    of_grad = (of_forth.mean() + of_back.mean()) / (2 if ctx.root else 1)
    return of_grad, of_x, of_y, *[None] * 5


chamfer_loss_backward.register_autograd(_twice, setup_context=_twice_setup)


@chamfer_loss_backward.registered.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """One call after the other: the losses of several batches are no loss of one."""
    calls = [
        chamfer_loss_backward(
            *(value if axis is None else value.select(axis, b) for value, axis in zip(arguments, in_dims, strict=True))
        )
        for b in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*calls, strict=True))), (0, 0)


def loss(x: Tensor, y: Tensor, root: bool, backend: str) -> Tensor:
    """The loss alone. Numba's, where nobody looks for an operator, has its gradient from the arrays that it made."""
    if backend != "numba" or observed((x, y)):
        found: Tensor = chamfer_loss(x, y, root, backend)[0]
        return found
    ops.no_tangents(x, y)
    if needs_gradient((x, y)):
        differentiable: Tensor = _apply(x, y, root)
        return differentiable
    alone: Tensor = implementation(backend, "chamfer").loss(x.contiguous(), y.contiguous(), root)[0]
    return alone


class _NumbasLoss(torch.autograd.Function):
    """chamfer_loss and its backward; nearest points stay arrays, as each change to a tensor and back costs more than
    the arithmetic of a small cloud.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, root: bool) -> Tensor:
        total: Tensor
        total, *ctx.rows = implementation("numba", "chamfer").loss(x.contiguous(), y.contiguous(), root)
        ctx.root = root
        ctx.save_for_backward(x, y)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:2])
        if torch.is_grad_enabled() or observed((grad,)):
            rows = map(torch.from_numpy, ctx.rows)
            of_x, of_y = chamfer_loss_backward(grad, x, y, *rows, ctx.root, needs, "numba")
        else:
            ops.no_tangents(grad, x, y)
            module = implementation("numba", "chamfer")
            of_x, of_y = module.loss_backward(grad, x.contiguous(), y.contiguous(), *ctx.rows, ctx.root, *needs)
        return of_x if needs[0] else None, of_y if needs[1] else None, None


_apply = bare_apply(_NumbasLoss)
