"""The patch embedding on a CPU, in training and in eval mode: the same function and gradients in fewer operations.

* Batch norm follows a linear layer, so its statistics follow from the mean and covariance of what goes into the layer,
  and it folds into the layer's weights: no pass over the points is left of it, and points that count in the statistics
  only never enter the wide layer.
* A maximum over a group's points has one winner a channel. The gradient of the linear layer before it is a sum over
  winners, one row each, where the matrix product would be over 32 times as many, nearly all zero.
* Points are gone through in pieces that stay in the processor's cache from one operation to the next.
* Where nothing learns, the statistics are constants, and a linear layer that follows another is one with it.

In float32 this rounds unlike the plain form, which is `trainer.model.blocks.PatchEmbed.forward` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 2048  # rows of points: 4 MB of the widest layer


class Layers(Protocol):
    """What is used of `trainer.model.blocks.PatchEmbed`."""

    width: int
    local: int
    conv1: nn.Linear
    norm1: nn.BatchNorm1d
    conv2: nn.Linear
    conv3: nn.Linear
    norm2: nn.BatchNorm1d
    conv4: nn.Linear


def embed_in_pieces(layers: Layers, groups: Tensor, kept: Tensor | None) -> Tensor:
    """What `PatchEmbed.forward(groups, kept)` of these layers is in training mode."""
    batch, num_group, size, _ = groups.shape
    num_kept = num_group if kept is None else kept.shape[1]
    points = groups.flatten(0, 1)
    if kept is not None:
        # The kept groups of all clouds first, so that their features are one slice; sums know no order.
        first = torch.arange(0, batch * num_group, num_group).unsqueeze(1)
        rest = torch.ones(batch, num_group, dtype=torch.uint8).scatter_(1, kept, 0).argsort(dim=1, stable=True)
        points = points[torch.cat([(kept + first).flatten(), (rest[:, num_kept:] + first).flatten()])]
    points = points.reshape(-1, groups.shape[-1])
    kept_groups = batch * num_kept

    centered = points - points.mean(dim=0)
    covariance = centered.t() @ centered / len(points)
    weight, bias = _folded(layers.norm1, layers.conv1, points.mean(dim=0), covariance, len(points))
    local, pooled, mean, covariance = _Local.apply(  # type: ignore[no-untyped-call]
        points, weight, bias, layers.conv2.weight, layers.conv2.bias, size, kept_groups * size
    )

    # The wide layer's input is a group's maximum beside a point's own feature: its covariance has four blocks.
    pooled_mean, local_mean = pooled.mean(dim=0), mean.mean(dim=0)
    spread = pooled - pooled_mean
    across = spread.t() @ (mean - local_mean) / len(pooled)
    rows = torch.cat([spread.t() @ spread / len(pooled), across], dim=1), torch.cat([across.t(), covariance], dim=1)
    weight, bias = _folded(
        layers.norm2, layers.conv3, torch.cat([pooled_mean, local_mean]), torch.cat(rows), len(points)
    )
    of_group = F.linear(pooled[:kept_groups], weight[:, : layers.local], bias)
    tokens: Tensor = _Wide.apply(  # type: ignore[no-untyped-call]
        local, of_group, weight[:, layers.local :], layers.conv4.weight, layers.conv4.bias, size
    )
    return tokens.view(batch, num_kept, layers.width)


def embed_constant(layers: Layers, groups: Tensor) -> Tensor:
    """What `PatchEmbed.forward(groups)` of these layers is in eval mode, without gradients."""
    batch, num_group, size, _ = groups.shape
    points, local = groups.reshape(-1, groups.shape[-1]), layers.local
    weight1, bias1 = _in_eval(layers.norm1, layers.conv1)
    weight3, bias3 = _in_eval(layers.norm2, layers.conv3)
    # conv3's half for a point's own feature follows conv2 directly: their product is half as wide on the way in.
    of_point = weight3[:, local:] @ layers.conv2.weight
    weight_pooled = weight3[:, :local]
    bias3 = bias3 + weight3 @ layers.conv2.bias.repeat(2)
    tokens = points.new_empty(batch * num_group, layers.width)
    for piece in _pieces(batch * num_group, size):
        hidden = torch.addmm(bias1, _rows(points, piece, size), weight1.t()).relu_()
        pooled = (hidden @ layers.conv2.weight.t()).view(-1, size, local).amax(dim=1)
        wide = (hidden @ of_point.t()).view(-1, size, len(bias3))
        wide.add_(F.linear(pooled, weight_pooled, bias3).unsqueeze(1)).relu_()
        out = wide.view(-1, len(bias3)) @ layers.conv4.weight.t()
        torch.amax(out.view(-1, size, layers.width), dim=1, out=tokens[piece])
    return tokens.add_(layers.conv4.bias).view(batch, num_group, layers.width)


def _in_eval(norm: nn.BatchNorm1d, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of `norm(layer(x))` by the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return layer.weight * scale[:, None], (layer.bias - norm.running_mean) * scale + norm.bias


def _folded(
    norm: nn.BatchNorm1d, layer: nn.Linear, mean: Tensor, covariance: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of `norm(layer(x))` for `count` rows x of this `mean [K]` and `covariance [K, K]` (biased).

    As the module itself would, takes the statistics into its running ones.
    """
    mean = layer.weight @ mean + layer.bias
    variance = ((layer.weight @ covariance) * layer.weight).sum(dim=1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(count - 1, 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return layer.weight * scale[:, None], (layer.bias - mean) * scale + norm.bias


class _Local(torch.autograd.Function):
    """Points `[N, 3]`, S a group -> the first `kept` of the features linear(relu(linear(points))) `[N, D]`.

    And of all the features: each group's maximum and mean, `[N / S, D]`, and the covariance `[D, D]`. The points get no
    gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, size: int, kept: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_group, width = len(points) // size, len(weight2)
        local = points.new_empty(num_group, size, width)
        pooled, mean = points.new_empty(2, num_group, width)
        winner = torch.empty(num_group, width, dtype=torch.int64)
        for piece in _pieces(num_group, size):
            hidden = torch.addmm(bias1, _rows(points, piece, size), weight1.t()).relu_()
            torch.addmm(bias2, hidden, weight2.t(), out=local[piece].view(-1, width))
            pooled[piece], winner[piece] = _max(local[piece])
            torch.mean(local[piece], dim=1, out=mean[piece])
        center = mean.mean(dim=0)
        covariance = points.new_zeros(width, width)
        for piece in _pieces(num_group, size):
            centered = local[piece].view(-1, width) - center
            covariance.addmm_(centered.t(), centered)
        covariance /= len(points)
        ctx.save_for_backward(points, weight1, bias1, weight2, local, winner, center)
        return local.view(-1, width)[:kept], pooled, mean, covariance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_local: Tensor, grad_pooled: Tensor, grad_mean: Tensor, grad_covariance: Tensor
    ) -> tuple[Tensor | None, ...]:
        points, weight1, bias1, weight2, local, winner, center = ctx.saved_tensors
        num_group, size, width = local.shape
        spread = (grad_covariance + grad_covariance.t()) / len(points)
        grad_mean = grad_mean / size - center @ spread  # the second term centres every row that `spread` is applied to
        grads = [torch.zeros_like(weight1), torch.zeros_like(bias1), torch.zeros_like(weight2), center.new_zeros(width)]
        for piece in _pieces(num_group, size):
            x = _rows(points, piece, size)
            hidden = torch.addmm(bias1, x, weight1.t()).relu_()
            grad = local[piece].view(-1, width) @ spread
            given = _rows(grad_local, piece, size)  # fewer or none where features are not kept
            grad[: len(given)] += given
            by_group = grad.view(-1, size, width).add_(grad_mean[piece].unsqueeze(1))
            by_group.scatter_add_(1, winner[piece].unsqueeze(1), grad_pooled[piece].unsqueeze(1))
            grads[2].addmm_(grad.t(), hidden)
            grads[3] += grad.sum(dim=0)
            grad = torch.ops.aten.threshold_backward(grad @ weight2, hidden, 0)
            grads[0].addmm_(grad.t(), x)
            grads[1] += grad.sum(dim=0)
        return None, *grads, None, None


class _Wide(torch.autograd.Function):
    """max over a group's points of linear(relu(local [G * S, D] @ weight [H, D]^T + of_group [G, H])): `[G, C]`."""

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, of_group: Tensor, weight: Tensor, weight_out: Tensor, bias_out: Tensor, size: int
    ) -> Tensor:
        num_group, width = of_group.shape
        wide = local.new_empty(num_group, size, width)
        tokens = local.new_empty(num_group, len(weight_out))
        winner = torch.empty(tokens.shape, dtype=torch.int64)
        for piece in _pieces(num_group, size):
            rows = wide[piece].view(-1, width)
            torch.mm(_rows(local, piece, size), weight.t(), out=rows)
            wide[piece].add_(of_group[piece].unsqueeze(1)).relu_()
            out = torch.addmm(bias_out, rows, weight_out.t())
            tokens[piece], winner[piece] = _max(out.view(-1, size, len(weight_out)))
        ctx.save_for_backward(local, weight, weight_out, wide, winner)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_tokens: Tensor) -> tuple[Tensor | None, ...]:
        local, weight, weight_out, wide, winner = ctx.saved_tensors
        num_group, size, width = wide.shape
        grad_local, grad_group = torch.empty_like(local), local.new_empty(num_group, width)
        grad_weight, grad_out = torch.zeros_like(weight), torch.zeros_like(weight_out)
        for piece in _pieces(num_group, size):
            rows = wide[piece].view(-1, width)
            grad_out += _winners_weight_gradient(grad_tokens[piece], winner[piece], rows, size)
            grad = _winners_input_gradient(grad_tokens[piece], winner[piece], weight_out, size)
            grad = torch.ops.aten.threshold_backward(grad, rows, 0)
            torch.sum(grad.view(-1, size, width), dim=1, out=grad_group[piece])
            grad_weight.addmm_(grad.t(), _rows(local, piece, size))
            torch.mm(grad, weight, out=_rows(grad_local, piece, size))
        return grad_local, grad_group, grad_weight, grad_out, grad_tokens.sum(dim=0), None


