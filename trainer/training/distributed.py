"""Several processes training one model, as torchrun starts them: one a GPU, or on CPUs as many as asked for.

What one process computes of a batch, W of them compute together: rank r holds samples r, r + W, ... of it, everything
random is drawn for the whole batch, and means over samples are means over all ranks. In one process every function here
does nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recon.pipeline.base.errors import UserError


def rank() -> int:
    """This process's number among those that train together; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ---- what a step needs


def of_batch(draw: Callable[[int], Tensor], count: int, dim: int = 0) -> Tensor:
    """This rank's part of `draw(samples of all ranks)`, whose axis `dim` is the samples'; `count` of them are its own.

    So a sample's draws do not depend on the number of processes.
    """
    size = world_size()
    if size == 1:
        return draw(count)
    return draw(count * size)[(slice(None),) * dim + (slice(rank(), None, size),)]


def gather_batch(tensor: Tensor) -> Tensor:
    """Every rank's `tensor [B, ...]` as `[W B, ...]`, rank by rank: this one's rows begin at `rank() * B`.

    Differentiable: a row's gradient is the sum of what all ranks ask of it. B must be the same on every rank.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch norm of `[N, C]` whose statistics run over all ranks' rows, on any device; N must be the same on each."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        local = torch.stack(torch.var_mean(wide, dim=0, correction=0))
        variances, means = gather_batch(local[None]).unbind(dim=1)
        # Of means and variances, not of squares, which would cancel.
        mean, variance = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        self._keep(mean.detach(), variance.detach(), world_size() * len(input))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias - mean * scale, wide, scale).to(input.dtype)

    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def synchronize_batch_norms(model: nn.Module, fused: bool) -> None:
    """Have the model's batch norms take their statistics over all ranks. Names of weights stay as they are.

    `fused` takes torch's own layer, whose kernels run on a GPU only and which no compiler looks into.
    """
    if world_size() == 1:
        return
    if fused:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SyncBatchNorm


def share_gradients(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, whose backward pass now leaves the ranks' mean gradient on every one of them. Call it on all ranks."""
    if world_size() == 1:
        return model
    assert isinstance(model, nn.Module)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # a token's is a slice
    # Without it a parameter that no loss reaches is waited for; torch's static_graph does not go with `no_sync`.
    # Batch statistics are either the same on every rank or those of rank 0, which writes them.
    return DistributedDataParallel(
        model, find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def gradients_stay(model: object, last: bool) -> AbstractContextManager[None]:
    """A context for a part of the batch: ranks exchange gradients only after the last one."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def check_batch(batch_size: int, accumulate: int, last: int) -> None:
    """UserError where the processes do not divide a batch, or an epoch's last one of `last` samples, if it has one."""
    size = world_size()
    if size == 1:
        return
    parts = f"{size} processes" + (f" of optim.accumulate {accumulate} parts each" if accumulate > 1 else "")
    if batch_size % (size * accumulate):
        raise UserError(f"optim.batch_size {batch_size}: {parts} do not divide it")
    if last % (size * accumulate):
        raise UserError(f"data.drop_last=false leaves {last} samples for the last batch, which {parts} do not divide")


# ---- what is measured and kept


def mean_of_ranks(values: Tensor) -> Tensor:
    """The ranks' mean of some numbers, the same bits on every rank. Call it on all ranks; waits for all of them."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def least_of_ranks(values: Tensor) -> Tensor:
    """The least of each number over the ranks. Call it on all ranks."""
    if world_size() == 1:
        return values
    least = values.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def sums_of_ranks(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars as a checkpoint holds them: of several ranks each `[W]`. Call it on all ranks."""
    return sums if world_size() == 1 else {name: gather_batch(value[None]) for name, value in sums.items()}


def sum_of_rank(value: Tensor) -> Tensor:
    """This rank's scalar out of a checkpoint's; where another number of ranks wrote it, their mean."""
    if value.ndim and len(value) == world_size():
        return value[rank()]
    return value.mean()
