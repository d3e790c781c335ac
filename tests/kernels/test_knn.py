from concurrent.futures import ThreadPoolExecutor
from typing import Any

import clouds
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

import recon.kernels.on_torch.knn
from recon.kernels import knn_gather, knn_points, reference
from recon.kernels.backends import MAX_K


def test_reference_agrees_with_a_kd_tree() -> None:
    p1, p2 = (clouds.cloud("random", 2, n, 3, torch.float64, seed=n) for n in (17, 40))
    dists, idx = reference.knn(p1, p2, [17, 17], [40, 40], 5)
    for b in range(2):
        tree_dists, tree_idx = cKDTree(p2[b].numpy()).query(p1[b].numpy(), k=5)
        np.testing.assert_array_equal(idx[b], tree_idx)
        np.testing.assert_allclose(dists[b], tree_dists**2, rtol=1e-12)


def test_reference_manhattan_agrees_with_a_kd_tree() -> None:
    p1, p2 = (clouds.cloud("random", 1, n, 3, torch.float64, seed=n) for n in (17, 40))
    dists, idx = reference.knn(p1, p2, [17], [40], 5, norm=1)
    tree_dists, tree_idx = cKDTree(p2[0].numpy()).query(p1[0].numpy(), k=5, p=1)
    np.testing.assert_array_equal(idx[0], tree_idx)
    np.testing.assert_allclose(dists[0], tree_dists, rtol=1e-12)


