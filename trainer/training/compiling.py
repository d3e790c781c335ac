"""The training step's forward and backward pass as one compiled graph, from grouping to loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recon.pipeline.base.errors import UserError
from recon.trainer.training.distributed import world_size


def compiled(model: nn.Module, device: torch.device, accumulate: int) -> Callable[..., Any]:
    """`model` through torch.compile, whole or not at all; UserError on a CPU, where it gains nothing.

    With one part a step, kernels are recorded as CUDA graphs, so that launching them takes the host no time. With more,
    gradients of one part would lie in memory that the next part's graph writes to; and with several processes, what
    they exchange would be recorded too.
    """
    if device.type == "cpu":
        raise UserError(
            "run.compile: not on a CPU, where compiling takes minutes and the compiled step is no faster; leave it out"
        )
    mode = "reduce-overhead" if accumulate == world_size() == 1 else None
    # Sizes are constants: an epoch's last batch, where it is smaller, is compiled for itself.
    whole: Callable[..., Any] = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    return whole
