"""What code written for pytorch3d may rely on: the same arguments, in the same places, mean the same.

The other side is loops over clouds and points. Where the two differ on purpose docs/kernels.md has a table, and the
last tests here hold it.
"""

import inspect
from itertools import product
from typing import Any

import clouds
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from recon.kernels import chamfer_distance, group_points, knn_gather, knn_points, sample_farthest_points

X_LENGTHS, Y_LENGTHS = torch.tensor([7, 4, 1]), torch.tensor([2, 5, 5])


def cloud(size: int, seed: int, width: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return clouds.cloud("random", 3, size, width, torch.float64, seed).contiguous().to(dtype)


def one_way(x: Tensor, y: Tensor, norm: int) -> tuple[Tensor, Tensor]:
    """Distances of x [n, D] to the nearest of y [m, D], and which that is."""
    apart = x[:, None] - y
    found = (apart.abs() if norm == 1 else apart.square()).sum(2).min(1)
    return found.values, found.indices


def reduced(values: Tensor, point: str | None, size: int) -> Tensor:
    if point is None:
        return torch.nn.functional.pad(values, (0, size - len(values)))
    return values.mean() if point == "mean" else values.sum() if point == "sum" else values.max()


def chamfer(
    clouds: tuple[Tensor, Tensor],
    lengths: tuple[Tensor, Tensor],
    normals: tuple[Tensor, Tensor],
    weights: Tensor | None,
    batch: str | None,
    point: str | None,
    norm: int,
    single: bool,
    absolute: bool,
) -> tuple[Any, Any]:
    """As pytorch3d's documentation says it, a cloud at a time."""
    parts: dict[str, list[list[Tensor]]] = {"distance": [[], []], "normals": [[], []]}
    for way, b in product((0,) if single else (0, 1), range(3)):
        own, other = (clouds[side][b, : lengths[side][b]] for side in (way, 1 - way))
        dists, near = one_way(own, other, norm)
        own_normals, other_normals = (normals[side][b, : lengths[side][b]] for side in (way, 1 - way))
        cosine = cosine_similarity(own_normals, other_normals[near], dim=1, eps=1e-6)
        for name, each in (("distance", dists), ("normals", 1 - (cosine.abs() if absolute else cosine))):
            weighted = each if weights is None else each * weights[b]
            parts[name][way].append(reduced(weighted, point, clouds[way].shape[1]))
    found = []
    for ways in parts.values():
        stacked = [torch.stack(way) for way in ways if way]
        if point is None:
            found.append(stacked[0] if single else tuple(stacked))
            continue
        total = stacked[0] if single else torch.maximum(*stacked) if point == "max" else stacked[0] + stacked[1]
        if batch is not None:
            total = total.sum() / ((3 if weights is None else weights.sum()) if batch == "mean" else 1)
        found.append(total)
    return found[0], found[1]


CHOICES = [
    choice
    for choice in product((None, "weights"), ("mean", "sum", None), ("mean", "sum", "max", None), (1, 2), (False, True))
    if choice[1] is None or choice[2] is not None
]


@pytest.mark.parametrize("weighted,batch,point,norm,single", CHOICES)
def test_chamfer_by_position(
    weighted: str | None, batch: str | None, point: str | None, norm: int, single: bool
) -> None:
    x, y = (cloud(size, size, dtype=torch.float64).requires_grad_() for size in (7, 5))
    normals = cloud(7, 1, dtype=torch.float64), cloud(5, 2, dtype=torch.float64)
    weights = torch.tensor([0.5, 0, 2], dtype=torch.float64) if weighted else None
    given = (None, None) if point == "max" else normals
    ours = chamfer_distance(x, y, X_LENGTHS, Y_LENGTHS, *given, weights, batch, point, norm, single, not single)
    theirs = chamfer((x, y), (X_LENGTHS, Y_LENGTHS), normals, weights, batch, point, norm, single, not single)
    torch.testing.assert_close(ours[0], theirs[0])
    if point != "max":
        torch.testing.assert_close(ours[1], theirs[1])
    slopes = []
    for distance in (ours[0], theirs[0]):
        total = sum(part.sin().sum() for part in distance) if isinstance(distance, tuple) else distance.sin().sum()
        slopes.append(torch.autograd.grad(total, (x, y)))
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("batch", ["mean", "sum", None])
def test_weights_of_zero(batch: str | None) -> None:
    x, y = cloud(7, 7).requires_grad_(), cloud(5, 5).requires_grad_()
    normals = cloud(7, 1).requires_grad_(), cloud(5, 2)
    zero = torch.zeros(3)
    for found in chamfer_distance(x, y, None, None, *normals, zero, batch):
        assert isinstance(found, Tensor) and not found.any() and found.shape == (() if batch else (3,))
        slopes = torch.autograd.grad(found.sum(), (x, y, normals[0]), retain_graph=True, materialize_grads=True)
        assert not any(slope.any() for slope in slopes)


def test_a_cloud_of_weight_zero_is_left_out_whatever_it_holds() -> None:
    x, y = cloud(7, 7), cloud(5, 5)
    expected = chamfer_distance(x[:2], y[:2], weights=torch.ones(2))[0]
    y[2] = torch.nan
    weights = torch.tensor([1.0, 1, 0])
    x.requires_grad_()
    found = chamfer_distance(x, y, weights=weights)[0]
    torch.testing.assert_close(found, expected)
    found.backward()  # type: ignore[union-attr]
    assert x.grad is not None and x.grad.isfinite().all() and not x.grad[2].any()
    assert chamfer_distance(x, y, weights=weights, point_reduction="max")[0].isfinite()  # type: ignore[union-attr]


def test_normals_that_are_left_out_may_be_nan() -> None:
    """Those of the padding often are: zeros that were made unit vectors."""
    x, y, zero = cloud(7, 7), cloud(5, 5), torch.tensor([1.0, 1, 0])
    whole = cloud(7, 1), cloud(5, 2)
    torn = [each.clone() for each in whole]
    for each, lengths in zip(torn, (X_LENGTHS, Y_LENGTHS), strict=True):
        each[torch.arange(each.shape[1]) >= lengths[:, None]] = torch.nan
        each[2] = torch.nan
    slopes = []
    for normals in (whole, torn):
        leaves = [each.requires_grad_() for each in normals]
        found = chamfer_distance(x, y, X_LENGTHS, Y_LENGTHS, leaves[0], leaves[1], zero)[1]
        assert isinstance(found, Tensor)
        slopes.append((found, *torch.autograd.grad(found, leaves)))
    torch.testing.assert_close(*slopes, rtol=0, atol=0)
    assert all(slope[:2].any() and not slope[2].any() for slope in slopes[0][1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "weights", [torch.tensor([0.5, 1, 2]), torch.tensor([1, 0, 2]), torch.tensor([True, False, True])]
)
def test_weights_have_a_dtype_of_their_own(weights: Tensor, dtype: torch.dtype) -> None:
    x, y = cloud(7, 7, dtype=dtype), cloud(5, 5, dtype=dtype)
    each = chamfer_distance(x, y, batch_reduction=None)[0]
    assert isinstance(each, Tensor)
    found = chamfer_distance(x, y, weights=weights)[0]
    torch.testing.assert_close(found, (each * weights).sum() / weights.sum(), check_dtype=False)
    assert isinstance(found, Tensor) and found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_normals_of_three_axes_beside_points_of_two(dtype: torch.dtype) -> None:
    x, y, lengths = cloud(7, 7, 2), cloud(5, 5, 2), (torch.full((3,), 7), torch.full((3,), 5))
    normals = cloud(7, 1).to(dtype), cloud(5, 2).to(dtype)
    found = chamfer_distance(x, y, None, None, *normals)
    expected = chamfer((x, y), lengths, tuple(each.double() for each in normals), None, "mean", "mean", 2, False, True)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], check_dtype=False)
    with pytest.raises(ValueError, match=r"y_normals must have shape \[3, 5, 3\]"):
        chamfer_distance(x, y, None, None, normals[0], normals[1][..., :2])


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("lengths", [(None, None), (X_LENGTHS, Y_LENGTHS)])
def test_neighbours_by_position(lengths: tuple[Tensor | None, Tensor | None], norm: int) -> None:
    x, y = (cloud(size, size, dtype=torch.float64).requires_grad_() for size in (7, 5))
    found = knn_points(x, y, *lengths, norm, 3, return_nn=True, return_sorted=True)
    assert found.knn is not None
    expected = torch.zeros(3, 7, 3, dtype=torch.float64)
    for b in range(3):
        n, m = (
            points.shape[1] if sizes is None else int(sizes[b]) for points, sizes in zip((x, y), lengths, strict=True)
        )
        apart = x[b, :n, None] - y[b, :m]
        dists = (apart.abs() if norm == 1 else apart.square()).sum(2).sort(1).values[:, :3]
        expected[b, :n, : dists.shape[1]] = dists
        for i, k in product(range(7), range(3)):
            inside = i < n and k < m
            row = found.idx[b, i, k]
            assert (row >= 0) == inside
            assert torch.equal(found.knn[b, i, k], y[b, row] if inside else torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found.dists, expected)
    torch.testing.assert_close(*(torch.autograd.grad(dists.sin().sum(), (x, y)) for dists in (found.dists, expected)))


