"""Which implementation of an op runs: Triton, Numba, plain torch, or torch-cluster."""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
log = logging.getLogger(__name__)
BACKENDS = ("triton", "numba", "torch", "cluster")
MAX_K = 128
"""Neighbours a query beyond which the searches of Triton and Numba leave the work to plain torch.

Numba's, which puts each neighbour into its place among those that it has, takes 126 ms for 128 of [128, 64 x 1024] and
253 for 200, plain torch's sort 92 and 112; of [4, 512 x 8192] 37 and 77, and 83 and 107 (docs/tried.md).
"""
TRITON_NEEDS = {"tuple": "3.3", "topk": "3.4"}
"""What the kernels use of triton.language that older Tritons lack, and since when it is there.

torch 2.6 brings Triton 3.2, 2.7 brings 3.3, 2.8 brings 3.4. All kernels compile with 3.4, 3.5, 3.6 and 3.9.
"""


def choose(backend: str | None, points: Tensor, op: str, *, cluster: bool = False, K: int = 1) -> str:
    """Name of the backend that runs `op` on `points`: "triton", "numba", "torch" or "cluster".

    `backend` decides if given, else the environment variable RECON_KERNELS, else where the points are: Triton, where it
    is one that has what the kernels use, for float32 or less on a CUDA device, Numba on a CPU, plain torch for all
    others. ValueError where the backend asked for is unknown or not available here, or (if asked for by `backend`) does
    not offer the op for these arguments; RECON_KERNELS leaves such ops to the automatic choice.
    """
    asked = backend or _environment()
    if asked is None:
        return _automatic(points, K)
    if asked not in BACKENDS:
        where = "backend" if backend else "RECON_KERNELS"
        raise ValueError(f'{where} must be "triton", "numba", "torch" or "cluster", got {asked!r}')
    missing = _missing(asked)
    if missing:
        raise ValueError(f"backend {asked} needs the package {missing}")
    if asked == "triton" and not points.is_cuda and not _interpreted():
        raise ValueError(
            "backend triton needs points on a CUDA device, or TRITON_INTERPRET=1 for tests; "
            f"these are on {points.device}"
        )
    if asked == "numba" and points.device.type != "cpu":
        raise ValueError(f"backend numba needs points on the CPU; these are on {points.device}")
    lacks = "has no such op" if asked == "cluster" and not cluster else _lacks(asked, points, K)
    if not lacks:
        return asked
    if backend:
        raise ValueError(f'backend {asked} cannot run {op}: it {lacks}; use backend="torch"')
    return _automatic(points, K)


@cache
def implementation(backend: str, op: str) -> ModuleType:
    """The module of `backend` that has the op family `op` ("fps", "knn", "chamfer", "group", "interpolate")."""
    return import_module("recon.kernels.on_cluster" if backend == "cluster" else f"recon.kernels.on_{backend}.{op}")


def _automatic(points: Tensor, K: int) -> str:
    """What runs on these points unless somebody says otherwise."""
    if not points.is_cuda and points.device.type == "cpu" and K <= MAX_K and not _missing("numba"):
        return "numba"
    fitting = "triton" if points.is_cuda else "torch"
    return "torch" if _missing(fitting) or _lacks(fitting, points, K) else fitting


def _lacks(backend: str, points: Tensor, K: int) -> str:
    """Why a backend cannot take these arguments, or ""."""
    if backend == "triton" and points.dtype == torch.float64:
        return "computes in float32, and the points are float64"
    return f"takes K <= {MAX_K}, got {K}" if backend in ("triton", "numba") and K > MAX_K else ""


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
def _missing(backend: str) -> str:
    """What a backend lacks to run at all, or ""."""
    if backend == "triton":
        return _triton_missing()
    if backend == "numba":
        return _numba_missing()
    return _package_missing("torch_cluster") if backend == "cluster" else ""


@cache
def _numba_missing() -> str:
    missing = _package_missing("numba")
    if missing:
        return missing
    try:
        import_module("numba")
    except (ImportError, OSError) as error:  # one that is older than NumPy refuses it
        log.warning("CPU kernels run in plain torch, several times slower: numba cannot be imported: %s", error)
        return f"numba, which cannot be imported: {error}"
    return ""


def _triton_missing() -> str:
    """What Triton lacks to run the kernels at all, or ""."""
    missing = _package_missing("triton")
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


def _package_missing(package: str) -> str:
    return "" if find_spec(package) else f"{package}, which is not installed"
