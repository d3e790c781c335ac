"""Weights as a teacher's recipe sees them: by content, and in which type they run."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from recon.pipeline.base.errors import NotFetched
from recon.pipeline.base.hub import hub_answers
from recon.pipeline.teachers import TeacherSpec

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


_OPENAI = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files beside the weights


def openai_state(file: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a file as OpenAI published CLIP: a TorchScript archive, or its tensors saved as a dictionary.

    None for any other file, and for one that cannot be read: open_clip reads those, or says why not. Reads no more
    than the names to tell. Of the archive no code is called, and neither form is unpickled freely.
    """
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        scripted = any(Path(name).name == "constants.pkl" for name in archive.namelist())
    try:
        if scripted:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                state = torch.jit.load(str(file), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        else:
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # archives fail in as many ways as they are made
        return None
    if not isinstance(state, dict) or not (scripted or set(_OPENAI) <= set(state)):
        return None
    return {name: tensor for name, tensor in state.items() if name not in _OPENAI}


def in_hub_cache(repository: str, files: Sequence[str]) -> Path | None:
    """The first of `files` of a hub repository that was fetched before; asks no network."""
    import huggingface_hub

    for file in files:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None


def require_fetchable(spec: TeacherSpec, here: Path | None, failure: str, mend: str) -> None:
    """NotFetched where the weights are not here and the hub does not answer: said before libraries try for a minute."""
    if here is None and not hub_answers():
        said = f"teacher {spec.name!r}: field 'model': {failure}: its weights are not on this machine, and the "
        raise NotFetched(f"{said}Hugging Face hub does not answer; {mend}")