@pytest.mark.slow
@settings(max_examples=500)
@given(data=st.data(), kind=clouds.kinds, dtype=clouds.dtypes, seed=clouds.seeds, norm=st.sampled_from([1, 2]))
def test_knn_is_the_reference(data: st.DataObject, kind: str, dtype: torch.dtype, seed: int, norm: int) -> None:
    num_clouds, n, width = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 5)))
    m = data.draw(st.one_of(st.integers(0, 12), st.integers(30, 150)))
    K = data.draw(st.one_of(st.integers(1, 4), st.integers(1, m + 3)))
    lengths1, lengths2 = data.draw(clouds.lengths(num_clouds, n)), data.draw(clouds.lengths(num_clouds, m))
    p1, p2 = (clouds.cloud(kind, num_clouds, size, width, dtype, seed + size) for size in (n, m))
    # Chunks far smaller than the problem, so that their seams lie everywhere.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recon.kernels.on_torch.knn, "CPU_CHUNK", data.draw(st.sampled_from([1, 100, 1000, 2**16])))
        sizes1, sizes2 = torch.tensor(lengths1).long(), torch.tensor(lengths2).long()
        backend = data.draw(st.sampled_from(clouds.CPU)) if min(K, m) <= MAX_K else "torch"
        found = knn_points(p1, p2, sizes1, sizes2, norm, K, return_nn=True, backend=backend)
    dists, idx = reference.knn(p1, p2, lengths1, lengths2, K, norm)
    assert torch.equal(found.idx, idx)
    assert torch.equal(found.dists, dists)
    assert found.knn is not None and found.knn.dtype == dtype
    for b, i, k in np.ndindex(*idx.shape):
        expected = p2[b, idx[b, i, k]] if idx[b, i, k] >= 0 else torch.zeros(width, dtype=dtype)
        assert torch.equal(found.knn[b, i, k].nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("kind", clouds.KINDS)
@pytest.mark.parametrize("K", [1, 8, 32, 500])
@pytest.mark.parametrize("num_points", [1024, 2500])  # 16 blocks, one group of them, and 40 in three
def test_knn_is_the_reference_at_real_sizes(kind: str, K: int, num_points: int) -> None:
    p2 = clouds.cloud(kind, 2, num_points, 3, torch.float32, seed=4)
    p1 = p2[:, ::40].contiguous()
    dists, idx = reference.knn(p1, p2, [p1.shape[1]] * 2, [num_points] * 2, K)
    found = knn_points(p1, p2, K=K)
    assert torch.equal(found.idx, idx)
    assert torch.equal(found.dists, dists)


@pytest.mark.parametrize("K", [1, 60, 600])
def test_distances_that_overflow_are_in_order(K: int) -> None:
    points = clouds.cloud("random", 2, 600, 3, torch.float64, seed=1) * 1e154  # squares reach the top of float64
    found = knn_points(points[:, :50], points, K=K)
    dists, idx = reference.knn(points[:, :50], points, [50] * 2, [600] * 2, K)
    assert dists.isinf().any() or K < 600
    assert torch.equal(found.idx, idx) and torch.equal(found.dists, dists)


def test_neighbours_away_from_the_origin_are_those_of_float64() -> None:
    # Offsets are exact in float32 here, so an expanded form alone would lose neighbours.
    base = torch.randint(-64, 65, (1, 300, 3), generator=torch.Generator().manual_seed(0)) / 64
    moved = knn_points((base + 8192)[:, :20], base + 8192, K=32)
    assert torch.equal(moved.idx, knn_points(base[:, :20].double(), base.double(), K=32).idx)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = recon.kernels.on_torch.knn.pair_distances

    def spy(*arguments: Any) -> torch.Tensor:
        found = whole(*arguments)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(recon.kernels.on_torch.knn, "pair_distances", spy)
    points = torch.randn(2, 3000, 3, generator=torch.Generator().manual_seed(0))
    knn_points(points, points, K=4, backend="torch")
    assert max(sizes) <= recon.kernels.on_torch.knn.CPU_CHUNK
    assert sum(sizes) >= 2 * 3000 * 3000


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("K", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_gradients(norm: int, K: int) -> None:
    p1, p2 = (clouds.cloud("random", 2, n, 3, torch.float64, seed=n).requires_grad_() for n in (4, 6))
    lengths = torch.tensor([6, 2])

    def dists(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return knn_points(one, two, lengths2=lengths, norm=norm, K=K).dists

    assert torch.autograd.gradcheck(dists, (p1, p2))
    if norm == 2:
        assert torch.autograd.gradgradcheck(dists, (p1, p2))


def test_no_gradient_through_an_infinite_distance() -> None:
    p2 = torch.tensor([[[1.0, 0, 0], [torch.nan, 0, 0]]], requires_grad=True)
    p1 = torch.zeros(1, 1, 3, requires_grad=True)
    dists = knn_points(p1, p2, K=2).dists
    assert dists.tolist() == [[[1.0, torch.inf]]]
    dists.sum().backward()
    assert p1.grad is not None and p1.grad.tolist() == [[[-2, 0, 0]]]
    assert p2.grad is not None and p2.grad.tolist() == [[[2, 0, 0], [0, 0, 0]]]


def test_half_precision_does_not_overflow() -> None:
    points = torch.tensor([[[0.0], [300.0]]], dtype=torch.float16)
    # 300 squared is past the largest float16.
    assert knn_points(points, points, K=2).dists.tolist() == [[[0, 9e4], [0, 9e4]]]


def test_gather_pads_and_differentiates() -> None:
    x = clouds.cloud("random", 2, 4, 3, torch.float64, seed=3).requires_grad_()
    idx = torch.tensor([[[0, 3], [-1, 3]], [[2, 2], [1, -1]]])
    gathered = knn_gather(x, idx, torch.tensor([2, 1]))
    assert torch.equal(gathered[0, 0], x[0, [0, 3]])
    assert torch.equal(gathered[1, 0, 0], x[1, 2])
    for missing in (gathered[0, 1, 0], gathered[1, 0, 1], gathered[1, 1, 1]):
        assert missing.tolist() == [0, 0, 0]
    assert torch.autograd.gradcheck(lambda rows: knn_gather(rows, idx), (x,))
    assert torch.autograd.gradgradcheck(lambda rows: knn_gather(rows, idx), (x,))


def test_calls_do_not_disturb_each_other() -> None:
    """They share memory from call to call, also between inference mode and training, and one thread and another."""
    p1, p2 = (clouds.cloud("random", 3, n, 3, torch.float32, seed=n) for n in (200, 300))
    with torch.inference_mode():
        first = knn_points(p1, p2, K=9)
    held = first.dists.clone(), first.idx.clone()
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda scale: knn_points(p1 * scale, p2 * scale, K=9), [1, 2, 1, 4, 1, 2]))
    trained = knn_points(p1.clone().requires_grad_(), p2, K=9)
    for found in (first, others[0], others[2], others[4], trained):
        assert torch.equal(found.dists, held[0]) and torch.equal(found.idx, held[1])
    assert torch.equal(others[3].dists, held[0] * 16)  # powers of two round nothing


def test_the_same_gradient_bits_every_time() -> None:
    points = clouds.cloud("random", 8, 600, 3, torch.float32, seed=5)
    grads = []
    for _ in range(3):
        p2 = points.clone().requires_grad_()
        knn_points(points[:, ::2], p2, K=16).dists.square().sum().backward()
        grads.append(p2.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


POINTS = torch.zeros(2, 5, 3)
BAD = {
    "p1 rank": ({"p1": torch.zeros(5, 3)}, r"p1 must have shape \[B, N, D\].*\[5, 3\]"),
    "p1 dtype": ({"p1": POINTS.long()}, "p1 must be float16.*int64"),
    "p1 type": ({"p1": [[0.0]]}, "p1 must be a tensor"),
    "p1 sparse": ({"p1": POINTS.to_sparse()}, "p1 must be a dense tensor.*sparse_coo"),
    "p2 batch": ({"p2": torch.zeros(3, 5, 3)}, r"p2 must have shape \[2, any, 3\].*\[3, 5, 3\]"),
    "p2 width": ({"p2": torch.zeros(2, 5, 2)}, r"p2 must have shape \[2, any, 3\].*\[2, 5, 2\]"),
    "p2 dtype": ({"p2": POINTS.double()}, "p2 must have.*dtype.*float64"),
    "p2 device": ({"p2": POINTS.to("meta")}, "p2 must have.*device.*meta"),
    "K zero": ({"K": 0}, "K must be an integer >= 1, got 0"),
    "K fraction": ({"K": 2.0}, "K must be an integer"),
    "norm": ({"norm": 3}, "norm must be 1"),
    "lengths1 beyond": ({"lengths1": torch.tensor([5, 6])}, r"lengths1 must lie in \[0, 5\]"),
    "lengths2 negative": ({"lengths2": torch.tensor([5, -1])}, r"lengths2 must lie in \[0, 5\]"),
    "lengths2 shape": ({"lengths2": torch.tensor([5])}, r"lengths2 must have shape \[2\].*\[1\]"),
    "lengths2 dtype": ({"lengths2": torch.tensor([5.0, 5])}, "lengths2 must be an int32 or int64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        knn_points(**{"p1": POINTS, "p2": POINTS, **change})  # type: ignore[arg-type]


def test_bad_gather_is_named() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \[B, M, U\], got \[5, 3\]"):
        knn_gather(POINTS[0], torch.zeros(2, 5, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="idx"):
        knn_gather(POINTS, torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"idx .*must lie in"):
        knn_gather(POINTS, torch.full((2, 5, 1), 5))
    with pytest.raises(ValueError, match=r"idx must have shape \[2, 5, 1\]"):
        knn_gather(POINTS, torch.zeros(3, 5, 1, dtype=torch.int64))


@pytest.mark.skipif("numba" not in clouds.CPU, reason="needs numba")
def test_a_small_call_costs_few_calls_of_torch() -> None:
    """The whole of a tiny search in a handful of calls: a CPU loop over small clouds lives by it."""
    points = clouds.cloud("random", 1, 16, 3, torch.float32, seed=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        knn_points(points, points, K=4)
    assert sum(event.count for event in profile.key_averages() if event.key.startswith("aten::")) < 20
