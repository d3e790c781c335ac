"""What only a GPU can show of the kernels: real sizes, no waiting for the device, CUDA graphs, Inductor, the same bits
every time.

Plain functions that need torch alone: pytest collects CHECKS in test_gpu.py, `make gpu` runs them without it. Where
there is no GPU they are rehearsed through Triton's interpreter, on clouds that it can take.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import torch
from agreement import DEVICE, OPS, agree
from made_clouds import KINDS, cloud
from torch import Tensor

from recon import kernels

ON_GPU = DEVICE == "cuda"
BACKENDS = ("triton", "torch") if ON_GPU else ("triton",)
NEIGHBOURS = 32 if ON_GPU else 4
Loss = Callable[[Tensor, Tensor], Tensor]


def _knn(x: Tensor, y: Tensor) -> Tensor:
    return kernels.knn_points(x, y, K=NEIGHBOURS).dists.sum()


def _ragged(x: Tensor, y: Tensor) -> Tensor:
    numbers = torch.arange(len(x), device=x.device)
    lengths = numbers * 7 % (x.shape[1] + 1), numbers * 13 % (y.shape[1] + 1)
    return kernels.chamfer_distance(x, y, *lengths)[0].sum()  # type: ignore[union-attr]


def _fps(x: Tensor, y: Tensor) -> Tensor:
    return kernels.sample_farthest_points(x, K=16)[0].square().sum() + y.sum()


def _group(x: Tensor, y: Tensor) -> Tensor:
    groups, centers = kernels.group_points(x, 16, NEIGHBOURS)
    return groups.square().sum() + centers.sum() + y.sum()


def _interpolate(x: Tensor, y: Tensor) -> Tensor:
    return kernels.interpolate_three(x, x.sin(), y).square().sum()


LOSSES: dict[str, Loss] = {
    "knn": _knn,
    "chamfer ragged": _ragged,
    "ChamferL1": kernels.ChamferL1(),
    "ChamferL2": kernels.ChamferL2(),
    "fps": _fps,
    "group": _group,
    "interpolate": _interpolate,
}
SIZES = {"tiny": (300, 32), "middle": (6, 1024), "large": (2, 8192)} if ON_GPU else {"tiny": (2, 32)}
GRAPHED = ("tiny", "middle")


def inputs(size: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    shape = SIZES[size]
    x, y = (cloud("random", *shape, 3, torch.float32, 3 * seed + n).to(DEVICE) for n in (1, 2))
    return x.requires_grad_(), y.requires_grad_()


def with_gradients(loss: Loss, x: Tensor, y: Tensor) -> list[Tensor]:
    value = loss(x, y)
    return [value.detach(), *torch.autograd.grad(value, (x, y))]


@contextmanager
def on(backend: str) -> Iterator[None]:
    """Ops that are not told their backend run on this one."""
    before = os.environ.get("RECON_KERNELS", "")
    os.environ["RECON_KERNELS"] = backend
    try:
        yield
    finally:
        os.environ["RECON_KERNELS"] = before


def the_cpu_says_the_same(name: str, size: str) -> None:
    x, y = inputs(size)
    found = with_gradients(LOSSES[name], x, y)
    with on("torch"):
        expected = with_gradients(LOSSES[name], *(points.detach().cpu().requires_grad_() for points in (x, y)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def indices_are_the_cpus(size: str, backend: str) -> None:
    x, y = (points.detach() for points in inputs(size))
    for K in (1, NEIGHBOURS):
        found = kernels.knn_points(x[:, :300], y, K=K, backend=backend)
        expected = kernels.knn_points(x[:, :300].cpu(), y.cpu(), K=K, backend="torch")
        assert torch.equal(found.idx.cpu(), expected.idx) and torch.equal(found.dists.cpu(), expected.dists)
    chosen = kernels.sample_farthest_points(x, K=32, backend=backend)[1]
    assert torch.equal(chosen.cpu(), kernels.sample_farthest_points(x.cpu(), K=32, backend="torch")[1])


def nothing_waits_for_the_device(name: str) -> None:
    x, y = inputs("middle")
    with_gradients(LOSSES[name], x, y)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(LOSSES[name], x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_cuda_graph_holds_the_op_and_its_backward(name: str, size: str) -> None:
    x, y = inputs(size)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradients(LOSSES[name], x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = with_gradients(LOSSES[name], x, y)
    others = inputs(size, seed=2)
    with torch.no_grad():
        x.copy_(others[0]), y.copy_(others[1])
    graph.replay()
    torch.cuda.synchronize()
    for ours, eager in zip(captured, with_gradients(LOSSES[name], *others), strict=True):
        assert torch.equal(ours, eager)


def inductor_takes_the_whole_graph(name: str) -> None:
    x, y = inputs("tiny")
    compiled = torch.compile(LOSSES[name], fullgraph=True)
    for ours, eager in zip(with_gradients(compiled, x, y), with_gradients(LOSSES[name], x, y), strict=True):
        torch.testing.assert_close(ours, eager)
    torch._dynamo.reset()


def the_same_bits_every_time(name: str, size: str) -> None:
    x, y = inputs(size)
    first = with_gradients(LOSSES[name], x, y)
    for _ in range(3 if ON_GPU else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, with_gradients(LOSSES[name], x, y), strict=True))


def half_precision(dtype: torch.dtype) -> None:
    x, y = (points.detach().to(dtype) for points in inputs("middle" if ON_GPU else "tiny"))
    found = kernels.knn_points(x[:, :64], y, K=NEIGHBOURS)
    expected = kernels.knn_points(x[:, :64].cpu(), y.cpu(), K=NEIGHBOURS, backend="torch")
    assert torch.equal(found.idx.cpu(), expected.idx) and torch.equal(found.dists.cpu(), expected.dists)
    groups = kernels.group_points(x, 16, NEIGHBOURS)
    plain = kernels.group_points(x.cpu(), 16, NEIGHBOURS, backend="torch")
    for ours, theirs in zip(groups, plain, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def bad_values_end_the_process() -> None:
    """In a process of its own: a device assert ends every later use of the GPU."""
    code = f"""
