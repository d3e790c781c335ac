"""Time every op of kernels/ against plain torch, side by side, after checking it against the reference.

    python benchmarks/kernels.py [--device cpu|cuda] [--threads N] [--seconds S]

Needs torch and NumPy and a source checkout, nothing installed. Writes benchmarks/results/kernels-<device>.json and
the same as a markdown table, kernels-<device>.md. The two contestants of a case take turns, so that whatever else
the machine does falls on both.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import kernels  # noqa: E402
from kernels import reference  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MIN_REPEATS, MAX_REPEATS = 3, 15


@dataclass(frozen=True)
class Case:
    """One op at one size; `check` raises AssertionError where the op is not the reference."""

    op: str
    size: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]
    check: Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the repeats; megabytes beyond what was held before, None where they cannot be read."""

    median: float
    low: float
    high: float
    repeats: int
    extra_mb: float | None


def plain_fps(points: Tensor, K: int) -> Tensor:
    """The loop that most repositories carry."""
    num_clouds, num_points, _ = points.shape
    idx = torch.zeros(num_clouds, K, dtype=torch.int64, device=points.device)
    distance = torch.full((num_clouds, num_points), 1e10, device=points.device)
    farthest = torch.zeros(num_clouds, dtype=torch.int64, device=points.device)
    batch = torch.arange(num_clouds, device=points.device)
    for k in range(K):
        idx[:, k] = farthest
        center = points[batch, farthest][:, None]
        distance = torch.minimum(distance, ((points - center) ** 2).sum(-1))
        farthest = distance.max(-1)[1]
    return idx


def plain_knn(p1: Tensor, p2: Tensor, K: int) -> tuple[Tensor, Tensor]:
    found = torch.cdist(p1, p2).topk(K, largest=False)
    return found.values, found.indices


def plain_group(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor]:
    batch = torch.arange(len(points), device=points.device)[:, None]
    centers = points[batch, plain_fps(points, num_group)]
    _, near = plain_knn(centers, points, group_size)
    return points[batch[:, None], near] - centers[:, :, None], centers


def plain_chamfer(x: Tensor, y: Tensor) -> Tensor:
    dists = torch.cdist(x, y)
    return (dists.min(2).values ** 2).mean() + (dists.min(1).values ** 2).mean()


def plain_interpolate(known: Tensor, features: Tensor, query: Tensor) -> Tensor:
    dists, idx = plain_knn(query, known, 3)
    weights = 1 / (dists**2 + 1e-8)
    weights = weights / weights.sum(2, keepdim=True)
    batch = torch.arange(len(known), device=known.device)[:, None, None]
    return (features[batch, idx] * weights[..., None]).sum(2)


def with_backward(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, at_once: int) -> Tensor:
    """Gradient of the loss in x, `at_once` clouds at a time (plain torch cannot hold all of the large ones)."""
    x = x.detach().requires_grad_()
    for one, two in zip(x.split(at_once), y.split(at_once), strict=True):
        loss(one, two).backward()
    assert x.grad is not None
    return x.grad


def split_forward(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, at_once: int) -> None:
    for one, two in zip(x.split(at_once), y.split(at_once), strict=True):
        loss(one, two)


