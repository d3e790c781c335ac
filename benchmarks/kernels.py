"""Time every op of kernels/ at ReCon's real sizes against plain torch, the naive loop, and libraries, in one run.

    python benchmarks/kernels.py [--device cpu|cuda] [--threads N] [--seconds S] [--budget S] [--only WORD]
                                 [--check-only]

Needs torch, NumPy and a source checkout (and Triton on a GPU, Numba on a CPU), nothing installed; torch-cluster, and on
a CPU fpsample, pykdtree, SciPy and faiss-cpu, take part where they are installed. Every op is checked against
kernels/reference.py before it is timed. The contestants of a case take turns, so that whatever else the machine does
falls on all of them. Writes benchmarks/results/kernels-<device>.json (cpu-1: one thread) and the same as a table,
kernels-<device>.md; with --only, which times the cases whose name holds WORD, it writes nothing.

--check-only times nothing: it checks every backend that the device has in every case, on a GPU also that the ops
neither wait for the device nor change inside a CUDA graph, and exits with 1 if anything differs.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernel_parts import contestants as rivals  # noqa: E402
from kernel_parts import cpu_libraries as libraries  # noqa: E402
from kernel_parts.clock import device_rates, graphed, measure  # noqa: E402
from kernel_parts.page import markdown, versions  # noqa: E402

from recon import kernels  # noqa: E402
from recon.kernels import chamfer, reference  # noqa: E402
from recon.pipeline.base.machine import cores, described_processor  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SEED = 0
SAMPLING = ((128, 1024, 64), (128, 2048, 128), (32, 8192, 512))
"""Clouds, points, samples; ReCon never samples 8192 points for more than 32 clouds at once."""
PAIR_FLOPS = 8
"""Three differences, three squares, two sums."""

Backend = str | None


@dataclass(frozen=True)
class Case:
    """One op at one size. `check(backend)` raises AssertionError where the op is not the reference."""

    op: str
    size: str
    ours: Callable[[Backend], Any]
    check: Callable[[Backend], None]
    rivals: dict[str, Callable[[], Any]]
    flops: float
    num_bytes: float
    cluster: bool = False  # kernels/ has a torch-cluster backend for the op
    share: dict[str, float] = field(default_factory=dict)  # of the clouds that a slow rival takes

    @property
    def name(self) -> str:
        return f"{self.op} {self.size}"


def make_cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(SEED)

    def cloud(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    for num_clouds, num_points, K in SAMPLING:
        yield from fps_and_knn(cloud(num_clouds, num_points, 3), K)
    yield group_case(cloud(128, 1024, 3), 64, 32)
    for shape in ((4992, 32, 3), (2432, 16, 3), (128, 1024, 3), (32, 8192, 3)):
        yield from chamfer_cases(cloud(*shape), cloud(*shape))
    yield interpolate_case(cloud(32, 128, 3), cloud(32, 128, 384), cloud(32, 2048, 3))


def fps_and_knn(points: Tensor, K: int, size: int = 32) -> Iterator[Case]:
    num_clouds, num_points, _ = points.shape
    centers, _ = kernels.sample_farthest_points(points, K=K)

    def check_fps(backend: Backend) -> None:
        _, idx = kernels.sample_farthest_points(points, K=K, backend=backend)
        same((idx[:1],), (reference.farthest_points(points[:1].cpu(), [num_points], K, [0]),))

    def check_knn(backend: Backend) -> None:
        found = kernels.knn_points(centers, points, K=size, backend=backend)
        for b in (0, num_clouds - 1):
            some = slice(b, b + 1)
            expected = reference.knn(centers[some].cpu(), points[some].cpu(), [K], [num_points], size)
            same((found.dists[some], found.idx[some]), expected)

    sampling, pairs = num_clouds * (K - 1) * num_points, num_clouds * K * num_points
    yield Case(
        "sample_farthest_points",
        f"[{num_clouds}, {num_points} -> {K}]",
        lambda backend: kernels.sample_farthest_points(points, K=K, backend=backend),
        check_fps,
        {
            "plain torch": lambda: rivals.plain_fps(points, K),
            "torch-cluster": lambda: rivals.cluster_fps(points, K),
            "naive": lambda: rivals.naive_fps(points, K),
            **libraries.fps(points, K),
        },
        sampling * (PAIR_FLOPS + 2),
        4 * points.numel() + num_clouds * K * (8 + 12),
        cluster=True,
    )
    yield Case(
        "knn_points",
        f"[{num_clouds}, {K} x {num_points}] K={size}",
        lambda backend: kernels.knn_points(centers, points, K=size, backend=backend),
        check_knn,
        {
            "plain torch": lambda: rivals.plain_knn(centers, points, size),
            "torch-cluster": lambda: rivals.cluster_knn(centers, points, size),
            "naive": lambda: rivals.naive_knn(centers, points, size),
            **libraries.knn(centers, points, size),
        },
        pairs * (PAIR_FLOPS + 1),
        4 * (points.numel() + centers.numel()) + num_clouds * K * size * 12,
        cluster=True,
    )


def group_case(points: Tensor, num_group: int, size: int) -> Case:
    plain = rivals.group(rivals.plain_fps, rivals.plain_knn)
    naive = rivals.group(rivals.naive_fps, rivals.naive_knn)
    num_clouds, num_points, _ = points.shape

    def check(backend: Backend) -> None:
        found = kernels.group_points(points, num_group, size, backend=backend)
        same((found[0][:1], found[1][:1]), reference.groups(points[:1].cpu(), num_group, size))

    return Case(
        "group_points",
        f"[{num_clouds}, {num_points}] {num_group} x {size}",
        lambda backend: kernels.group_points(points, num_group, size, backend=backend),
        check,
        {
            "plain torch": lambda: plain(points, num_group, size),
            "torch-cluster": lambda: rivals.cluster_group(points, num_group, size),
            "naive": lambda: naive(points, num_group, size),
            **libraries.groups(points, num_group, size),
        },
        num_clouds * num_group * num_points * (2 * PAIR_FLOPS + 3),
        4 * points.numel() + num_clouds * num_group * (size * (12 + 8) + 12 + 8),
        cluster=True,
    )


def chamfer_cases(x: Tensor, y: Tensor) -> Iterator[Case]:
    num_clouds, num_points, _ = x.shape
    # The whole batch of the largest case would fill 8 GB with distances, so plain torch takes single clouds.
    large = num_points > 4096
    plain = rivals.one_by_one(rivals.plain_chamfer) if large else rivals.plain_chamfer
    some_plain = 4 if large and x.device.type == "cpu" else num_clouds
    # Its loops are launches to a GPU, which cost the same a cloud however few there are.
    some_naive = max(1, num_clouds // (128 if x.device.type == "cuda" else 16))
    share = {"naive": some_naive / num_clouds, "plain torch": some_plain / num_clouds}
    points = 2 * num_clouds * num_points

    def loss(one: Tensor, two: Tensor, backend: Backend) -> Any:
        return kernels.chamfer_distance(one, two, backend=backend)[0]

    def check(backend: Backend) -> None:
        one, two = (x, y) if x.device.type == "cuda" else (x[:2], y[:2])
        found = chamfer.nearest(one, two, backend=backend)
        some = min(256, num_points)
        for b in (0, len(one) - 1):
            for forth, back, dists, idx in ((one, two, *found[:2]), (two, one, *found[2:])):
                clouds = forth[b : b + 1, :some].cpu(), back[b : b + 1].cpu()
                expected = reference.knn(*clouds, [some], [num_points], 1)
                same((dists[b : b + 1, :some, None], idx[b : b + 1, :some, None]), expected)

    def check_gradient(backend: Backend) -> None:
        check(backend)
        one, two = x[:2].double().requires_grad_(), y[:2].double().requires_grad_()
        _, idx_x, _, idx_y = chamfer.nearest(x[:2], y[:2], backend=backend)
        clouds = torch.arange(2, device=x.device)[:, None]
        squares = (one - two[clouds, idx_x]) ** 2, (two - one[clouds, idx_y]) ** 2
        expected = torch.autograd.grad(sum(square.sum(2).mean() for square in squares), (one, two))
        found = rivals.with_backward(lambda a, b: loss(a, b, backend), x[:2], y[:2])
        torch.testing.assert_close(found, tuple(grad.float() for grad in expected))

    searched = {name: libraries.chamfer(search) for name, search in libraries.KNN.items()}

    yield Case(
        "chamfer_distance",
        str(list(x.shape)),
        lambda backend: loss(x, y, backend),
        check,
        {
            "plain torch": lambda: plain(x[:some_plain], y[:some_plain]),
            "torch-cluster": lambda: rivals.cluster_chamfer(x, y),
            "naive": lambda: rivals.naive_chamfer(x[:some_naive], y[:some_naive]),
            **{name: (lambda run=run: run(x, y)) for name, run in searched.items()},
        },
        num_clouds * num_points**2 * (PAIR_FLOPS + 2),
        points * (12 + 4 + 8),
        share=share,
    )
    yield Case(
        "chamfer_distance + backward",
        str(list(x.shape)),
        lambda backend: rivals.with_backward(lambda a, b: loss(a, b, backend), x, y),
        check_gradient,
        {
            "plain torch": lambda: rivals.with_backward(plain, x[:some_plain], y[:some_plain]),
            "torch-cluster": lambda: rivals.with_backward(rivals.cluster_chamfer, x, y),
            "naive": lambda: rivals.with_backward(rivals.naive_chamfer, x[:some_naive], y[:some_naive]),
            **{name: (lambda run=run: rivals.with_backward(run, x, y)) for name, run in searched.items()},
        },
        num_clouds * num_points**2 * (PAIR_FLOPS + 2),
        points * (12 + 4 + 8) + points * (12 + 4 + 8 + 12),
        share=share,
    )


def interpolate_case(known: Tensor, features: Tensor, query: Tensor) -> Case:
    num_clouds, num_queries, _ = query.shape
    width = features.shape[2]

    def check(backend: Backend) -> None:
        torch.testing.assert_close(
            kernels.interpolate_three(known, features, query, backend=backend)[:1, :200].cpu(),
            reference.interpolate(known[:1].cpu(), features[:1].cpu(), query[:1, :200].cpu()),
        )

    return Case(
        "interpolate_three",
        f"[{num_clouds}, {known.shape[1]} -> {num_queries}, {width}]",
        lambda backend: kernels.interpolate_three(known, features, query, backend=backend),
        check,
        {
            "plain torch": lambda: rivals.plain_interpolate(known, features, query),
            "torch-cluster": lambda: rivals.cluster_interpolate(known, features, query),
            "naive": lambda: rivals.naive_interpolate(known[:2], features[:2], query[:2]),
            **libraries.interpolate(known, features, query),
        },
        num_clouds * num_queries * (known.shape[1] * (PAIR_FLOPS + 1) + 6 * width),
        4 * (known.numel() + features.numel() + query.numel() + num_clouds * num_queries * width),
        share={"naive": 2 / num_clouds},
    )


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), two), "differs from the reference"


def has_cluster() -> bool:
    return find_spec("torch_cluster") is not None


def check_everything(device: torch.device, only: str) -> int:
    """Number of (case, backend) pairs that differ from the reference, or, on a GPU, wait for it or resist capture."""
    wrong = 0
    for case in make_cases(device):
        if only not in case.name:
            continue
        own = "triton" if device.type == "cuda" else "numba"
        backends = ["torch", *([own] if find_spec(own) else [])]
        for backend in [*backends, *(["cluster"] if case.cluster and has_cluster() else [])]:
            try:
                case.check(backend)
                if device.type == "cuda" and backend != "cluster":
                    check_asynchronous(lambda case=case, backend=backend: case.ours(backend))
            except Exception as error:
                wrong += 1
                sys.stdout.write(f"WRONG {case.name} [{backend}]: {type(error).__name__}: {error}\n")
            else:
                sys.stdout.write(f"ok    {case.name} [{backend}]\n")
    return wrong


def check_asynchronous(run: Callable[[], Any]) -> None:
    """Raise unless `run` never waits for the GPU and gives the same bits inside a CUDA graph."""
    expected = tensors(run())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, result = graphed(run)
    graph.replay()
    same(tensors(result), tuple(tensor.cpu() for tensor in expected))


def tensors(result: Any) -> tuple[Tensor, ...]:
    found = result if isinstance(result, tuple) else (result,)
    return tuple(tensor for tensor in found if isinstance(tensor, Tensor))


def time_case(case: Case, device: torch.device, seconds: float, rates: tuple[float, float] | None) -> dict[str, Any]:
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: case.ours(None)}
    if device.type == "cuda":
        runs["ours, torch backend"] = lambda: case.ours("torch")
    absent = (libraries.NAMES.keys() - libraries.installed(device)) | (set() if has_cluster() else {"torch-cluster"})
    runs |= {name: run for name, run in case.rivals.items() if name not in absent}
    # torch-cluster waits for the GPU, and the naive loop would make graphs of hundreds of thousands of kernels.
    capturable = {name for name in runs if name not in ("torch-cluster", "naive")} if device.type == "cuda" else set()
    timings = measure(runs, device, seconds, capturable, case.share)
    best = min(timing.median for name, timing in timings.items() if name != "naive" and not name.startswith("ours"))
    row: dict[str, Any] = {
        "op": case.op,
        "size": case.size,
        "ratio": best / timings["ours"].median,
        "contestants": {name: asdict(timing) for name, timing in timings.items()},
        "flops": case.flops,
        "bytes": case.num_bytes,
    }
    if rates:
        arithmetic, copying = case.flops / rates[0] * 1e3, case.num_bytes / rates[1] * 1e3
        row["floor_ms"], row["binds"] = max((arithmetic, "arithmetic"), (copying, "bytes"))
        row["share_of_floor"] = row["floor_ms"] / (timings["ours"].device_ms or timings["ours"].median)
    return row


def load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the point-cloud kernels against plain torch and torch-cluster.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=cores(), help="CPU threads")
    parser.add_argument("--seconds", type=float, default=4, help="time to spend on each case, roughly")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="S", help="begin no case after S seconds")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name holds WORD; writes no results")
    parser.add_argument("--check-only", action="store_true", help="check every backend and time nothing")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if libraries.installed(device):
        libraries.set_threads(arguments.threads)
    if arguments.check_only:
        sys.exit(1 if check_everything(device, arguments.only) else 0)

    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else described_processor()
    before, started = load(), time.monotonic()
    rates = device_rates(device) if device.type == "cuda" else None
    rows, left_out = [], []
    for case in make_cases(device):
        if arguments.only not in case.name:
            continue
        if time.monotonic() - started > arguments.budget:
            left_out.append(case.name)
            continue
        case.check(None)
        rows.append(time_case(case, device, arguments.seconds, rates))
        medians = {name: round(timing["median"], 3) for name, timing in rows[-1]["contestants"].items()}
        sys.stderr.write(f"{case.name}: {rows[-1]['ratio']:.2f} {medians}\n")
    if not rows:
        parser.error("no case was begun" if left_out else f"no case is named like {arguments.only!r}")
    facts: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/kernels.py", *sys.argv[1:]]),
        "device": hardware,
        "threads": torch.get_num_threads(),
        "versions": versions("numpy", "numba", "triton", "torch-cluster", "fpsample", "pykdtree", "scipy", "faiss-cpu"),
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "load": [before, load()],
        **({"rates": rates} if rates else {}),
        **({"left_out": left_out} if left_out else {}),
    }
    table = markdown(rows, facts)
    sys.stdout.write(table)
    if not arguments.only:
        named = f"cpu {facts['threads']}" if device.type == "cpu" else hardware
        slug = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"kernels-{slug}.json").write_text(json.dumps({**facts, "cases": rows}, indent=1) + "\n")
        (RESULTS / f"kernels-{slug}.md").write_text(table)


if __name__ == "__main__":
    main()
