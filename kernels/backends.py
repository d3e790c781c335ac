"""Which implementation of an op runs: Triton, plain torch, or torch-cluster."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
BACKENDS = ("triton", "torch", "cluster")
TRITON_MAX_K = 128
"""Neighbours a query beyond which the Triton search leaves the work to plain torch."""
TRITON_NEEDS = {"tuple": "3.3", "topk": "3.4"}
"""What the kernels use of triton.language that older Tritons lack, and since when it is there.

torch 2.6 brings Triton 3.2, 2.7 brings 3.3, 2.8 brings 3.4. All kernels compile with 3.4, 3.5, 3.6 and 3.9.
"""


def choose(backend: str | None, points: Tensor, op: str, *, cluster: bool = False, K: int = 1) -> str:
    """Name of the backend that runs `op` on `points`: "triton", "torch" or "cluster".

    `backend` decides if given, else the environment variable RECON_KERNELS, else Triton, where it is one that has what
    the kernels use, for points of float32 or less on a CUDA device, and plain torch for all others. ValueError where
    the backend asked for is unknown or not available here, or (if asked for by `backend`) does not offer the op for
    these arguments; RECON_KERNELS leaves such ops to the automatic choice.
    """
    asked = backend or _environment()
    if asked is None:
        return "triton" if _triton_fits(points, K) else "torch"
    if asked not in BACKENDS:
        where = "backend" if backend else "RECON_KERNELS"
        raise ValueError(f'{where} must be "triton", "torch" or "cluster", got {asked!r}')
    if asked == "torch":
        return asked
    missing = _triton_missing() if asked == "triton" else _package_missing("torch_cluster")
    if missing:
        raise ValueError(f"backend {asked} needs the package {missing}")
    if asked == "triton" and not points.is_cuda and not _interpreted():
        raise ValueError(
            "backend triton needs points on a CUDA device, or TRITON_INTERPRET=1 for tests; "
            f"these are on {points.device}"
        )
    lacks = _triton_lacks(points, K) if asked == "triton" else "" if cluster else "has no such op"
    if not lacks:
        return asked
    if backend:
        raise ValueError(f'backend {asked} cannot run {op}: it {lacks}; use backend="torch"')
    return "triton" if asked == "cluster" and _triton_fits(points, K) else "torch"


def implementation(backend: str, op: str) -> ModuleType:
    """The module of `backend` that has the op family `op` ("fps", "knn", "chamfer", "group", "interpolate")."""
    return import_module("recon.kernels.on_cluster" if backend == "cluster" else f"recon.kernels.on_{backend}.{op}")


def _triton_fits(points: Tensor, K: int) -> bool:
    """Whether the Triton kernels are what runs on these points, unless somebody says otherwise."""
    return points.is_cuda and not _triton_missing() and not _triton_lacks(points, K)


def _triton_lacks(points: Tensor, K: int) -> str:
    """Why the Triton kernels cannot take these arguments, or ""."""
    if points.dtype == torch.float64:
        return "computes in float32, and the points are float64"
    return f"takes K <= {TRITON_MAX_K}, got {K}" if K > TRITON_MAX_K else ""


def _constant(look_up: Callable[..., R]) -> Callable[..., R]:
    """A constant to torch.compile, which could not trace the look-up.

    torch.compiler.assume_constant_result does the same, and loads the whole compiler first: half of what it takes a
    process to start.
    """
    vars(look_up)["_dynamo_marked_constant"] = True
    return look_up


@_constant
def _environment() -> str | None:
    return os.environ.get("RECON_KERNELS") or None


@_constant
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@_constant
def _triton_missing() -> str:
    """What Triton lacks to run the kernels at all, or ""."""
    missing: str = _package_missing("triton")
    if missing:
        return missing
    try:
        language, triton = import_module("triton.language"), import_module("triton")
    except (ImportError, OSError) as error:
        return f"triton, which cannot be imported: {error}"
    lacks = [name for name in TRITON_NEEDS if not hasattr(language, name)]
    if not lacks:
        return ""
    needed, version = max(TRITON_NEEDS[name] for name in lacks), triton.__version__
    return f"triton {needed} or newer: {version} has no tl." + " and no tl.".join(lacks)


@_constant
def _package_missing(package: str) -> str:
    return "" if find_spec(package) else f"{package}, which is not installed"
