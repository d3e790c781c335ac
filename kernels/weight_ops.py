"""The weights of interpolation as one operator: w_k = r_k / sum_l r_l, with r_k = 1 / (d_k + 1e-8)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.kernels import ops
from recon.kernels.on_torch.rows import FEW
from recon.kernels.operator import operator

EPSILON = 1e-8


@operator("inverse_weights")
def inverse_weights(dists: Tensor, idx: Tensor) -> ops.Pair:
    """Weights [B, N, K], and rows to take, of neighbours idx [B, N, K >= 1] at squared distances dists [B, N, K].

    All weights are 0 where all distances are infinite. A neighbour of weight 0 is replaced by the first: its feature
    may be NaN, and 0 x NaN is NaN.
    """
    ops.no_tangents(dists)
    if dists.device.type == "cpu" and 0 < dists.numel() <= FEW:
        return _few(dists.detach().numpy(), idx.numpy())
    return plain(dists, idx)


@inverse_weights.register_fake
def _(dists: Tensor, idx: Tensor) -> ops.Pair:
    return torch.empty_like(dists), torch.empty_like(idx)


def plain(dists: Tensor, idx: Tensor) -> ops.Pair:
    """The same in torch, which can differentiate it in any mode."""
    inverse = 1 / (dists + EPSILON)
    total = inverse.sum(2, keepdim=True)
    weights = inverse / torch.where(total > 0, total, 1)
    return weights, torch.where(weights > 0, idx, idx[..., :1])


def _few(dists: Any, idx: Any) -> ops.Pair:
    """The same by NumPy, whose calls cost less."""
    weights = dists + dists.dtype.type(EPSILON)
    np.reciprocal(weights, out=weights)
    total = weights.sum(2, keepdims=True)
    if not total.all():
        total[total == 0] = 1
    weights /= total
    return torch.from_numpy(weights), torch.from_numpy(np.where(weights > 0, idx, idx[..., :1]))


def _setup(ctx: Any, inputs: Any, output: ops.Pair) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
    dists, weights = ctx.saved_tensors
    inverse = 1 / (dists + EPSILON)
    total = inverse.sum(2, keepdim=True)
    total = torch.where(total > 0, total, 1)
    of_total = (-grad * (weights / total)).sum(2, keepdim=True)
    return -(grad / total + of_total) * (inverse * inverse), None


inverse_weights.register_autograd(_backward, setup_context=_setup)
