"""The torch-cluster backend is the reference, index for index, whatever torch-cluster's freedoms are.

Most tests use a stand-in that takes every freedom: it needs no extension, and it is nastier than the real one.
"""

import sys
from types import ModuleType

import clouds
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.kernels import on_cluster, reference
from recon.kernels.on_torch import fps as torch_fps
from recon.kernels.on_torch import knn as torch_knn

GENERATOR = torch.Generator().manual_seed(0)
FARTHEST = 1e10
"""Squared distance from which the stand-in finds no neighbour, as the CUDA kernel does not."""


def rounded(p1: Tensor, p2: Tensor) -> Tensor:
    """Squared distances [N, M] with rounding errors of their own, as fused arithmetic would have."""
    exact = ((p1.double()[:, None] - p2.double()) ** 2).sum(2)
    noise = torch.rand(exact.shape, generator=GENERATOR, dtype=torch.float64) - 0.5
    return exact * (1 + 2e-7 * noise)


def careless_fps(rows: Tensor, batch: Tensor, ratio: Tensor, random_start: bool) -> Tensor:
    """Ties go to any point; where all that is left coincides, one already picked may be picked again."""
    assert not random_start
    picks = []
    for b, size in enumerate(batch.bincount().tolist()):
        (own,) = (batch == b).nonzero(as_tuple=True)
        far = torch.full((size,), 5e4, dtype=torch.float64)
        pick = 0
        for _ in range(int((size * ratio[b]).ceil())):
            picks.append(own[pick])
            far = torch.minimum(far, rounded(rows[own], rows[own[pick : pick + 1]])[:, 0])
            farthest = (far == far.max()).nonzero()[:, 0]
            pick = int(farthest[torch.randint(len(farthest), (), generator=GENERATOR)]) if len(farthest) else 0
    return torch.stack(picks)


def careless_knn(x: Tensor, y: Tensor, k: int, batch_x: Tensor, batch_y: Tensor) -> Tensor:
    """Edges in any order, ties broken either way, nothing at all beyond FARTHEST."""
    edges = []
    for query, (point, b) in enumerate(zip(y, batch_y, strict=True)):
        own = (batch_x == b).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=GENERATOR)]
        dists = rounded(point[None], x[own])[0]
        order = dists.argsort()[:k]
        edges += [[query, int(row)] for row in own[order[dists[order] < FARTHEST]]]
    found = torch.tensor(edges, dtype=torch.int64).view(-1, 2)
    return found[torch.randperm(len(found), generator=GENERATOR)].T


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_cluster")
    module.fps, module.knn = careless_fps, careless_knn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_cluster", module)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("torch_cluster")


def check_fps(points: Tensor, lengths: list[int] | None, start: list[int], K: int) -> None:
    sizes = None if lengths is None else torch.tensor(lengths, dtype=torch.int64)
    idx = on_cluster.farthest_points(points, sizes, torch.tensor(start, dtype=torch.int64), K)
    expected = reference.farthest_points(points, lengths or [points.shape[1]] * len(points), K, start)
    assert torch.equal(idx.masked_fill(expected < 0, -1), expected)


def check_knn(p1: Tensor, p2: Tensor, lengths: list[int] | None, norm: int, K: int) -> None:
    sizes = None if lengths is None else torch.tensor(lengths, dtype=torch.int64)
    dists, idx = on_cluster.search(p1, p2, sizes, norm, K)
    every = [p1.shape[1]] * len(p1)
    expected, near = reference.knn(p1, p2, every, lengths or [p2.shape[1]] * len(p2), K, norm)
    assert torch.equal(idx.masked_fill(near < 0, -1), near)
    assert torch.equal(dists.masked_fill(near < 0, 0), expected)


def check_both(data: st.DataObject, kind: str, dtype: torch.dtype, seed: int) -> None:
    num_clouds, width = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 5)))
    n = data.draw(st.one_of(st.integers(1, 12), st.integers(30, 50)))
    K = data.draw(st.integers(1, n))
    lengths = data.draw(st.one_of(st.none(), clouds.lengths(num_clouds, n)))
    start = [data.draw(st.integers(0, max(0, size - 1))) for size in lengths or [n] * num_clouds]
    points = clouds.cloud(kind, num_clouds, n, width, dtype, seed).contiguous()
    check_fps(points, lengths, start, K)
    queries = clouds.cloud(kind, num_clouds, data.draw(st.integers(0, 6)), width, dtype, seed + 1).contiguous()
    for p1 in (queries, points[:, : min(n, 6)].contiguous()):
        check_knn(p1, points, lengths, data.draw(st.sampled_from([2, 2, 1])), K)


dtypes = st.sampled_from([torch.float32, torch.float64])
over = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@over
@given(data=st.data(), kind=clouds.kinds, dtype=dtypes, seed=clouds.seeds)
def test_careless_answers_are_mended(
    careless: None, data: st.DataObject, kind: str, dtype: torch.dtype, seed: int
) -> None:
    check_both(data, kind, dtype, seed)


@over
@given(data=st.data(), kind=clouds.kinds, dtype=dtypes, seed=clouds.seeds)
def test_the_package_is_the_reference(
    installed: None, data: st.DataObject, kind: str, dtype: torch.dtype, seed: int
) -> None:
    check_both(data, kind, dtype, seed)


@pytest.mark.parametrize("package", ["careless", "installed"])
def test_random_clouds_need_no_second_search(
    package: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this the backend could be right by never using torch-cluster at all."""
    request.getfixturevalue(package)
    monkeypatch.delattr(torch_fps, "farthest_points")
    monkeypatch.delattr(torch_knn, "search")
    # Whole numbers far apart are in no near tie, and their distances are exact.
    points = torch.tensor([[[0.0], [1], [40], [100], [1000]]]).repeat(3, 1, 1)
    check_fps(points, [5, 4, 1], [0, 2, 0], 3)
    check_knn(points[:, :2] + 0.25, points, [5, 4, 4], 2, 4)


@pytest.mark.parametrize("package", ["careless", "installed"])
def test_near_ties(package: str, request: pytest.FixtureRequest) -> None:
    """All points at one distance but for rounding, which differs from torch-cluster's to ours."""
    request.getfixturevalue(package)
    sphere = torch.nn.functional.normalize(torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(1)), dim=2)
    points = torch.cat([torch.zeros(4, 1, 3), sphere], 1)
    check_fps(points, None, [0] * 4, 20)
    check_knn(points[:, :1].contiguous(), points, None, 2, 30)


@pytest.mark.parametrize("package", ["careless", "installed"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_points_that_are_not_finite_come_last(package: str, value: float, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(package)
    points = torch.tensor([[[0.0], [value], [1], [5]]])
    check_fps(points, None, [0], 2)
    check_knn(points, points, None, 2, 3)


def test_no_pick_is_repeated(careless: None) -> None:
    check_fps(torch.ones(9, 2, 3), None, [0] * 9, 2)


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_the_package_is_the_reference_at_real_sizes(installed: None, kind: str) -> None:
    points = clouds.cloud(kind, 2, 1024, 3, torch.float32, seed=1)
    check_fps(points, None, [0, 5], 64)
    check_knn(points[:, :64].contiguous(), points, [1024, 700], 2, 32)


def test_nothing_to_search(careless: None) -> None:
    none = torch.zeros(0, 4, 3)
    assert on_cluster.farthest_points(none, None, torch.zeros(0, dtype=torch.int64), 2).shape == (0, 2)
    assert on_cluster.search(none, none, None, 2, 2)[1].shape == (0, 4, 2)
    assert on_cluster.search(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3), None, 2, 2)[0].shape == (2, 0, 2)
