"""Rows taken from clouds and added to them, in a fixed order."""

import numpy as np
import torch
from torch import Tensor

FEW = 2**12
"""Values up to which the calls of `take` are what it costs; of 512 rows of 32, a gather took 1.6 times as long."""


def flat_rows(rows: Tensor, num_rows: int) -> Tensor:
    """rows [B, R] within each cloud -> [B * R] rows of the clouds laid end to end."""
    return (rows + torch.arange(rows.shape[0], device=rows.device)[:, None] * num_rows).reshape(-1)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, M, U] at rows [B, R] -> [B, R, U]."""
    num_clouds, num_rows, width = x.shape
    taken = x.reshape(num_clouds * num_rows, width).index_select(0, flat_rows(rows, num_rows))
    return taken.view(num_clouds, rows.shape[1], width)


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """`take` of values alone, which few calls gather where rows are few."""
    if x.device.type != "cpu" or rows.numel() * x.shape[2] > FEW:
        return take(x, rows)
    if x.dtype == torch.bfloat16:  # which NumPy lacks
        return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
    values, places = x.detach().numpy(), rows.numpy()
    if len(values) > 1:
        places = places + np.arange(len(values))[:, None] * values.shape[1]
    num_clouds, num_rows, width = values.shape
    return torch.from_numpy(values.reshape(num_clouds * num_rows, width).take(places, 0))


def add(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[B, num_rows, U] sums of values [B, R, U] by their rows [B, R]."""
    num_clouds, _, width = values.shape
    total = add_flat(values.flatten(0, 1), flat_rows(rows, num_rows), num_clouds * num_rows)
    return total.view(num_clouds, num_rows, width)


def add_flat(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[num_rows, ...] sums of values [R, ...] by row, the same bits every time."""
    total = values.new_zeros(num_rows, *values.shape[1:])
    if values.device.type == "cpu":
        return total.index_add_(0, rows, values)
    # Sorted on a GPU, where index_add would use atomics.
    return total.index_put_((rows,), values, accumulate=True)