def test_gathering_leaves_out_what_lies_beyond_lengths() -> None:
    y = cloud(5, 5)
    idx = torch.tensor([[[4, 0, 1]], [[3, 3, 2]], [[0, 1, 2]]])
    found = knn_gather(y, idx, Y_LENGTHS)
    for b, k in product(range(3), range(3)):
        assert torch.equal(found[b, 0, k], y[b, idx[b, 0, k]] if k < Y_LENGTHS[b] else torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [5, 3000])  # few are gathered in another way
def test_labels_and_masks_are_gathered(dtype: torch.dtype, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (3, num_rows, 2), generator=generator).to(dtype)
    idx = torch.randint(-1, num_rows, (3, num_rows, 2), generator=generator)
    found = knn_gather(labels, idx)
    expected = labels.gather(1, idx.clamp(min=0).flatten(1)[..., None].expand(-1, -1, 2)).view(*idx.shape, 2)
    assert found.dtype == dtype and torch.equal(found, expected * (idx >= 0)[..., None])
    assert knn_gather(labels[..., :0], idx).shape == (*idx.shape, 0)


def test_numbers_of_numpy() -> None:
    x, y = cloud(7, 7), cloud(5, 5)
    assert torch.equal(knn_points(x, y, K=np.int64(3), norm=np.int64(1)).idx, knn_points(x, y, K=3, norm=1).idx)
    assert torch.equal(knn_points(x, y, norm=2.0).idx, knn_points(x, y).idx)  # type: ignore[arg-type]
    samples = sample_farthest_points(x, K=[3, 6, 0], start_idx=2)[1]
    counts = [np.int64(3), np.int32(6), np.int64(0)]
    assert torch.equal(sample_farthest_points(x, K=counts, start_idx=np.int64(2))[1], samples)  # type: ignore[arg-type]
    assert torch.equal(sample_farthest_points(x, K=np.int64(3))[1], sample_farthest_points(x, K=3)[1])  # type: ignore[arg-type]
    groups = group_points(x, np.int64(3), np.int64(2))[0]  # type: ignore[arg-type]
    assert torch.equal(groups, group_points(x, 3, 2)[0])


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, lambda K: torch.tensor(K, dtype=torch.int32)])
def test_a_number_of_samples_for_each_cloud(form: Any) -> None:
    x, counts = cloud(7, 7).requires_grad_(), [3, 6, 0]
    chosen, idx = sample_farthest_points(x, X_LENGTHS, form(counts))
    assert chosen.shape == (3, 6, 3) and idx.shape == (3, 6)
    for b, K in enumerate(counts):
        most = min(K, int(X_LENGTHS[b]))
        if most:
            alone = sample_farthest_points(x[b : b + 1, : X_LENGTHS[b]], None, most)
            assert torch.equal(idx[b, :most], alone[1][0]) and torch.equal(chosen[b, :most], alone[0][0])
        assert (idx[b, most:] == -1).all() and not chosen[b, most:].any()
    chosen.sum().backward()
    picked = torch.zeros(3, 7)
    for b, row in zip(*(idx >= 0).nonzero(as_tuple=True), strict=True):
        picked[b, idx[b, row]] = 1
    assert x.grad is not None and torch.equal(x.grad, picked[..., None].expand(-1, -1, 3))


