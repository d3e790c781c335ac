"""Argument checks shared by every op: each error names the argument, its shape and the expected one."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from recon.kernels import ops

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device of a tensor, as error messages quote them."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is one, and neither sparse nor nested."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor [B, N, D], got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise ValueError(
            f"{name} must be a dense tensor [B, N, D], with lengths where clouds differ, got layout {layout}"
        )


def check_points(name: str, points: Tensor) -> None:
    """Raise ValueError unless `points` is a floating [B, N, D] tensor with D >= 1."""
    check_dense(name, points)
    if points.dim() != 3 or points.shape[2] < 1:
        raise ValueError(f"{name} must have shape [B, N, D] with D >= 1, got {describe(points)}")
    if points.dtype not in FLOAT_TYPES:
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {describe(points)}")


def check_like(name: str, tensor: Tensor, shape: Sequence[int | None], like: Tensor, like_name: str) -> None:
    """Raise ValueError unless `tensor` has `shape` (None = any size) and the dtype and device of `like`."""
    if not _has_shape(name, tensor, shape) or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} must have shape {_written(shape)} and the dtype and device of {like_name} "
            f"({describe(like)}), got {describe(tensor)}"
        )


def check_beside(name: str, tensor: Tensor, shape: Sequence[int | None], like: Tensor, like_name: str) -> None:
    """Raise ValueError unless `tensor` has `shape` (None = any size), real numbers, and the device of `like`."""
    if not _has_shape(name, tensor, shape) or tensor.is_complex() or tensor.device != like.device:
        raise ValueError(
            f"{name} must have shape {_written(shape)}, real numbers and the device of {like_name} "
            f"({describe(like)}), got {describe(tensor)}"
        )


def promoted(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast both in the wider dtype, as torch's own operators of several tensors take them; else as they are.

    Without autocast clouds of two dtypes are more likely a mistake, and check_like says so.
    """
    # meta has no autocast to ask for.
    if one.dtype == two.dtype or one.is_meta or not torch.is_autocast_enabled(one.device.type):
        return one, two
    dtype = torch.promote_types(one.dtype, two.dtype)
    return one.to(dtype), two.to(dtype)


def _has_shape(name: str, tensor: Tensor, shape: Sequence[int | None]) -> bool:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    return tensor.dim() == len(shape) and all(
        want is None or size == want for size, want in zip(tensor.shape, shape, strict=True)
    )


def _written(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def check_count(name: str, value: Any) -> int:
    """`value`; ValueError unless it is a whole number of at least 1. NumPy's become Python's, torch.export's sizes stay
    symbols.
    """
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return int(value) if isinstance(value, np.integer) else cast(int, value)


def some(count: int | torch.SymInt) -> bool:
    """Whether a count may be above 0. torch.export's symbols are not asked: the answer would bind the sizes. In its
    strict mode they say that they are integers.
    """
    return isinstance(count, torch.SymInt) or torch.compiler.is_exporting() or bool(count > 0)


def check_integers(name: str, tensor: Tensor, low: int, high: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """`tensor` as int64; ValueError unless it is int32/int64 of `shape` on the device of `like`, all in [low, high]."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        got = describe(tensor) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be an int32 or int64 tensor {list(shape)}, got {got}")
    if list(tensor.shape) != list(shape) or tensor.device != like.device:
        raise ValueError(f"{name} must have shape {list(shape)} on {like.device}, got {describe(tensor)}")
    fits = (tensor >= low) & (tensor <= high)
    checked: Tensor = ops.require(tensor.long(), fits, f"{name} must lie in [{low}, {{most}}]", high)
    return checked


def check_lengths(name: str, lengths: Tensor | None, points: Tensor) -> Tensor | None:
    """`lengths` as int64; ValueError unless it is None or [B] integers between 0 and N, for points [B, N, D]."""
    if lengths is None:
        return None
    return check_integers(name, lengths, 0, points.shape[1], points.shape[:1], points)


def in_dtype(points: Tensor, dtype: torch.dtype) -> Tensor:
    """points.to(dtype), which takes its time where nothing is to do."""
    return points if points.dtype == dtype else points.to(dtype)


def working_dtype(points: Tensor) -> torch.dtype:
    """float64 stays; everything narrower is computed in float32."""
    return torch.float64 if points.dtype == torch.float64 else torch.float32
