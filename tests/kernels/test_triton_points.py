"""The Triton kernels for sampling, search and grouping against the reference, and what they compile to."""

from collections.abc import Iterator

import ahead_of_time
import clouds
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.kernels import reference

triton = pytest.importorskip("triton")

from recon.kernels.on_triton import fps, group, knn  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """torch.empty gives NaN and the largest integers, so that an entry never written is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def cloud(kind: str, num_clouds: int, num_points: int, width: int, seed: int) -> Tensor:
    return clouds.cloud(kind, num_clouds, num_points, width, torch.float32, seed).contiguous()


def integers(values: list[int] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int64, device=DEVICE)


def check_fps(points: Tensor, lengths: list[int] | None, start: list[int], K: int) -> None:
    used = [points.shape[1]] * len(points) if lengths is None else lengths
    idx = fps.farthest_points(points.to(DEVICE), integers(lengths), integers(start), K).cpu()
    assert ((idx >= 0) & (idx < points.shape[1])).all()
    padding = torch.arange(K) >= torch.tensor(used).view(-1, 1)
    assert torch.equal(idx.masked_fill(padding, -1), reference.farthest_points(points, used, K, start))


def check_knn(p1: Tensor, p2: Tensor, lengths: list[int] | None, norm: int, K: int) -> None:
    used = [p2.shape[1]] * len(p2) if lengths is None else lengths
    dists, idx = (x.cpu() for x in knn.search(p1.to(DEVICE), p2.to(DEVICE), integers(lengths), norm, K))
    assert ((idx >= 0) & (idx < p2.shape[1])).all()
    padding = torch.arange(K) >= torch.tensor(used).view(-1, 1, 1)
    expected_dists, expected_idx = reference.knn(p1, p2, [p1.shape[1]] * len(p1), used, K, norm)
    assert torch.equal(idx.masked_fill(padding, -1), expected_idx)
    assert torch.equal(dists.masked_fill(padding, 0), expected_dists)


@pytest.mark.slow
@few
@given(data=st.data(), kind=clouds.kinds, seed=clouds.seeds, resident=st.booleans())
def test_fps_is_the_reference(data: st.DataObject, kind: str, seed: int, resident: bool) -> None:
    num_clouds, width = data.draw(st.tuples(st.integers(0, 2), st.integers(1, 5)))
    n = data.draw(st.one_of(st.integers(1, 9), st.integers(20, 40)))
    lengths = data.draw(st.one_of(st.none(), clouds.lengths(num_clouds, n)))
    start = [data.draw(st.integers(0, max(0, used - 1))) for used in lengths or [n] * num_clouds]
    K = data.draw(st.one_of(st.integers(1, n), st.just(n)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fps, "RESIDENT", 64 if resident else 0)
        patch.setattr(fps, "WALKED", 16)
        check_fps(cloud(kind, num_clouds, n, width, seed), lengths, start, K)


@pytest.mark.parametrize("kind", clouds.KINDS)
def test_fps_is_the_reference_at_a_real_size(kind: str) -> None:
    check_fps(cloud(kind, 2, 1024, 3, seed=6), None, [0, 1023], 8)


@pytest.mark.parametrize("kind", ["non_finite", "constant"])
def test_fps_takes_every_point_once(kind: str) -> None:
    check_fps(cloud(kind, 2, 33, 3, seed=1), [33, 20], [5, 0], 33)


@pytest.mark.slow
@few
@given(data=st.data(), kind=clouds.kinds, seed=clouds.seeds, norm=st.sampled_from([1, 2]))
def test_knn_is_the_reference(data: st.DataObject, kind: str, seed: int, norm: int) -> None:
    num_clouds, n, width = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 5)))
    m = data.draw(st.one_of(st.integers(1, 12), st.integers(20, 50)))
    lengths = data.draw(st.one_of(st.none(), clouds.lengths(num_clouds, m)))
    K = data.draw(st.one_of(st.integers(1, min(m, 4)), st.integers(1, min(m, 16))))
    p1, p2 = (cloud(kind, num_clouds, size, width, seed + size) for size in (n, m))
    with pytest.MonkeyPatch.context() as patch:
        # As few keys as K allows, so that clouds this small are walked in chunks too.
        fewest = max(2, triton.next_power_of_2(K))
        patch.setattr(knn, "KEYS", data.draw(st.sampled_from([fewest, 2 * fewest, 512])))
        check_knn(p1, p2, lengths, norm, K)


@pytest.mark.parametrize("kind", ["random", "grid", "non_finite"])
def test_knn_takes_every_point_once(kind: str) -> None:
    points = cloud(kind, 1, 33, 3, seed=3)
    check_knn(points[:, :2].contiguous(), points, None, 2, 33)


@pytest.mark.slow
@pytest.mark.parametrize(("num_queries", "num_points", "K"), [(3, 1024, 32), (2, 3000, 20), (9, 128, 3)])
def test_knn_is_the_reference_at_real_sizes(num_queries: int, num_points: int, K: int) -> None:
    check_knn(cloud("random", 1, num_queries, 3, 4), cloud("random", 1, num_points, 3, 5), None, 2, K)


@pytest.mark.parametrize("norm", [1, 2])
def test_knn_of_many_coordinates_is_the_reference(norm: int) -> None:
    points = cloud("random", 2, 40, 19, seed=9)
    check_knn(points[:, :3].contiguous(), points, [40, 33], norm, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "non_finite"])
def test_knn_is_the_reference_with_the_most_neighbours(kind: str) -> None:
    points = cloud(kind, 1, 2100, 3, seed=7)
    check_knn(points[:, :1].contiguous(), points, [2060], 1, 128)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "non_finite" else pytest.mark.slow) for kind in clouds.KINDS]
)
def test_groups_are_the_reference(kind: str) -> None:
    points = cloud(kind, 2, 50, 3, seed=8)
    groups, centers, chosen, idx = (x.cpu() for x in group.groups(points.to(DEVICE), 5, 7))
    expected_groups, expected_centers = reference.groups(points, 5, 7)
    assert torch.equal(chosen, reference.farthest_points(points, [50] * 2, 5, [0] * 2))
    assert torch.equal(idx, reference.knn(expected_centers, points, [5] * 2, [50] * 2, 7)[1])
    # Bit for bit, but NaN is NaN.
    torch.testing.assert_close(groups, expected_groups, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(centers, expected_centers, rtol=0, atol=0, equal_nan=True)


@given(num_queries=st.integers(1, 100), num_points=st.integers(1, 2**20), K=st.integers(1, 128))
def test_tiles_hold_the_neighbours(num_queries: int, num_points: int, K: int) -> None:
    cut = knn.tile(num_queries, num_points, min(K, num_points))
    assert cut.blocks >= cut.keep >= min(K, num_points)
    assert cut.queries >= 1
    assert cut.queries * max(cut.blocks, cut.keep * cut.run) <= knn.KEYS


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    ahead_of_time.check("test_triton_points")


def launch_all() -> None:
    """What runs at ReCon's sizes and at the edges of the tables."""
    for num_points, num_group, size, width in [(1024, 64, 32, 3), (2048, 128, 32, 3), (1, 1, 1, 1), (9000, 64, 8, 2)]:
        group.groups(torch.empty(2, num_points, width, device="meta"), num_group, size)
    lengths = torch.empty(2, dtype=torch.int64, device="meta")
    for num_points, width, K in [(8192, 3, 512), (4096, 2, 64), (100, 5, 10)]:
        fps.farthest_points(torch.empty(2, num_points, width, device="meta"), lengths, lengths, K)
    for num_queries, num_points, K in [(64, 1024, 32), (512, 8192, 32), (1024, 128, 3), (64, 3000, 128)]:
        p1, p2 = (torch.empty(2, size, 3, device="meta") for size in (num_queries, num_points))
        knn.search(p1, p2, lengths, 2, K)
    for K in (1, 32):  # features, as in a dynamic graph of neighbours
        knn.search(torch.empty(2, 64, 64, device="meta"), torch.empty(2, 1024, 64, device="meta"), None, 2, K)


MODULES = (fps, knn)
