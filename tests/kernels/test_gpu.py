"""What only a GPU can show: real sizes, no waiting for the device, CUDA graphs, Inductor, the same bits every time.

    python -m pytest tests/kernels

runs this and all else in this folder from a bare checkout, on the GPU.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

import clouds
import pytest
import torch
from torch import Tensor

from recon import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
Loss = Callable[[Tensor, Tensor], Tensor]


def _knn(x: Tensor, y: Tensor) -> Tensor:
    return kernels.knn_points(x, y, K=32).dists.sum()


def _ragged(x: Tensor, y: Tensor) -> Tensor:
    numbers = torch.arange(len(x), device=x.device)
    lengths = numbers * 7 % (x.shape[1] + 1), numbers * 13 % (y.shape[1] + 1)
    return kernels.chamfer_distance(x, y, *lengths)[0].sum()  # type: ignore[union-attr]


def _fps(x: Tensor, y: Tensor) -> Tensor:
    return kernels.sample_farthest_points(x, K=16)[0].square().sum() + y.sum()


def _group(x: Tensor, y: Tensor) -> Tensor:
    groups, centers = kernels.group_points(x, 16, 32)
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
SIZES = {"tiny": (300, 32), "middle": (6, 1024), "large": (2, 8192)}


def inputs(size: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    shape = SIZES[size]
    x, y = (clouds.cloud("random", *shape, 3, torch.float32, 3 * seed + n).cuda() for n in (1, 2))
    return x.requires_grad_(), y.requires_grad_()


def with_gradients(loss: Loss, x: Tensor, y: Tensor) -> list[Tensor]:
    value = loss(x, y)
    return [value.detach(), *torch.autograd.grad(value, (x, y))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_cpu_says_the_same(name: str, size: str) -> None:
    x, y = inputs(size)
    found = with_gradients(LOSSES[name], x, y)
    expected = with_gradients(LOSSES[name], *(points.detach().cpu().requires_grad_() for points in (x, y)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("size", SIZES)
def test_indices_at_real_sizes_are_the_cpus(size: str, backend: str) -> None:
    x, y = (points.detach() for points in inputs(size))
    for K in (1, 32):
        found = kernels.knn_points(x[:, :300], y, K=K, backend=backend)
        expected = kernels.knn_points(x[:, :300].cpu(), y.cpu(), K=K)
        assert torch.equal(found.idx.cpu(), expected.idx) and torch.equal(found.dists.cpu(), expected.dists)
    chosen = kernels.sample_farthest_points(x, K=32, backend=backend)[1]
    assert torch.equal(chosen.cpu(), kernels.sample_farthest_points(x.cpu(), K=32)[1])


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_device(name: str, no_waiting: None) -> None:
    x, y = inputs("middle")
    with_gradients(LOSSES[name], x, y)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    with_gradients(LOSSES[name], x, y)


@pytest.mark.parametrize("size", ["tiny", "middle"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_cuda_graph_holds_the_op_and_its_backward(name: str, size: str) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_inductor_takes_the_whole_graph(name: str) -> None:
    x, y = inputs("tiny")
    compiled = torch.compile(LOSSES[name], fullgraph=True)
    for ours, eager in zip(with_gradients(compiled, x, y), with_gradients(LOSSES[name], x, y), strict=True):
        torch.testing.assert_close(ours, eager)
    torch._dynamo.reset()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_every_time(name: str, size: str) -> None:
    x, y = inputs(size)
    first = with_gradients(LOSSES[name], x, y)
    for _ in range(3):
        assert all(torch.equal(one, two) for one, two in zip(first, with_gradients(LOSSES[name], x, y), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, y = (points.detach().to(dtype) for points in inputs("middle"))
    found, expected = kernels.knn_points(x[:, :64], y, K=32), kernels.knn_points(x[:, :64].cpu(), y.cpu(), K=32)
    assert torch.equal(found.idx.cpu(), expected.idx) and torch.equal(found.dists.cpu(), expected.dists)
    for ours, theirs in zip(kernels.group_points(x, 64, 32), kernels.group_points(x.cpu(), 64, 32), strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_bad_values_are_a_device_assert() -> None:
    """In a process of its own: a device assert ends every later use of the GPU."""
    code = """
import torch, kernels
points = torch.zeros(2, 5, 3, device="cuda")
kernels.knn_points(points, points, torch.tensor([6, 5], device="cuda"))
torch.cuda.synchronize()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "lengths1 must lie in [0, 5]" in run.stdout + run.stderr or "device-side assert" in run.stderr
