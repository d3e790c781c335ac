import clouds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.kernels import interpolate_three, reference, weight_ops
from recon.kernels.on_torch import rows

FINITE = [kind for kind in clouds.KINDS if kind not in ("non_finite", "huge")]


@settings(max_examples=80)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 20), st.integers(1, 5)),
    kind=st.sampled_from(FINITE),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=clouds.seeds,
)
def test_interpolation_is_the_reference(
    sizes: tuple[int, int, int, int], kind: str, dtype: torch.dtype, seed: int
) -> None:
    num_clouds, m, n, width = sizes
    known, query = (clouds.cloud(kind, num_clouds, size, 3, dtype, seed + size) for size in (m, n))
    features = clouds.cloud("random", num_clouds, m, width, dtype, seed + 7)
    torch.testing.assert_close(interpolate_three(known, features, query), reference.interpolate(known, features, query))


def test_a_known_point_keeps_its_feature() -> None:
    known = clouds.cloud("random", 1, 20, 3, torch.float32, seed=1)
    features = clouds.cloud("random", 1, 20, 4, torch.float32, seed=2)
    torch.testing.assert_close(interpolate_three(known, features, known), features, rtol=1e-4, atol=1e-4)


def test_the_middle_of_two_is_their_mean_in_half_precision() -> None:
    known = torch.tensor([[[0.0, 0], [2, 0], [1, 200]]], dtype=torch.float16)
    features = torch.tensor([[[1.0], [3], [999]]], dtype=torch.float16)
    found = interpolate_three(known, features, torch.tensor([[[1.0, 0]]], dtype=torch.float16))
    assert found.dtype == torch.float16
    assert abs(found.item() - 2) < 0.02


def test_non_finite_points_have_no_say() -> None:
    known = torch.tensor([[[0.0], [torch.inf], [torch.nan]]])
    features = torch.tensor([[[5.0], [torch.nan], [torch.inf]]])
    found = interpolate_three(known, features, torch.tensor([[[1.0], [torch.nan]]]))
    assert found.flatten().tolist() == [5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_near", [1, 2, 3])
def test_few_weights_have_the_bits_of_many(dtype: torch.dtype, num_near: int) -> None:
    generator = torch.Generator().manual_seed(num_near)
    dists = torch.rand(2, 200, num_near, dtype=dtype, generator=generator).square().sort(dim=2).values
    dists[0, 0], dists[0, 1, 1:], dists[0, 2, 0], dists[0, 3] = torch.inf, torch.inf, 0, 1e30
    idx = torch.randint(0, 9, dists.shape, generator=generator)
    found, expected = weight_ops.inverse_weights(dists, idx), weight_ops.plain(dists, idx)
    assert dists.numel() <= rows.FEW and all(map(torch.equal, found, expected))
    assert not found[0][0, 0].any() and (found[1][0, 1] == idx[0, 1, 0]).all()


def test_the_gradient_of_weights_is_that_of_their_formula() -> None:
    dists = clouds.cloud("random", 2, 5, 3, torch.float64, seed=3).square()
    dists[0, 0], dists[0, 1, 2] = torch.inf, torch.inf
    idx, grad = torch.zeros(dists.shape, dtype=torch.int64), clouds.cloud("random", 2, 5, 3, torch.float64, seed=4)
    by_operator, by_formula = (
        torch.autograd.grad((of(each, idx)[0] * grad).sum(), each)[0]
        for of in (weight_ops.inverse_weights, weight_ops.plain)
        for each in [dists.clone().requires_grad_()]
    )
    assert torch.equal(by_operator, by_formula)


@pytest.mark.parametrize("num_queries", [2, 2000])
def test_who_is_at_infinity_of_all_gets_nothing(num_queries: int) -> None:
    known, features = torch.zeros(1, 4, 3), torch.full((1, 4, 5), torch.nan)
    query = torch.full((1, num_queries, 3), torch.inf)
    found = interpolate_three(known, features, query)
    assert found.shape == (1, num_queries, 5) and not found.any()


def test_gradients() -> None:
    known, query = (clouds.cloud("random", 2, n, 3, torch.float64, seed=n).requires_grad_() for n in (4, 2))
    features = clouds.cloud("random", 2, 4, 1, torch.float64, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(interpolate_three, (known, features, query))
    assert torch.autograd.gradgradcheck(interpolate_three, (known, features, query))


KNOWN = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": torch.zeros(5, 3)}, r"known must have shape.*\[5, 3\]"),
        ({"known": torch.zeros(2, 0, 3), "features": torch.zeros(2, 0, 4)}, "known must hold at least one"),
        ({"features": torch.zeros(2, 4, 4)}, r"features must have shape \[2, 5, any\].*\[2, 4, 4\]"),
        ({"query": torch.zeros(1, 4, 3)}, r"query must have shape \[2, any, 3\].*\[1, 4, 3\]"),
        ({"query": torch.zeros(2, 4, 3).double()}, "query must have.*dtype.*float64"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    arguments = {"known": KNOWN, "features": torch.zeros(2, 5, 4), "query": KNOWN, **change}
    with pytest.raises(ValueError, match=message):
        interpolate_three(**arguments)
