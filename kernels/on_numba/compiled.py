"""How a function is compiled, and its work shared among threads."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numba.core.caching import FunctionCache
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
Bits = NDArray[np.signedinteger[Any]]

PART = 2**18
"""Nanoseconds of work that a thread is worth waking for, which takes about 50 microseconds."""
_ALL = np.empty(0, np.int64)
log = logging.getLogger(__name__)


def compiled(function: Function) -> Function:
    """Compile at the first call of a combination of types, and keep the code on disk for other processes.

    Numba looks whether the function's own file has changed, and at no other: a compiled function calls none of another
    file. The code is kept beside that file, or where the user's caches are; where neither can be written to, every
    process compiles anew. No arithmetic is reordered or contracted, and a division by 0 is IEEE's.
    """
    made = numba.njit(function, nogil=True, error_model="numpy")
    try:
        made._cache = _Kept(function)  # type: ignore[no-untyped-call]
    except RuntimeError:  # no place to keep it
        _tell_once()
    return cast(Function, made)


class _Kept(FunctionCache):
    """Numba's cache of a function, in which a file that is broken counts as none, and a full disk stops nobody."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for a signature, or None."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # whatever unpickling half a file raises
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it for other processes, if that can be."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError:
            _tell_once()


@cache
def _tell_once() -> None:
    log.warning(
        "compiled kernels cannot be kept, and each process compiles them anew, for some seconds: "
        "set NUMBA_CACHE_DIR to a folder that can be written to"
    )


def bits(values: NDArray[np.floating]) -> Bits:
    """The same memory as integers, which order as floats that are not negative do, and whose minima are vectorised."""
    return values.view(np.int64 if values.dtype == np.float64 else np.int32)


INFINITY = {np.dtype(kind): bits(np.full(1, np.inf, kind)) for kind in (np.float32, np.float64)}
"""[1] bits of what no distance is beyond."""


def in_use(lengths: Tensor | None) -> NDArray[np.int64]:
    """[B] points in use of clouds; [0] where all are."""
    return _ALL if lengths is None else lengths.numpy()


def shared(run: Callable[[int, int], None], count: int, nanoseconds: float) -> None:
    """run(first, last) over parts of `count` items, in as many threads as torch would use and as are worth it.

    An item takes about so many nanoseconds.
    """
    worth = min(count, int(count * nanoseconds / PART))
    workers = min(worth, torch.get_num_threads()) if worth > 1 else 1
    if workers <= 1:
        run(0, count)
        return
    edges = [count * part // workers for part in range(workers + 1)]
    try:
        others = [_pool(os.getpid()).submit(run, *edge) for edge in pairwise(edges[1:])]
    except RuntimeError:  # no more threads, as the interpreter is ending; what one has begun gives the same
        run(0, count)
        return
    run(*edges[:2])
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that stay, for each process its own, as a fork has none of them.

    New ones for every call are often started on the caller's own core, and then save nothing.
    """
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="recon-kernels")
