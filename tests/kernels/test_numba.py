"""Numba's kernels: their own ways, where no other backend has them, come out as plain torch and the reference say."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clouds
import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")

from recon.kernels import group_points, interpolate_three, knn_points, loss_ops, reference, sample_farthest_points  # noqa: E402
from recon.kernels.chamfer import nearest  # noqa: E402
from recon.kernels.norms import ROOT  # noqa: E402
from recon.kernels.on_numba import chamfer, compiled, knn  # noqa: E402
from recon.kernels.on_torch import chamfer as on_torch  # noqa: E402


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("width", [2, 3, 6, 7])  # of seven coordinates there are no boxes
def test_large_clouds_in_blocks_come_out_as_all_pairs(width: int, norm: int) -> None:
    points = clouds.cloud("random", 3, 2100, width, torch.float32, seed=1)
    points[:, 1500:1700] = points[:, :200]  # ties
    points[1, 7] = torch.nan
    lengths = torch.tensor([2100, 2099, 70])
    for K in (1, 2, 40):
        found, expected = (
            knn_points(points, points, None, lengths, norm, K, backend=name) for name in ("numba", "torch")
        )
        assert torch.equal(found.idx, expected.idx) and torch.equal(found.dists, expected.dists)


@pytest.mark.parametrize("kind", clouds.KINDS)
def test_blocks_of_part_of_a_cloud(kind: str) -> None:
    p1, p2 = (clouds.cloud(kind, 3, n, 3, torch.float32, seed=n) for n in (21, 130))
    for K, lengths in ((1, [130, 130, 130]), (9, [130, 4, 0]), (128, [130, 129, 7])):
        found = knn_points(p1, p2, lengths2=torch.tensor(lengths), K=K, backend="numba")
        dists, idx = reference.knn(p1, p2, [21] * 3, lengths, K)
        assert torch.equal(found.idx, idx) and torch.equal(found.dists, dists)


def test_an_outlier_leaves_the_blocks_small() -> None:
    """A grid would put all other points into one cell."""
    points = torch.rand(1, 4096, 3, generator=torch.Generator().manual_seed(5))
    points[0, 99] = 1e6
    planes, order = np.ascontiguousarray(points[0].numpy().T), np.arange(4096, dtype=np.int32)
    knn._arrange(planes, order)
    assert sorted(order) == list(range(4096))
    np.testing.assert_array_equal(planes.T, points[0].numpy()[order])
    blocks = planes.reshape(3, -1, knn.BLOCK)
    sides = (blocks.max(2) - blocks.min(2)).max(0)
    assert np.sort(sides)[:-1].max() < 0.6  # 4 x 4 x 4 blocks of a unit cube; the outlier widens one


@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_on_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (clouds.cloud("grid", 1, 1500, 3, torch.float32, seed=seed) for seed in (2, 4))
    many, others = torch.cat([x, y] * 3), torch.cat([y, x] * 3)
    grads = [torch.randn(6, 1500, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    found = nearest(many, others)
    calls: dict[str, Callable[[], Sequence[torch.Tensor]]] = {
        "neighbours": lambda: knn_points(x, y, K=9)[:2],  # of one cloud: its queries in parts
        "samples": lambda: sample_farthest_points(torch.cat([x, y * 2, x - y]), K=500),
        "both ways by boxes": lambda: nearest(many, others),
        "both ways by all pairs": lambda: nearest(many[:, :900], others[:, :900]),
        "gradients": lambda: chamfer.nearest_backward(*grads, many, others, found[1], found[3], 2, True, True),
        "groups": lambda: group_points(many, 64, 32),
        "interpolation": lambda: [interpolate_three(many, many.repeat(1, 1, 9), others)],
    }
    monkeypatch.setattr(compiled, "PART", 1)  # any work is worth a thread
    pools: list[int] = []
    pool = compiled._pool
    monkeypatch.setattr(compiled, "_pool", lambda process: pools.append(process) or pool(process))
    before = torch.get_num_threads()
    try:
        for name, call in calls.items():
            torch.set_num_threads(1)
            alone = call()
            assert not pools, name
            torch.set_num_threads(threads)
            for ours, theirs in zip(call(), alone, strict=True):
                assert torch.equal(ours, theirs), name
            assert len(pools) >= threads - 1, name
            pools.clear()
    finally:
        torch.set_num_threads(before)


def test_work_is_done_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a thread that outlives the main one, or at exit: the interpreter starts none any more."""
    points = clouds.cloud("random", 4, 300, 3, torch.float32, seed=1)
    expected = sample_farthest_points(points, K=40)[1]
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    monkeypatch.setattr(compiled, "PART", 1)
    monkeypatch.setattr(compiled, "_pool", lambda process: ended)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(sample_farthest_points(points, K=40)[1], expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", clouds.KINDS)
@pytest.mark.parametrize("pairs", [0, 2**20])
@pytest.mark.parametrize("lengths", [None, ([30, 5, 0], [200, 1, 150])])
def test_both_ways_are_the_reference(
    kind: str, pairs: int, lengths: tuple[list[int], list[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chamfer, "PAIRS", pairs)
    x, y = (clouds.cloud(kind, 3, n, 3, torch.float32, seed=n) for n in (30, 200))
    of_x, of_y = lengths or ([30] * 3, [200] * 3)
    given_lengths = (torch.tensor(of_x), torch.tensor(of_y)) if lengths else (None, None)
    dists_x, idx_x, dists_y, idx_y = nearest(x, y, *given_lengths, backend="numba")
    for dists, idx, (one, two, own, other) in (
        (dists_x, idx_x, (x, y, of_x, of_y)), (dists_y, idx_y, (y, x, of_y, of_x))
    ):  # fmt: skip
        expected_dists, expected_idx = reference.knn(one, two, own, other, 1)
        assert torch.equal(dists, expected_dists[..., 0]) and torch.equal(idx, expected_idx[..., 0])


@pytest.mark.parametrize("norm", [1, 2, ROOT])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("single", [False, True])
def test_gradients_have_plain_torchs_bits(norm: int, needs: tuple[bool, bool], single: bool) -> None:
    generator = torch.Generator().manual_seed(norm)
    x, y = (clouds.cloud("random", 2, n, 3, torch.float32, seed=n) for n in (40, 31))
    forth, back = (torch.randint(-1, n, (2, m), generator=generator) for n, m in ((31, 40), (40, 0 if single else 31)))
    grads = [torch.randn(idx.shape, generator=generator) for idx in (forth, back)]
    x[0, 3], y[1, 4, 1], y[0, 2] = torch.nan, torch.inf, x[0, 9]
    forth[0, 9] = 2  # a pair that coincides
    tensors = (*grads, x.contiguous(), y.contiguous(), forth, back)
    found = chamfer.nearest_backward(*tensors, norm, *needs)
    expected = on_torch.nearest_backward(*tensors, norm, *needs)
    # torch's roots may differ from NumPy's in the last place.
    within = {"rtol": 1e-6, "atol": 1e-6} if norm == ROOT else {"rtol": 0, "atol": 0}
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.isnan().any()
        torch.testing.assert_close(ours, theirs, **within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 1e19, 3e-23])  # at the second, squares of float32 overflow
@pytest.mark.parametrize(
    ("sizes", "times"), [((3, 1, 1), 2), ((2, 40, 31), 2), ((5, 16, 16), 0.3), ((1, 1300, 900), 1)]
)
def test_losses_have_plain_torchs_bits(
    sizes: tuple[int, int, int], times: float, scale: float, dtype: torch.dtype
) -> None:
    num_clouds, *points = sizes
    x, y = (clouds.cloud("random", num_clouds, n, 3, dtype, seed=n).contiguous() * scale for n in points)
    x[:, 0] = y[:, 0]  # pairs that coincide
    grad = torch.tensor(times, dtype=dtype)
    for root in (False, True):
        loss, *idx = loss_ops.chamfer_loss.function(x, y, root, "numba")
        expected, *expected_idx = loss_ops.chamfer_loss.function(x, y, root, "torch")
        assert torch.equal(loss, expected) and all(map(torch.equal, idx, expected_idx))
        assert loss.shape == () and loss.dtype == dtype
        for needs in ([True, True], [False, True]):
            arguments = (grad, x, y, *idx, root, needs)
            found, plain = (loss_ops.chamfer_loss_backward.function(*arguments, name) for name in ("numba", "torch"))
            within = {"rtol": 1e-6, "atol": 1e-6} if root else {"rtol": 0, "atol": 0}  # torch's roots, as above
            for ours, theirs in zip(found, plain, strict=True):
                torch.testing.assert_close(ours, theirs, **within)


def test_where_nothing_can_be_kept_each_process_compiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(self: Any, function: Callable[..., Any]) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiled.FunctionCache, "__init__", nowhere)
    compiled._tell_once.cache_clear()
    twice = [compiled.compiled(lambda x, n=n: n * x) for n in (2, 3)]
    assert [function(7) for function in twice] == [14, 21]
    (line,) = caplog.messages
    assert line.startswith("compiled kernels cannot be kept, and each process compiles them anew")


SCRIPT = """
import logging, torch
from recon import kernels
logging.basicConfig(format="%(message)s")
print(kernels.sample_farthest_points(torch.arange(24.0).view(1, 8, 3), K=3)[1].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 100])
def test_half_a_file_of_compiled_code_is_none(suffix: str, left: int, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "RECON_KERNELS": "numba"}

    def sample() -> str:
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert sample() == "[[0, 7, 3]]\n"
    kept = {path: path.read_bytes() for path in tmp_path.rglob(f"fps.*.{suffix}")}
    assert len(kept) == 3
    for path in kept:
        os.truncate(path, left)
    assert sample() == "[[0, 7, 3]]\n"
    assert all(path.stat().st_size > left for path in kept)  # made whole again
    assert sample() == "[[0, 7, 3]]\n"


def test_a_full_disk_stops_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(self: Any, sig: Any, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled.FunctionCache, "save_overload", full)
    monkeypatch.setattr(compiled.FunctionCache, "load_overload", lambda self, sig, target: None)
    compiled._tell_once.cache_clear()
    assert compiled.compiled(_double)(21) == 42
    assert len(caplog.messages) == 1


def _double(x: int) -> int:
    return 2 * x
