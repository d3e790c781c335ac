import clouds
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import cosine_similarity

import recon.kernels.on_torch.chamfer
import recon.kernels.on_torch.knn
from recon.kernels import ChamferL1, ChamferL2, chamfer_distance, reference


def patch_pairs(patch: pytest.MonkeyPatch, pairs: int) -> None:
    """Up to how many pairs Numba's kernel looks at all of them, where there is Numba."""
    if "numba" in clouds.CPU:
        patch.setattr("recon.kernels.on_numba.chamfer.PAIRS", pairs)


def test_reference_agrees_with_a_kd_tree() -> None:
    x, y = (clouds.cloud("random", 1, n, 3, torch.float64, seed=n) for n in (20, 31))
    first, second = reference.chamfer(x, y, [20], [31])
    np.testing.assert_allclose(first[0], cKDTree(y[0].numpy()).query(x[0].numpy())[0] ** 2, rtol=1e-12)
    np.testing.assert_allclose(second[0], cKDTree(x[0].numpy()).query(y[0].numpy())[0] ** 2, rtol=1e-12)


@pytest.mark.slow
@settings(max_examples=400)
@given(data=st.data(), kind=clouds.kinds, dtype=clouds.dtypes, seed=clouds.seeds, norm=st.sampled_from([1, 2]))
def test_chamfer_is_the_reference(data: st.DataObject, kind: str, dtype: torch.dtype, seed: int, norm: int) -> None:
    num_clouds, width = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 4)))
    n, m = (data.draw(st.one_of(st.integers(0, 9), st.integers(30, 80))) for _ in range(2))
    x_lengths, y_lengths = data.draw(clouds.lengths(num_clouds, n)), data.draw(clouds.lengths(num_clouds, m))
    x, y = (clouds.cloud(kind, num_clouds, size, width, dtype, seed + size) for size in (n, m))
    single = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        # All searches at every size, and chunks with seams everywhere.
        patch_pairs(patch, data.draw(st.sampled_from([0, 2**20])))
        patch.setattr(recon.kernels.on_torch.chamfer, "TINY", data.draw(st.sampled_from([0, 2**12])))
        patch.setattr(recon.kernels.on_torch.knn, "CPU_CHUNK", data.draw(st.sampled_from([1, 500, 2**16])))
        found, normals = chamfer_distance(
            x,
            y,
            torch.tensor(x_lengths).long(),
            torch.tensor(y_lengths).long(),
            batch_reduction=None,
            point_reduction=None,
            norm=norm,
            single_directional=single,
            backend=data.draw(st.sampled_from(clouds.CPU)),
        )
    first, second = reference.chamfer(x, y, x_lengths, y_lengths, norm)
    assert normals is None
    if single:
        assert isinstance(found, Tensor) and torch.equal(found, first)
    else:
        assert torch.equal(found[0], first) and torch.equal(found[1], second)


@pytest.mark.parametrize("tiny", [0, 2**12])
def test_ties_go_to_the_lowest_index(tiny: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recon.kernels.on_torch.chamfer, "TINY", tiny)
    patch_pairs(monkeypatch, tiny)
    x, y = (clouds.cloud("grid", 40, 32, 3, torch.float32, seed=n) for n in (1, 2))
    whole = [32] * 40
    for backend in clouds.CPU:
        _, idx_x, _, idx_y = recon.kernels.chamfer.nearest(x, y, backend=backend)
        assert torch.equal(idx_x, reference.knn(x, y, whole, whole, 1)[1][..., 0])
        assert torch.equal(idx_y, reference.knn(y, x, whole, whole, 1)[1][..., 0])


@pytest.mark.parametrize("shape", [(70, 32), (9, 16), (2, 300)])
def test_losses_mean_what_recon_means(shape: tuple[int, int]) -> None:
    x, y = (clouds.cloud("random", *shape, 3, torch.float32, seed=n) for n in (1, 2))
    whole = [shape[1]] * shape[0]
    first, second = reference.chamfer(x, y, whole, whole)
    torch.testing.assert_close(ChamferL2()(x, y), first.mean() + second.mean())
    torch.testing.assert_close(ChamferL1()(x, y), (first.sqrt().mean() + second.sqrt().mean()) / 2)


