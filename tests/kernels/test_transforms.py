"""`torch.func` and forward mode against plain torch, op by op."""

from collections.abc import Callable
from typing import Any

import clouds
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from recon import kernels
from recon.kernels import ops

# torch's own: the first time that it differentiates forwards, and as it linearizes anything at all.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning", "ignore:Attempted to insert a get_attr Node:UserWarning"
)
Function = Callable[[Tensor, Tensor], Tensor]
CLOUDS, X, Y, WIDTH = 2, 5, 4, 2
IDX = torch.tensor([[[0, 3], [-1, 3]], [[2, 2], [1, -1]]])
SIZES = [(5, 2), (3, 4)]
X_LENGTHS, Y_LENGTHS = torch.tensor(SIZES).unbind(1)


def cloud(size: int, seed: int) -> Tensor:
    return clouds.cloud("random", CLOUDS, size, WIDTH, torch.float64, seed).contiguous()


def pairs(x: Tensor, y: Tensor, norm: int = 2) -> Tensor:
    """[B, N, M]"""
    apart = x[:, :, None] - y[:, None]
    return (apart.abs() if norm == 1 else apart.square()).sum(3)


def nearest_few(x: Tensor, y: Tensor, K: int, norm: int = 2) -> Tensor:
    return pairs(x, y, norm).sort(2).values[..., :K]


def taken(x: Tensor, idx: Tensor) -> Tensor:
    """x [B, N, D] at idx [B, ...] -> [B, ..., D]"""
    flat = idx.flatten(1)[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, flat).unflatten(1, idx.shape[1:])


# What farthest point sampling picks of x, and of x scaled or moved.
CHOSEN = kernels.sample_farthest_points(cloud(X, 1), K=3)[1]


def plain_groups(x: Tensor) -> Tensor:
    centers = taken(x, CHOSEN)
    near = pairs(centers, x).argsort(2)[..., :3]
    return taken(x, near) - centers[:, :, None]


def plain_ragged(x: Tensor, y: Tensor, norm: int) -> Tensor:
    total = x.new_zeros(())
    for b, (n, m) in enumerate(SIZES):
        dists = pairs(x[b : b + 1, :n], y[b : b + 1, :m], norm)
        total = total + dists.amin(2).mean() + dists.amin(1).mean()
    return total / CLOUDS


def plain_interpolation(x: Tensor, y: Tensor) -> Tensor:
    dists, near = pairs(y, x).sort(2)
    weights = 1 / (dists[..., :3] + 1e-8)
    weights = weights / weights.sum(2, keepdim=True)
    return (taken(x.sin(), near[..., :3]) * weights[..., None]).sum(2)


def plain_normals(x: Tensor, y: Tensor) -> Tensor:
    dists = pairs(x, y)
    forth = torch.cosine_similarity(x, taken(y, dists.argmin(2)), dim=2, eps=1e-6)
    back = torch.cosine_similarity(y, taken(x, dists.argmin(1)), dim=2, eps=1e-6)
    return (1 - forth.abs()).mean() + (1 - back.abs()).mean()


