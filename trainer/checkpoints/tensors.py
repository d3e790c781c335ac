"""Reading safetensors files, whoever wrote them: a bounded header, then tensors, or one line on what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from recon.pipeline.base.documents import MAX_BRACKETS, MAX_BYTES
from recon.pipeline.base.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU. UserError where it cannot be read."""
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself; reads no tensor. UserError where it cannot be read."""
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of a file's tensors by name; reads no tensor. UserError where it cannot be read."""
    check_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def check_header(path: Path) -> None:
    """UserError for a header longer than its file, or than any model's: the library would take memory for all of it.

    What the header says of types, shapes and places the library holds against the file itself.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            held = path.stat().st_size - 8
            header = file.read(length) if 0 < length <= min(held, MAX_BYTES) else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    if not header:
        raise UserError(f"{path}: not a readable safetensors file: its header of {length} bytes is empty or too long")
    if header.count(b"[") + header.count(b"{") > MAX_BRACKETS:
        raise UserError(f"{path}: not a readable safetensors file: its header names more tensors than any model has")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable safetensors file: {error}")
