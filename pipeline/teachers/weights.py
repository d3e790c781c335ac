"""Weights as a teacher's recipe sees them: by content, and in which type they run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def text_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of an open_clip model's state, what its words' features depend on.

    Neither the image tower, nor CoCa's decoder, nor the scale and bias of the loss.
    """
    other = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
    return {name: value for name, value in state.items() if not name.startswith(other)}


def in_hub_cache(repository: str, files: Sequence[str]) -> Path | None:
    """The first of `files` of a hub repository that was fetched before; asks no network."""
    import huggingface_hub

    for file in files:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None