def test_l1_gradient_is_finite_where_clouds_touch() -> None:
    x = clouds.cloud("duplicates", 3, 8, 3, torch.float32, seed=1).requires_grad_()
    y = x.detach().clone()
    y[:, :4] += 1
    loss = ChamferL1()(x, y)
    loss.backward()
    assert loss > 0 and x.grad is not None
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("tiny", [2**12, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["squared", *(pytest.param(n, marks=pytest.mark.slow) for n in ("l1", "l2", "manhattan", "sum", "max"))]
)
def test_gradients(name: str, tiny: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_pairs(monkeypatch, tiny)
    lengths = torch.tensor([4, 2])
    losses = {
        "l1": ChamferL1(),
        "l2": ChamferL2(),
        "manhattan": lambda x, y: chamfer_distance(x, y, lengths, norm=1)[0],
        "squared": lambda x, y: chamfer_distance(x, y, lengths, weights=torch.tensor([1.0, 3]).double())[0],
        "sum": lambda x, y: chamfer_distance(x, y, y_lengths=lengths, point_reduction="sum")[0],
        "max": lambda x, y: chamfer_distance(x, y, point_reduction="max", batch_reduction="sum")[0],
    }
    x, y = (clouds.cloud("random", 2, 4, 2, torch.float64, seed=n).requires_grad_() for n in (1, 2))
    assert torch.autograd.gradcheck(losses[name], (x, y))
    if name != "manhattan":
        assert torch.autograd.gradgradcheck(losses[name], (x, y))


def test_the_same_gradient_bits_every_time() -> None:
    x, y = (clouds.cloud("random", 300, 32, 3, torch.float32, seed=n) for n in (1, 2))
    grads = []
    for _ in range(3):
        target = y.clone().requires_grad_()
        ChamferL2()(x, target).backward()
        grads.append(target.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_reductions() -> None:
    x, y = (clouds.cloud("random", 3, n, 3, torch.float32, seed=n) for n in (6, 4))
    x_lengths, weights = torch.tensor([6, 3, 0]), torch.tensor([1.0, 0.5, 2.0])
    first, second = reference.chamfer(x, y, [6, 3, 0], [4] * 3)

    def distance(**arguments: object) -> Tensor:
        found = chamfer_distance(x, y, x_lengths, **arguments)[0]  # type: ignore[arg-type]
        assert isinstance(found, Tensor)
        return found

    total = first.sum(1) / torch.tensor([6, 3, 1]) + second.sum(1) / 4
    torch.testing.assert_close(distance(), total.mean())
    torch.testing.assert_close(distance(batch_reduction="sum"), total.sum())
    torch.testing.assert_close(distance(batch_reduction=None), total)
    torch.testing.assert_close(distance(weights=weights), (total * weights).sum() / 3.5)
    assert distance(weights=torch.zeros(3)) == 0
    torch.testing.assert_close(distance(batch_reduction=None, point_reduction="sum"), first.sum(1) + second.sum(1))
    torch.testing.assert_close(
        distance(batch_reduction=None, point_reduction="max"), torch.maximum(first.amax(1), second.amax(1))
    )
    torch.testing.assert_close(
        distance(batch_reduction=None, single_directional=True), first.sum(1) / torch.tensor([6, 3, 1])
    )


@pytest.mark.parametrize("abs_cosine", [True, False])
def test_normals_of_the_nearest_points(abs_cosine: bool) -> None:
    x, y = (clouds.cloud("random", 2, n, 3, torch.float32, seed=n) for n in (6, 4))
    x_normals, y_normals = (clouds.cloud("random", 2, n, 3, torch.float32, seed=n + 50) for n in (6, 4))
    _, found = chamfer_distance(
        x, y, x_normals=x_normals, y_normals=y_normals, abs_cosine=abs_cosine, batch_reduction="sum"
    )
    expected = torch.zeros(())
    for one, two, near, far in ((x, y, x_normals, y_normals), (y, x, y_normals, x_normals)):
        size = [[cloud.shape[1]] * 2 for cloud in (one, two)]
        idx = reference.knn(one, two, *size, 1)[1]
        for b in range(2):
            cosine = cosine_similarity(near[b], far[b, idx[b, :, 0]], dim=1)
            expected = expected + (1 - (cosine.abs() if abs_cosine else cosine)).mean()
    torch.testing.assert_close(found, expected)


X = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(5, 3)}, r"x must have shape.*\[5, 3\]"),
        ({"y": torch.zeros(3, 5, 3)}, r"y must have shape \[2, any, 3\].*\[3, 5, 3\]"),
        ({"y": X.half()}, "y must have.*dtype.*float16"),
        ({"x_lengths": torch.tensor([6, 5])}, r"x_lengths must lie in \[0, 5\]"),
        ({"y_lengths": torch.tensor([6, 5])}, r"y_lengths must lie in \[0, 5\]"),
        ({"x_normals": X}, "x_normals and y_normals must be given together"),
        ({"x_normals": X, "y_normals": X[:, :4]}, r"y_normals must have shape \[2, 5, 3\]"),
        ({"x_normals": X, "y_normals": X, "point_reduction": "max"}, 'not with point_reduction="max"'),
        ({"weights": torch.ones(3)}, r"weights must have shape \[2\]"),
        ({"weights": torch.tensor([1.0, -1])}, "weights.*negative"),
        ({"norm": 0}, "norm must be 1"),
        ({"batch_reduction": "average"}, "batch_reduction must be"),
        ({"point_reduction": "median"}, "point_reduction must be"),
        ({"point_reduction": None}, "batch_reduction must be None where point_reduction is None"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chamfer_distance(**{"x": X, "y": X, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [ChamferL1(), ChamferL2()])
def test_losses_refuse_clouds_that_do_not_match(loss: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="y must have shape"):
        loss(X, X[:1])
    with pytest.raises(ValueError, match="at least one point"):
        loss(X, X[:, :0])
