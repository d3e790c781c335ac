"""The Triton kernels of Chamfer and of weighted rows against the reference, and what they compile to."""

import ahead_of_time
import clouds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.kernels import reference
from recon.kernels.norms import ROOT

pytest.importorskip("triton")

from recon.kernels.on_triton import chamfer, chamfer_backward, interpolate, segments, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy, which stands in for the GPU, warns of overflow and of inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def marked_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what is never written with NaN or -7, and let one program do as much as it can."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def mark(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: mark(empty(*args, **kwargs)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: mark(new_empty(*args, **kwargs)))
    monkeypatch.setattr(tiles, "WARPS", 1)
    monkeypatch.setattr(tiles, "TINY_WARPS", 1)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search in runs and the backward in two launches, with their seams, at the sizes of a test."""
    for module, name, value in (
        (tiles, "ROWS", 2),
        (tiles, "TINY", 2),
        (chamfer, "RUN", 4),
        (chamfer, "QUERIES", 16),
        (chamfer_backward, "PAIRS", 32),
    ):
        monkeypatch.setattr(module, name, value)


def pair(kind: str, shape: tuple[int, int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    num_clouds, num_x, num_y, width = shape
    x = clouds.cloud(kind, num_clouds, num_x, width, torch.float32, seed).contiguous()
    y = clouds.cloud(kind, num_clouds, num_y, width, torch.float32, seed + 1).contiguous()
    return x, y


def check_forward(x: Tensor, y: Tensor, x_lengths: list[int] | None, y_lengths: list[int] | None, norm: int) -> None:
    """Same bits and indices as the reference wherever the contract names them."""
    num_x = x_lengths or [x.shape[1]] * len(x)
    num_y = y_lengths or [y.shape[1]] * len(y)
    lengths = [None if each is None else torch.tensor(each, device=DEVICE) for each in (x_lengths, y_lengths)]
    dists_x, idx_x, dists_y, idx_y = chamfer.nearest(x.to(DEVICE), y.to(DEVICE), *lengths, norm, False)
    for one, other, sizes, others, dists, idx in (
        (x, y, num_x, num_y, dists_x, idx_x),
        (y, x, num_y, num_x, dists_y, idx_y),
    ):
        expected = reference.knn(one, other, sizes, others, 1, norm)
        for b, (size, there) in enumerate(zip(sizes, others, strict=True)):
            if there:
                assert torch.equal(idx[b, :size].cpu(), expected[1][b, :size, 0])
                assert torch.equal(dists[b, :size].cpu(), expected[0][b, :size, 0])


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data())
def test_tiny_clouds_match_the_reference(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 11), st.integers(1, 11), st.integers(1, 5)))
    x, y = pair(data.draw(clouds.kinds), shape, data.draw(clouds.seeds))
    ragged = data.draw(st.booleans())
    lengths = [data.draw(clouds.lengths(shape[0], size)) if ragged else None for size in shape[1:3]]
    check_forward(x, y, *lengths, data.draw(st.sampled_from([1, 2])))


@pytest.mark.slow
@pytest.mark.usefixtures("small_runs")
@settings(max_examples=7)
@given(st.data())
def test_runs_match_the_reference(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(33, 70), st.integers(1, 20), st.integers(1, 4)))
    x, y = pair(data.draw(clouds.kinds), shape, data.draw(clouds.seeds))
    ragged = data.draw(st.booleans())
    lengths = [data.draw(clouds.lengths(shape[0], size)) if ragged else None for size in shape[1:3]]
    check_forward(x, y, *lengths, data.draw(st.sampled_from([1, 2])))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "non_finite"])
def test_larger_clouds_match_the_reference(kind: str) -> None:
    x, y = pair(kind, (1, 300, 70, 3), 5)
    check_forward(x, y, None, None, 2)


@pytest.mark.usefixtures("small_runs")
def test_where_all_are_at_infinity_the_first_is_nearest() -> None:
    x, y = pair("random", (1, 33, 6, 2), 1)
    y[0, 0], y[0, 1:] = torch.nan, torch.inf
    check_forward(x, y, None, None, 2)


def test_one_direction_leaves_the_other_empty() -> None:
    x, y = pair("random", (2, 5, 90, 3), 1)
    both = chamfer.nearest(x.to(DEVICE), y.to(DEVICE), None, None, 2, False)
    dists_x, idx_x, dists_y, idx_y = chamfer.nearest(x.to(DEVICE), y.to(DEVICE), None, None, 2, True)
    assert torch.equal(dists_x, both[0]) and torch.equal(idx_x, both[1])
    assert dists_y.shape == idx_y.shape == (2, 0)
    empty = chamfer.nearest(x[:0].to(DEVICE), y[:0].to(DEVICE), None, None, 2, False)
    assert [tuple(each.shape) for each in empty] == [(0, 5), (0, 5), (0, 90), (0, 90)]


def plain_gradients(
    grads: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor], idx: tuple[Tensor, Tensor], norm: int
) -> list[Tensor]:
    """By autograd in float64; pairs of -1 or of infinite distance left out."""
    leaves = [each.double().requires_grad_() for each in points]
    total = leaves[0].sum() * 0 + leaves[1].sum() * 0
    for grad, one, other, near in ((grads[0], *leaves, idx[0]), (grads[1], *leaves[::-1], idx[1])):
        for b, i in zip(*torch.where(near >= 0), strict=True):
            apart = one[b, i] - other[b, near[b, i]]
            value = apart.abs().sum() if norm == 1 else (apart * apart).sum()
            value = value.sqrt() if norm == ROOT and value > 0 else value
            if value.float().isfinite():
                total = total + grad[b, i].double() * value
    return [each.nan_to_num(0) for each in torch.autograd.grad(total, leaves)]


def check_backward(shape: tuple[int, int, int, int], norm: int, single: bool, seed: int) -> None:
    num_clouds, num_x, num_y, _ = shape
    generator = torch.Generator().manual_seed(seed)
    points = tuple(each.to(DEVICE) for each in pair("random", shape, seed))
    if not single:
        points[0][0, 0] = torch.inf
    sizes = ((num_x, num_y), (0 if single else num_y, num_x))
    grads = tuple(torch.randn(num_clouds, size, generator=generator) for size, _ in sizes)
    # Few targets, so that many points share one.
    idx = tuple(torch.randint(-1, min(3, high), (num_clouds, size), generator=generator) for size, high in sizes)
    expected = plain_gradients(grads, tuple(each.cpu() for each in points), idx, norm)
    arguments = [*(each.to(DEVICE) for each in grads), *points, *(each.to(DEVICE) for each in idx), norm]
    found = chamfer.nearest_backward(*arguments, True, True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.float(), rtol=1e-5, atol=1e-5)
    again = chamfer.nearest_backward(*arguments, True, True)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    shared = [torch.full((), 0.3, device=DEVICE).expand(grad.shape) for grad in grads]
    filled = [grad.contiguous() for grad in shared]
    for one, other in zip(
        chamfer.nearest_backward(*shared, *arguments[2:], True, True),
        chamfer.nearest_backward(*filled, *arguments[2:], True, True),
        strict=True,
    ):
        assert torch.equal(one, other)
    of_x, nothing = chamfer.nearest_backward(*arguments, True, False)
    assert torch.equal(of_x, found[0]) and nothing.numel() == 0
    nothing, of_y = chamfer.nearest_backward(*arguments, False, True)
    assert torch.equal(of_y, found[1]) and nothing.numel() == 0


@pytest.mark.parametrize("norm", [1, 2, ROOT])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 5, 3), (5, 1, 2, 1)])
def test_gradients_match_autograd(shape: tuple[int, int, int, int], norm: int, single: bool) -> None:
    check_backward(shape, norm, single, sum(shape))


@pytest.mark.slow
@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("single", [False, True])
def test_gradients_of_larger_clouds_match_autograd(single: bool) -> None:
    check_backward((2, 40, 9, 2), 2, single, 3)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("targets", [1, 5, 50])
def test_segments_are_added_up(targets: int, own: bool) -> None:
    generator = torch.Generator().manual_seed(targets)
    idx = torch.randint(-1, targets, (3, 40), generator=generator)  # of one target every second match is of it
    others = torch.randn(3, 40, 2, generator=generator)
    mine = torch.randn(3, 50 if own else 0, 2, generator=generator)
    expected = torch.zeros(3, 50, 2, dtype=torch.float64)
    if own:
        expected += mine
    for b, j in (idx >= 0).nonzero().tolist():
        expected[b, idx[b, j]] -= others[b, j]
    found = segments.subtracted(mine.to(DEVICE), others.to(DEVICE), idx.to(DEVICE), 50)
    torch.testing.assert_close(found.cpu(), expected.float(), rtol=1e-5, atol=1e-5)


def test_no_segments_leave_what_is_there() -> None:
    mine, idx = torch.ones(2, 3, 2, device=DEVICE), torch.zeros(2, 0, dtype=torch.int64, device=DEVICE)
    assert torch.equal(segments.subtracted(mine, mine[:, :0], idx, 3), mine)


@settings(max_examples=15)
@given(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)),
    st.sampled_from([1, 3, 130]),
    clouds.seeds,
)
def test_weighted_rows_match_a_plain_sum(shape: tuple[int, int, int, int], width: int, seed: int) -> None:
    num_clouds, num_queries, num_points, num_near = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_clouds, num_points, width, generator=generator)
    idx = torch.randint(0, num_points, (num_clouds, num_queries, num_near), generator=generator)
    weights = torch.randn(idx.shape, generator=generator)
    none = torch.rand(idx.shape[:2], generator=generator) < 0.2
    weights[none], idx[none] = 0, num_points
    features = torch.cat([features, torch.full((num_clouds, 1, width), torch.nan)], 1)
    found = interpolate.weighted_rows(features.to(DEVICE), idx.to(DEVICE), weights.to(DEVICE)).cpu()
    expected = torch.zeros(num_clouds, num_queries, width)
    for b in range(num_clouds):
        for k in range(num_near):
            expected[b] += features[b, idx[b, :, k]] * weights[b, :, k, None]
    expected[none] = 0  # though 0 x NaN is NaN
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    """At ReCon's sizes, whole and ragged: none spills a register."""
    ahead_of_time.check("test_triton_chamfer")


def launch_all() -> None:
    """Every launch of ReCon's sizes, and one of size 1."""
    for num_clouds, size in ((4992, 32), (2432, 16), (128, 1024), (32, 8192), (1, 1)):
        x, grad = (torch.empty(num_clouds, size, *rest, device="meta") for rest in ((3,), ()))
        lengths, idx = (torch.empty(n, dtype=torch.int64, device="meta") for n in (num_clouds, (num_clouds, size)))
        chamfer.nearest(x, x, None, None, 2, False)
        chamfer.nearest(x, x, lengths, lengths, 2, False)
        chamfer.nearest_backward(grad, grad, x, x, idx, idx, 2, True, True)
        shared = torch.empty((), device="meta").expand(num_clouds, size)
        chamfer.nearest_backward(shared, shared, x, x, idx, idx, ROOT, True, True)
    for shape, width in (((32, 2048, 3), 384), ((1, 1, 1), 1)):
        features = torch.empty(shape[0], 128, width, device="meta")
        idx, weights = (torch.empty(shape, dtype=dtype, device="meta") for dtype in (torch.int64, torch.float32))
        interpolate.weighted_rows(features, idx, weights)


MODULES = (chamfer, chamfer_backward, segments, interpolate)
