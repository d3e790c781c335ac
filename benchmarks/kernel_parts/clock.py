"""How benchmarks/kernels.py measures time, memory and the rates of a device."""

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MIN_REPEATS, MAX_REPEATS = 3, 30
GPU_SPAN_MS = 10.0
"""A GPU measurement spans about this long, as events have a resolution of half a microsecond."""
GRAPH_RUNS = 10

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the repeats, scaled up to all clouds where a contestant took a `share` of them.

    extra_mb: megabytes beyond what was held before, None where they cannot be read. device_ms: median of CUDA graph
    replays, in which no launch is waited for; None where there is no graph.
    """

    median: float
    low: float
    high: float
    repeats: int
    extra_mb: float | None
    device_ms: float | None = None
    share: float = 1

    def span(self) -> str:
        digits = 3 if self.median < 1 else 1
        mark = "*" if self.share < 1 else ""
        return f"{self.median:.{digits}f}{mark} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def measure(
    runs: Mapping[str, Run],
    device: torch.device,
    seconds: float,
    capturable: Collection[str],
    shares: Mapping[str, float],
) -> dict[str, Timing]:
    """The contestants by turns, for about `seconds` in all."""
    memory = {name: extra_memory(run, device) for name, run in runs.items()}  # also the warm-up
    count = {name: _times_to_run(run, device) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    repeats = 0
    while repeats < MIN_REPEATS or (time.perf_counter() < end and repeats < MAX_REPEATS):
        for name, run in runs.items():
            times[name].append(_clock(run, device, count[name]))
        repeats += 1
    timings = {}
    for name, taken in times.items():
        share = shares.get(name, 1)
        scaled = [value / share for value in taken]
        device_ms = _device_time(runs[name]) / share if name in capturable else None
        timings[name] = Timing(
            statistics.median(scaled), min(scaled), max(scaled), repeats, memory[name], device_ms, share
        )
    return timings


def _times_to_run(run: Run, device: torch.device) -> int:
    """How often to run between two looks at the clock."""
    if device.type != "cuda":
        return 1
    return max(1, min(1000, round(GPU_SPAN_MS / max(1e-3, _clock(run, device, 1)))))


def _clock(run: Run, device: torch.device, count: int) -> float:
    """Milliseconds of one of `count` runs."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) * 1e3 / count
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start_event.record()
    for _ in range(count):
        run()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / count


def graphed(run: Run, count: int = 1) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `count` runs, and the last one's result, which a replay writes again."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            result = run()
    return graph, result


def _device_time(run: Run) -> float:
    """Median milliseconds of a run inside a CUDA graph of several."""
    graph, _ = graphed(run, GRAPH_RUNS)
    device = torch.device("cuda")
    graph.replay()
    return statistics.median(_clock(graph.replay, device, 1) for _ in range(10)) / GRAPH_RUNS


def extra_memory(run: Run, device: torch.device) -> float | None:
    """Peak megabytes beyond those held before the run."""
    if device.type == "cuda":
        run()  # compiled kernels and library workspaces are not the op's memory
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status = Path("/proc/self/status")
    try:
        # Freed pages go back first, or the run could hide in them; writing 5 then resets the peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before_kb = int(re.findall(r"VmRSS:\s*(\d+)", status.read_text())[0])
        run()
        return (int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0]) - before_kb) / 1024
    except (OSError, AttributeError, IndexError):
        return None


def device_rates(device: torch.device) -> tuple[float, float]:
    """float32 operations and copied bytes (read and written) a second that the GPU reaches, measured."""
    size = 8192
    one, two = torch.randn(2, size, size, device=device)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flops = 2 * size**3 / (_best(lambda: torch.mm(one, two), device) / 1e3)
    torch.set_float32_matmul_precision(precision)
    return flops, 2 * one.nbytes / (_best(lambda: two.copy_(one), device) / 1e3)


def _best(run: Run, device: torch.device) -> float:
    run()
    return min(_clock(run, device, 3) for _ in range(5))
