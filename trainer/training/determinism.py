"""What makes a GPU give the same bits every time."""

from __future__ import annotations

import os

import torch


def make_deterministic(device: torch.device) -> None:
    """Have CUDA choose kernels that give the same bits every time; the CPU's do."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product runs
    torch.backends.cudnn.benchmark = False
    # An operation without such a kernel warns, naming itself, instead of stopping the run.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Which also fills all new memory, to show who reads it too early; the CPU's tests would show that as well.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
