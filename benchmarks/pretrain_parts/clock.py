"""How benchmarks/pretrain.py measures: seconds by part, the rate of a plain matrix product.

On a CPU a second is one of the process's CPU time, which other work on the machine does not enter; on a GPU it is the
device's own, between two events.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

STEP = "step"
SPAN = {"cpu": 1e-3, "cuda": 5e-3}
"""Seconds between two looks at the clock, at the least: an event's resolution is half a microsecond."""
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}


class Watch:
    """Adds up the seconds of named spans, which may lie inside each other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = _mark(self.device)
        yield
        self.marks.append((name, start, _mark(self.device)))

    def around(self, owner: Any, method: str, name: str) -> None:
        """Make every call of `owner.method` a span."""
        run = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return run(*args, **kwargs)

        setattr(owner, method, timed)

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        marks, self.marks = self.marks, []
        seconds: dict[str, float] = {}
        for name, start, end in marks:
            seconds[name] = seconds.get(name, 0.0) + _between(start, end)
        return seconds


def elapsed(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of one `run`, over `repeats` spans of as many runs as the clock needs."""
    run()  # pages, caches and compiled kernels
    once = _spent(run, device, 1)
    count = max(1, round(SPAN[device.type] / max(once, 1e-7)))
    return statistics.median(_spent(run, device, count) for _ in range(repeats))


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large square matrix product, a multiplication and an addition counted as two."""
    size = PEAK_SIZE[device.type]
    one, two, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return 2 * size**3 / elapsed(lambda: torch.mm(one, two, out=out), device)


def _spent(run: Callable[[], Any], device: torch.device, count: int) -> float:
    start = _mark(device)
    for _ in range(count):
        run()
    end = _mark(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _between(start, end) / count


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
