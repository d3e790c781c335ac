import clouds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.kernels import group_points, reference


@settings(max_examples=160)
@given(data=st.data(), kind=clouds.kinds, dtype=clouds.dtypes, seed=clouds.seeds)
def test_groups_are_the_reference(data: st.DataObject, kind: str, dtype: torch.dtype, seed: int) -> None:
    num_clouds, n = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 60)))
    num_group, group_size = (data.draw(st.integers(1, n)) for _ in range(2))
    points = clouds.cloud(kind, num_clouds, n, 3, dtype, seed)
    groups, centers = group_points(points, num_group, group_size, data.draw(st.sampled_from(clouds.CPU)))
    assert groups.shape == (num_clouds, num_group, group_size, 3) and groups.dtype == dtype
    if num_clouds:
        expected_groups, expected_centers = reference.groups(points, num_group, group_size)
        # The same bits, with NaN where NaN is expected.
        torch.testing.assert_close(groups, expected_groups, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(centers, expected_centers, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sizes", [(1024, 64, 32), (512, 32, 16)])
def test_groups_at_the_tokenizers_sizes(sizes: tuple[int, int, int]) -> None:
    n, num_group, group_size = sizes
    points = clouds.cloud("random", 3, n, 3, torch.float32, seed=4)
    groups, centers = group_points(points, num_group, group_size)
    expected_groups, expected_centers = reference.groups(points, num_group, group_size)
    assert torch.equal(groups, expected_groups) and torch.equal(centers, expected_centers)
    # Nearest first, and a center is its own nearest point.
    assert not groups[:, :, 0].any()


def test_gradients() -> None:
    points = clouds.cloud("random", 2, 12, 3, torch.float64, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: group_points(x, 3, 4), (points,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5, 3), 1, 1), r"points must have shape.*\[5, 3\]"),
        ((torch.zeros(2, 5, 3), 6, 1), r"num_group 6 must not exceed.*\[2, 5, 3\]"),
        ((torch.zeros(2, 5, 3), 1, 6), r"group_size 6 must not exceed.*\[2, 5, 3\]"),
        ((torch.zeros(2, 5, 3), 0, 1), "num_group must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[torch.Tensor, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_points(*arguments)