def _max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of `x [G, S, C]` over S and the first place it stands at; several times as fast as `max` on a CPU."""
    size = x.shape[1]
    largest = x.amax(dim=1)
    left = torch.arange(size, 0, -1, dtype=torch.uint8 if size < 256 else torch.int32).unsqueeze(1)
    place = size - (x == largest.unsqueeze(1)).to(left.dtype).mul_(left).amax(dim=1).to(torch.int64)
    return largest, place.clamp_(max=size - 1)  # NaN equals nothing


def _winners_weight_gradient(grad: Tensor, winner: Tensor, rows: Tensor, size: int) -> Tensor:
    """`[C, H]`: for every channel, `grad [G, C]` times the row `[G * S, H]` of the point that won it, summed over G."""
    index = winner + torch.arange(0, len(rows), size).unsqueeze(1)
    bags: Tensor = F.embedding_bag(index.t().contiguous(), rows, per_sample_weights=grad.t().contiguous(), mode="sum")
    return bags


def _winners_input_gradient(grad: Tensor, winner: Tensor, weight: Tensor, size: int) -> Tensor:
    """`[G * S, H]`: for every point, `grad [G, C]` times the row of `weight [C, H]` of the channels that it won."""
    channel = winner.to(torch.uint8 if size < 256 else torch.int32).argsort(dim=1, stable=True)
    won = torch.zeros(len(grad), size, dtype=torch.int64)
    won.scatter_add_(1, winner, torch.ones(1, 1, dtype=torch.int64).expand_as(winner))
    starts = won.flatten().cumsum(dim=0) - won.flatten()
    weights = grad.gather(1, channel).flatten()
    bags: Tensor = F.embedding_bag(channel.flatten(), weight, starts, per_sample_weights=weights, mode="sum")
    return bags


def _pieces(num_group: int, size: int) -> Iterator[slice]:
    step = max(1, PIECE // size)
    return (slice(start, min(start + step, num_group)) for start in range(0, num_group, step))


def _rows(x: Tensor, piece: slice, size: int) -> Tensor:
    return x[piece.start * size : piece.stop * size]