import torch
from recon import kernels
points = torch.zeros(2, 5, 3, device="{DEVICE}")
kernels.knn_points(points, points, torch.tensor([6, 5], device="{DEVICE}"))
torch.cuda.synchronize()
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert "lengths1 must lie in [0, 5]" in said or "device-side assert" in said, said


def _checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, size in product(LOSSES, SIZES):
        yield f"the CPU says the same: {name}, {size}", partial(the_cpu_says_the_same, name, size)
    for size, backend in product(SIZES, BACKENDS):
        yield f"indices are the CPU's: {backend}, {size}", partial(indices_are_the_cpus, size, backend)
    # One each on a CPU: the interpreter takes seconds, and the other files of this folder have them all.
    for backend, name, kind in product(BACKENDS, OPS if ON_GPU else ["group"], KINDS if ON_GPU else ["grid"]):
        yield f"backends agree: {backend}, {name}, {kind}", partial(agree, backend, name, kind)
    for name, size in product(LOSSES if ON_GPU else ["fps"], SIZES):
        yield f"the same bits every time: {name}, {size}", partial(the_same_bits_every_time, name, size)
    for dtype in (torch.float16, torch.bfloat16) if ON_GPU else (torch.bfloat16,):
        yield f"half precision: {str(dtype).removeprefix('torch.')}", partial(half_precision, dtype)
    yield "bad values end the process", bad_values_end_the_process
    for name in LOSSES:
        yield f"nothing waits for the device: {name}", partial(nothing_waits_for_the_device, name)
    for name, size in product(LOSSES, GRAPHED):
        yield f"a CUDA graph: {name}, {size}", partial(a_cuda_graph_holds_the_op_and_its_backward, name, size)
    for name in LOSSES:
        yield f"Inductor: {name}", partial(inductor_takes_the_whole_graph, name)


def _interpreted(run: Callable[[], None]) -> None:
    with on("triton"):
        run()


CHECKS = {name: run if ON_GPU else partial(_interpreted, run) for name, run in _checks()}
GPU_ONLY = ("nothing waits", "a CUDA graph", "Inductor")
"""How the names begin of those that no other device can run."""
