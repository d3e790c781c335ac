"""Weights as a teacher's recipe sees them: by content, and in which type they run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and bytes in order of name: of the content, not of the file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