def make_cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def cloud(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    for num_clouds, num_points, K in ((128, 1024, 64), (128, 2048, 128), (32, 8192, 512)):
        points = cloud(num_clouds, num_points, 3)
        yield from fps_and_knn(points, K)
    points = cloud(128, 1024, 3)
    yield Case(
        "group_points",
        "[128, 1024] 64 x 32",
        lambda: kernels.group_points(points, 64, 32),
        lambda: plain_group(points, 64, 32),
        lambda: same(kernels.group_points(points[:1], 64, 32), reference.groups(points[:1].cpu(), 64, 32)),
    )
    # Plain torch takes minutes for 32 clouds of 8192 points on a CPU; both contestants take them one by one, so 4 do.
    num_large = 32 if device.type == "cuda" else 4
    for shape, at_once in (
        ((2432, 16, 3), 2432),
        ((4992, 32, 3), 4992),
        ((128, 1024, 3), 128),
        ((num_large, 8192, 3), 1),
    ):
        yield from chamfer(cloud(*shape), cloud(*shape), at_once)
    known, features, query = cloud(32, 128, 3), cloud(32, 128, 384), cloud(32, 2048, 3)
    yield Case(
        "interpolate_three",
        "[32, 128 -> 2048, 384]",
        lambda: kernels.interpolate_three(known, features, query),
        lambda: plain_interpolate(known, features, query),
        lambda: torch.testing.assert_close(
            kernels.interpolate_three(known, features, query)[:1, :200].cpu(),
            reference.interpolate(known[:1].cpu(), features[:1].cpu(), query[:1, :200].cpu()),
        ),
    )


def fps_and_knn(points: Tensor, K: int) -> Iterator[Case]:
    num_clouds, num_points, _ = points.shape
    centers, idx = kernels.sample_farthest_points(points, K=K)

    def check_fps() -> None:
        expected = reference.farthest_points(points[:1].cpu(), [num_points], K, [0])
        assert torch.equal(idx[:1].cpu(), expected)

    def check_knn() -> None:
        found = kernels.knn_points(centers, points, K=32)
        expected = reference.knn(centers[:1].cpu(), points[:1].cpu(), [K], [num_points], 32)
        same((found.dists[:1], found.idx[:1]), expected)

    yield Case(
        "sample_farthest_points",
        f"[{num_clouds}, {num_points} -> {K}]",
        lambda: kernels.sample_farthest_points(points, K=K),
        lambda: plain_fps(points, K),
        check_fps,
    )
    yield Case(
        "knn_points",
        f"[{num_clouds}, {K} x {num_points}] K=32",
        lambda: kernels.knn_points(centers, points, K=32),
        lambda: plain_knn(centers, points, 32),
        check_knn,
    )


def chamfer(x: Tensor, y: Tensor, at_once: int) -> Iterator[Case]:
    loss = kernels.ChamferL2()

    def check() -> None:
        some = min(256, x.shape[1])
        for one, two in ((x, y), (y, x)):
            found = kernels.knn_points(one[:1, :some], two[:1])
            expected = reference.knn(one[:1, :some].cpu(), two[:1].cpu(), [some], [two.shape[1]], 1)
            same((found.dists, found.idx), expected)
        whole = sum(kernels.knn_points(one[:2], two[:2]).dists.mean() for one, two in ((x, y), (y, x)))
        torch.testing.assert_close(loss(x[:2], y[:2]), whole)

    size = str(list(x.shape))
    yield Case("ChamferL2", size, lambda: loss(x, y), lambda: split_forward(plain_chamfer, x, y, at_once), check)
    yield Case(
        "ChamferL2 + backward",
        size,
        lambda: with_backward(loss, x, y, len(x)),
        lambda: with_backward(plain_chamfer, x, y, at_once),
        check,
    )


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), two)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def extra_memory(run: Callable[[], Any], device: torch.device) -> float | None:
    """Peak megabytes beyond those held before the run."""
    if device.type == "cuda":
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


def measure(case: Case, device: torch.device, seconds: float) -> tuple[Timing, Timing]:
    """Ours and plain, by turns, for about `seconds` in all."""
    runs = (case.ours, case.plain)
    memory = [extra_memory(run, device) for run in runs]  # also the warm-up
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < MIN_REPEATS or (time.perf_counter() < end and len(times[0]) < MAX_REPEATS):
        for run, taken in zip(runs, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            taken.append((time.perf_counter() - start) * 1e3)
    ours, plain = (
        Timing(statistics.median(taken), min(taken), max(taken), len(taken), megabytes)
        for taken, megabytes in zip(times, memory, strict=True)
    )
    return ours, plain


def markdown(rows: list[dict[str, Any]], about: str) -> str:
    lines = [
        about,
        "",
        "| op | size | ms (low to high) | plain torch ms (low to high) | ratio | extra MB | plain's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, plain = row["ours"], row["plain"]
        spans = [f"{t['median']:.1f} ({t['low']:.1f} to {t['high']:.1f})" for t in (ours, plain)]
        memory = ["?" if t["extra_mb"] is None else f"{t['extra_mb']:.0f}" for t in (ours, plain)]
        cells = [row["op"], row["size"], *spans, f"{row['ratio']:.2f}", *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the point-cloud kernels against plain torch.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=4, help="time to spend on each case, roughly")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()

    rows: list[dict[str, Any]] = []
    for case in make_cases(device):
        case.check()
        ours, plain = measure(case, device, arguments.seconds)
        ratio = plain.median / ours.median
        rows.append({"op": case.op, "size": case.size, "ratio": ratio, "ours": asdict(ours), "plain": asdict(plain)})
        sys.stderr.write(f"{case.op} {case.size}: {ours.median:.1f} ms, plain {plain.median:.1f} ms, {ratio:.2f}\n")

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    facts = {"device": hardware, "threads": torch.get_num_threads(), "torch": torch.__version__, "load": load}
    about = (
        f"{hardware}, {facts['threads']} CPU thread(s), torch {torch.__version__}, "
        f"load average {load:.1f} at the end, {time.strftime('%Y-%m-%d')}."
    )
    slug = device.type if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"kernels-{slug}.json").write_text(json.dumps({**facts, "cases": rows}, indent=1) + "\n")
    table = markdown(rows, about)
    (RESULTS / f"kernels-{slug}.md").write_text(table)
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