def plain_chamfer(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dists = pairs(x, y)
    return dists.amin(2), dists.amin(1)


def weighted(x: Tensor, y: Tensor) -> Tensor:
    return kernels.chamfer_distance(x, y, weights=x[:, 0, 0].square())[0]  # type: ignore[return-value]


def plain_weighted(x: Tensor, y: Tensor) -> Tensor:
    weights = x[:, 0, 0].square()
    forth, back = plain_chamfer(x, y)
    return ((forth.mean(1) + back.mean(1)) * weights).sum() / weights.sum()


# Both forms of each op, as functions of x [2, 5, 2] and y [2, 4, 2].
CASES: dict[str, tuple[Function, Function]] = {
    "knn": (lambda x, y: kernels.knn_points(x, y, K=3).dists, lambda x, y: nearest_few(x, y, 3)),
    "knn manhattan": (lambda x, y: kernels.knn_points(x, y, norm=1, K=2).dists, lambda x, y: nearest_few(x, y, 2, 1)),
    "knn points": (
        lambda x, y: kernels.knn_points(x, y, K=2, return_nn=True).knn,  # type: ignore[dict-item,return-value]
        lambda x, y: taken(y, pairs(x, y).argsort(2)[..., :2]),
    ),
    "gather": (
        lambda x, y: kernels.knn_gather(x, IDX).square(),
        lambda x, y: (taken(x, IDX.clamp(min=0)) * (IDX >= 0)[..., None]).square(),
    ),
    "fps": (lambda x, y: kernels.sample_farthest_points(x, K=3)[0].square(), lambda x, y: taken(x, CHOSEN).square()),
    "group": (lambda x, y: kernels.group_points(x, 3, 3)[0].square(), lambda x, y: plain_groups(x).square()),
    "interpolate": (lambda x, y: kernels.interpolate_three(x, x.sin(), y), plain_interpolation),
    "ChamferL2": (kernels.ChamferL2(), lambda x, y: sum(part.mean() for part in plain_chamfer(x, y))),  # type: ignore[dict-item,return-value]
    "ChamferL1": (kernels.ChamferL1(), lambda x, y: sum(part.sqrt().mean() for part in plain_chamfer(x, y)) / 2),
    "ragged": (
        lambda x, y: kernels.chamfer_distance(x, y, X_LENGTHS, Y_LENGTHS)[0],  # type: ignore[dict-item,return-value]
        lambda x, y: plain_ragged(x, y, 2),
    ),
    "ragged manhattan": (
        lambda x, y: kernels.chamfer_distance(x, y, X_LENGTHS, Y_LENGTHS, norm=1)[0],  # type: ignore[dict-item,return-value]
        lambda x, y: plain_ragged(x, y, 1),
    ),
    "weighted": (weighted, plain_weighted),
    "normals": (
        lambda x, y: kernels.chamfer_distance(x, y, x_normals=x, y_normals=y)[1],  # type: ignore[dict-item,return-value]
        plain_normals,
    ),
}  # fmt: skip


def along(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return cloud(X, 5), cloud(Y, 6)


def total(function: Function) -> Function:
    return lambda x, y: function(x, y).sin().sum()


def by_duals(function: Function, x: Tensor, y: Tensor) -> list[Tensor]:
    """The tangent, and the derivative along the step of the gradient: forward over reverse."""
    with forward_ad.dual_level():
        leaves = [forward_ad.make_dual(value.clone(), step) for value, step in zip((x, y), along(x, y), strict=True)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        value = total(function)(leaves[0], leaves[1])
        gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
        return [forward_ad.unpack_dual(part).tangent for part in (value, *gradients)]


TRANSFORMS: dict[str, Callable[[Function, Tensor, Tensor], Any]] = {
    "jvp": lambda f, x, y: jvp(f, (x, y), along(x, y)),
    "linearize": lambda f, x, y: linearize(f, x, y)[1](*along(x, y)),
    "dual level": by_duals,
    "grad": lambda f, x, y: grad(total(f), (0, 1))(x, y),
    "vjp": lambda f, x, y: vjp(f, x, y)[1](torch.ones_like(f(x, y))),
    "jacrev": lambda f, x, y: jacrev(f, (0, 1))(x, y),
    "jacfwd": lambda f, x, y: jacfwd(f, (0, 1))(x, y),
    "hessian": lambda f, x, y: hessian(total(f), (0, 1))(x, y),
    "reverse over reverse": lambda f, x, y: jacrev(grad(total(f)))(x, y),
    "forward over forward": lambda f, x, y: jacfwd(jacfwd(total(f)))(x, y),
    "jvp of grad": lambda f, x, y: jvp(grad(total(f)), (x, y), along(x, y)),
    "vmap": lambda f, x, y: vmap(f, (0, None))(torch.stack([x, 2 * x, x - y.mean()]), y),
    "vmap along 1": lambda f, x, y: vmap(f, (1, 0))(torch.stack([x, 2 * x], 1), torch.stack([y, x[:, :Y]])),
    "vmap of grad": lambda f, x, y: vmap(grad(total(f), (0, 1)))(torch.stack([x, 2 * x]), torch.stack([y, x[:, :Y]])),
    "grad of vmap": lambda f, x, y: grad(lambda xs: vmap(total(f), (0, None))(xs, y).sum())(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_a_transform_is_plain_torchs(name: str, transform: str) -> None:
    found, expected = (TRANSFORMS[transform](form, cloud(X, 1), cloud(Y, 2)) for form in CASES[name])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["grid", "non_finite", "huge"])
@pytest.mark.parametrize("norm", [1, 2])
def test_values_inside_a_transform_are_the_operators_to_the_bit(norm: int, kind: str) -> None:
    x, y = (clouds.cloud(kind, 2, n, 3, torch.float32, n) for n in (40, 30))
    lengths = torch.tensor([40, 17]), torch.tensor([0, 30])

    def values(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Distances, then points."""
        found = kernels.knn_points(x, y, *lengths, norm=norm, K=7, return_nn=True)
        chamfer, _ = kernels.chamfer_distance(x, y, *lengths, norm=norm, point_reduction=None, batch_reduction=None)
        chosen = kernels.sample_farthest_points(x, lengths[0], K=[30, 20])[0]
        return found.dists, *chamfer, found.knn, chosen, *kernels.group_points(y, 5, 6)  # type: ignore[return-value]

    found, slopes = jvp(values, (x, y), (torch.ones_like(x), torch.zeros_like(y)))
    for ours, theirs in zip(found, values(x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    for dists, slope in zip(found[:3], slopes[:3], strict=True):
        assert not slope[dists.isinf()].any() and slope.isfinite().all()


@pytest.mark.parametrize("name", ["knn", "group", "interpolate", "ChamferL2"])
def test_batched_gradients_of_a_graph_of_operators(name: str) -> None:
    """Outside torch.func backwards are operators, and torch maps over them."""
    ours, plain = (total(form) for form in CASES[name])
    points = cloud(X, 1), cloud(Y, 2)
    found = torch.autograd.functional.hessian(ours, points, vectorize=True)
    expected = torch.autograd.functional.hessian(plain, points, vectorize=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_tangent_is_refused_where_it_would_be_lost() -> None:
    x, y = cloud(X, 1).requires_grad_(), cloud(Y, 2)
    gathered, loss = kernels.knn_gather(x, IDX), kernels.ChamferL2()(x, y)  # made outside
    with forward_ad.dual_level():
        for value in (gathered, loss):
            step = forward_ad.make_dual(torch.ones_like(value), torch.ones_like(value))
            with pytest.raises(NotImplementedError, match="no forward-mode formula"):
                torch.autograd.grad(value, x, step)
        with pytest.raises(NotImplementedError, match="no forward-mode formula"):
            ops.knn(forward_ad.make_dual(x.detach(), x.detach()), y, None, 2, 1, "torch")


def test_a_gradient_inside_a_compiled_graph() -> None:
    def slopes(x: Tensor, y: Tensor) -> Tensor:
        return grad(kernels.ChamferL2())(x, y)

    points = cloud(X, 1), cloud(Y, 2)
    compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*points), slopes(*points))
    torch._dynamo.reset()


def test_random_starts_under_vmap() -> None:
    """By torch's own rule: the caller says whether the draws are the same."""
    points = cloud(X, 1).expand(20, -1, -1, -1)

    def start(x: Tensor) -> Tensor:
        return kernels.sample_farthest_points(x, K=1, random_start_point=True)[1]

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(start)(points)
    torch.manual_seed(0)
    assert len(vmap(start, randomness="same")(points).flatten(1).unique(dim=0)) == 1
    assert len(vmap(start, randomness="different")(points).flatten(1).unique(dim=0)) > 1


def test_wrong_values_are_named_under_vmap() -> None:
    x, y, lengths = cloud(X, 1), cloud(Y, 2), torch.tensor([[5, 5], [5, 6]])
    with pytest.raises(ValueError, match=r"lengths1 must lie in \[0, 5\]"):
        vmap(lambda n: kernels.knn_points(x, y, n).dists)(lengths)


# Fewer points than are asked for are padded, or make do.
EXPORTED: dict[str, Function] = {
    "knn": lambda x, y: kernels.knn_points(x, y, K=12, return_nn=True),  # type: ignore[dict-item,return-value]
    "fps": lambda x, y: kernels.sample_farthest_points(x, K=20),  # type: ignore[dict-item,return-value]
    "ragged": lambda x, y: kernels.chamfer_distance(x, y, (x[..., 0] > 0).sum(1))[0],  # type: ignore[dict-item,return-value]
    "ChamferL2": kernels.ChamferL2(),
    "interpolate": lambda x, y: kernels.interpolate_three(x, x.sin(), y),
}


class Exported(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_a_program_is_exported_with_any_number_of_points(name: str, strict: bool) -> None:
    function = EXPORTED[name]
    sizes = ({0: torch.export.Dim("B"), 1: torch.export.Dim("N")}, {0: torch.export.Dim("B"), 1: torch.export.Dim("M")})
    given = (cloud(X, 1), cloud(Y, 2))
    program = torch.export.export(Exported(function), given, dynamic_shapes=sizes, strict=strict).module()
    for n, m in ((2, 3), (3, 40), (40, 2), (30, 50)):
        x, y = cloud(n, 3), cloud(m, 4)
        torch.testing.assert_close(program(x, y), tuple_of(function(x, y)), rtol=0, atol=0)


def tuple_of(found: Any) -> Any:
    return tuple(found) if isinstance(found, tuple) else found
