"""The operators as Triton kernels for float32 clouds; tests also run them on a CPU under TRITON_INTERPRET=1."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Launch on the tensor's GPU, which need not be the current one; nothing to do for CPU tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