@pytest.mark.parametrize("empty", [(3, 0, 3), (0, 7, 3)])
def test_samples_of_nothing(empty: tuple[int, int, int]) -> None:
    chosen, idx = sample_farthest_points(torch.zeros(empty), None, [2, 1, 0][: empty[0]])
    assert chosen.shape == (*idx.shape, 3) and (idx == -1).all() and not chosen.any()


@pytest.mark.parametrize(
    "K", [[3, 6], [3, 6, -1], [3, 6, 2.0], torch.tensor([3, 6]), torch.tensor([3.0, 6, 1]), True, 0, 2.5, "5"]
)
def test_numbers_of_samples_that_do_not_fit_are_named(K: Any) -> None:
    with pytest.raises(ValueError, match="K must"):
        sample_farthest_points(cloud(7, 7), None, K)


# pytorch3d's arguments in its order; ours that it lacks, and its `version`, go by name or not at all.
ORDER = {
    knn_points: "p1 p2 lengths1 lengths2 norm K",
    knn_gather: "x idx lengths",
    sample_farthest_points: "points lengths K random_start_point",
    chamfer_distance: "x y x_lengths y_lengths x_normals y_normals weights batch_reduction point_reduction norm "
    "single_directional abs_cosine",
}


@pytest.mark.parametrize("function", ORDER)
def test_arguments_by_position_are_pytorch3ds(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    by_position = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert by_position == ORDER[function].split()


def test_a_version_by_position_is_refused() -> None:
    """pytorch3d's seventh argument of knn_points would else be taken for return_nn."""
    with pytest.raises(TypeError, match="positional"):
        knn_points(cloud(7, 7), cloud(5, 5), None, None, 2, 3, -1, True)  # type: ignore[misc]


def test_differences_on_purpose() -> None:
    x, y = cloud(7, 7), cloud(5, 5)
    assert (knn_points(x, y, None, Y_LENGTHS, 2, 3).idx[0, :, 2] == -1).all()  # pytorch3d: 0
    assert chamfer_distance(x, y, weights=torch.zeros(3))[1] is None  # pytorch3d: 0
    ties = torch.zeros(1, 4, 3)
    assert sample_farthest_points(ties, None, 4)[1].tolist() == [[0, 1, 2, 3]]  # pytorch3d: 0 again and again
    assert knn_points(x.bfloat16(), y.bfloat16()).dists.dtype == torch.float32  # pytorch3d: no half precision
    empty = chamfer_distance(x, y, X_LENGTHS * 0, Y_LENGTHS)[0]
    assert empty == 0
