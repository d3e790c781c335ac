import clouds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.kernels import reference, sample_farthest_points


def test_reference_on_a_line() -> None:
    points = torch.tensor([[[0.0], [1], [9], [10], [4]]])
    # From 0 the farthest is 10, then 4 (4 from 0) before 9 (1 from 10), then 1 and 9 tie: the lower index.
    assert reference.farthest_points(points, [5], 6, [0]).tolist() == [[0, 3, 4, 1, 2, -1]]


@settings(max_examples=120)
@given(data=st.data(), kind=clouds.kinds, dtype=clouds.dtypes, seed=clouds.seeds)
def test_fps_is_the_reference(data: st.DataObject, kind: str, dtype: torch.dtype, seed: int) -> None:
    num_clouds, width = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 5)))
    n = data.draw(st.one_of(st.integers(1, 12), st.integers(30, 70)))
    K = data.draw(st.integers(1, n + 3))
    lengths = data.draw(clouds.lengths(num_clouds, n))
    start = [data.draw(st.integers(0, max(0, length - 1))) for length in lengths]
    points = clouds.cloud(kind, num_clouds, n, width, dtype, seed)
    start_idx = torch.tensor(start, dtype=torch.int64)
    backend = data.draw(st.sampled_from(clouds.CPU))
    chosen, idx = sample_farthest_points(points, torch.tensor(lengths).long(), K, start_idx=start_idx, backend=backend)
    assert torch.equal(idx, reference.farthest_points(points, lengths, K, start))
    assert chosen.dtype == dtype
    for cloud, picks, rows in zip(points, chosen, idx, strict=True):
        assert torch.equal(picks[rows >= 0].nan_to_num(), cloud[rows[rows >= 0]].nan_to_num())
        assert not picks[rows < 0].any()


@pytest.mark.parametrize("kind", clouds.KINDS)
def test_fps_is_the_reference_at_real_sizes(kind: str) -> None:
    points = clouds.cloud(kind, 2, 1024, 3, torch.float32, seed=6)
    _, idx = sample_farthest_points(points, K=64)
    assert torch.equal(idx, reference.farthest_points(points, [1024] * 2, 64, [0] * 2))


def spread(kind: str) -> torch.Tensor:
    """[4, 2100, 3]: clouds of a kind, a surface, and one whose distances end at once."""
    points = clouds.cloud("random", 4, 2100, 3, torch.float32, seed=8)
    if kind == "surface":
        return points / points.norm(dim=2, keepdim=True)
    if kind == "speck":  # one point far off, then nothing but duplicates
        return torch.cat([points[:, :1] + 50, points[:, :100].repeat(1, 21, 1)[:, :2099]], 1)
    return points if kind == "random" else clouds.cloud(kind, 4, 2100, 3, torch.float32, seed=8)


RAGGED = [100, 2100, 1000, 0]


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [*((kind, None) for kind in (*clouds.KINDS, "surface", "speck")), ("random", RAGGED), ("non_finite", RAGGED)],
)
@pytest.mark.parametrize("backend", clouds.CPU)
def test_many_samples(kind: str, lengths: list[int] | None, backend: str) -> None:
    points, start = spread(kind), torch.tensor([7, 0, 0, 0])
    sizes = None if lengths is None else torch.tensor(lengths)
    _, idx = sample_farthest_points(points, sizes, 128, start_idx=start, backend=backend)
    assert torch.equal(idx, reference.farthest_points(points, lengths or [2100] * 4, 128, start.tolist()))


@pytest.mark.parametrize("kind", ["constant", "duplicates"])
def test_no_point_twice(kind: str) -> None:
    points = clouds.cloud(kind, 1, 50, 3, torch.float32, seed=1)
    _, idx = sample_farthest_points(points, K=50)
    assert idx[0].sort().values.tolist() == list(range(50))


def test_no_samples_of_any_cloud() -> None:
    points = clouds.cloud("random", 2, 30, 3, torch.float32, seed=2)
    chosen, idx = sample_farthest_points(points, K=[0, 0])
    assert chosen.shape == (2, 0, 3) and idx.shape == (2, 0)


def test_starts() -> None:
    points = clouds.cloud("random", 4, 30, 3, torch.float32, seed=2)
    assert sample_farthest_points(points, K=2)[1][:, 0].tolist() == [0] * 4
    assert sample_farthest_points(points, K=2, start_idx=7)[1][:, 0].tolist() == [7] * 4
    lengths = torch.tensor([1, 2, 30, 0])
    torch.manual_seed(3)
    drawn = [sample_farthest_points(points, lengths, K=1, random_start_point=True)[1][:, 0] for _ in range(40)]
    for start in drawn:
        assert ((start < lengths) & (start >= -1)).all() and start[3] == -1
    assert len({int(start[2]) for start in drawn}) > 5
    torch.manual_seed(3)
    assert torch.equal(sample_farthest_points(points, lengths, K=1, random_start_point=True)[1][:, 0], drawn[0])


def test_no_points_at_all() -> None:
    chosen, idx = sample_farthest_points(torch.zeros(2, 0, 3), K=2)
    assert idx.tolist() == [[-1, -1]] * 2
    assert chosen.tolist() == [[[0, 0, 0]] * 2] * 2


def test_gradient() -> None:
    points = clouds.cloud("random", 2, 9, 3, torch.float64, seed=7).requires_grad_()
    lengths = torch.tensor([9, 3])
    assert torch.autograd.gradcheck(lambda x: sample_farthest_points(x, lengths, K=4)[0], (points,))


POINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": torch.zeros(5, 3)}, r"points must have shape.*\[5, 3\]"),
        ({"points": POINTS.int()}, "points must be float16.*int32"),
        ({"K": 0}, "K must be an integer >= 1"),
        ({"lengths": torch.tensor([6, 5])}, r"lengths must lie in \[0, 5\]"),
        ({"start_idx": 5}, r"start_idx must be an integer in \[0, 4\], got 5"),
        ({"start_idx": torch.tensor([0, -1])}, r"start_idx must lie in \[0, 4\]"),
        ({"start_idx": torch.tensor([0, 4]), "lengths": torch.tensor([5, 3])}, "start_idx.*lengths"),
        ({"start_idx": 3, "lengths": torch.tensor([5, 3])}, "start_idx.*lengths"),
        ({"start_idx": 0, "random_start_point": True}, "start_idx cannot be given together"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_farthest_points(**{"points": POINTS, **arguments})  # type: ignore[arg-type]
