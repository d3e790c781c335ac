"""What torch asks of an operator: schema, fake, gradients to second order, one graph; and the choice of backend."""

from collections.abc import Callable
from typing import Any

import clouds
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from recon import kernels
from recon.kernels import loss_ops, ops, weight_ops
from recon.kernels.backends import choose
from recon.kernels.norms import ROOT


def cloud(
    num_clouds: int, num_points: int, seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 3
) -> Tensor:
    return clouds.cloud("random", num_clouds, num_points, width, dtype, 3 * seed + 1).requires_grad_()


def values(num_clouds: int, num_values: int, seed: int) -> Tensor:
    return cloud(num_clouds, num_values, seed, width=1).detach()[..., 0].requires_grad_()


def whole(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = torch.tensor([5, 0])
CLOUDS = cloud(2, 4), cloud(2, 5, 1)
DISTS = cloud(2, 6).detach().square().requires_grad_()
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "require": (ops.require, (LENGTHS, LENGTHS >= 0, "must not be negative", 0)),
    "take_rows": (ops.take_rows, (cloud(2, 5), whole(2, 7))),
    "add_rows": (ops.add_rows, (cloud(2, 7), whole(2, 7), 5)),
    "farthest_points": (ops.farthest_points, (cloud(2, 9).detach(), None, whole(2), 4, "torch")),
    "farthest_points ragged": (ops.farthest_points, (cloud(2, 9).detach(), LENGTHS, whole(2) * 0, 4, "torch")),
    "knn": (ops.knn, (cloud(2, 4), cloud(2, 6, 1), None, 2, 3, "torch")),
    "knn ragged": (ops.knn, (cloud(2, 4), cloud(2, 6, 1), LENGTHS, 1, 6, "torch")),
    "matched_backward": (
        ops.matched_backward,
        (cloud(2, 4, 2, width=2), cloud(2, 4), cloud(2, 5, 1), whole(2, 4, 2) - 1, 2, True, True),
    ),
    "matched_backward of one": (
        ops.matched_backward,
        (cloud(2, 4, 2, width=2), cloud(2, 4), cloud(2, 5, 1), whole(2, 4, 2), 1, False, True),
    ),
    "nearest": (ops.nearest, (cloud(2, 4), cloud(2, 6, 1), None, None, 2, False, "torch")),
    "nearest ragged": (ops.nearest, (cloud(2, 5), cloud(2, 6, 1), LENGTHS, LENGTHS + 1, 1, True, "torch")),
    "nearest_backward": (
        ops.nearest_backward,
        (values(2, 4, 2), values(2, 5, 3), *CLOUDS, whole(2, 4), whole(2, 5) - 1, 2, True, True, "torch"),
    ),
    "nearest_backward of one": (
        ops.nearest_backward,
        (values(2, 4, 2), values(2, 0, 3), *CLOUDS, whole(2, 4), whole(2, 0), 2, True, False, "torch"),
    ),
    "nearest_backward of roots": (
        ops.nearest_backward,
        (values(2, 4, 2), values(2, 5, 3), *CLOUDS, whole(2, 4), whole(2, 5) - 1, ROOT, True, True, "torch"),
    ),
    "chamfer_loss": (loss_ops.chamfer_loss, (*CLOUDS, False, "torch")),
    "chamfer_loss of roots": (loss_ops.chamfer_loss, (*CLOUDS, True, "torch")),
    "chamfer_loss_backward": (
        loss_ops.chamfer_loss_backward,
        (
            cloud(1, 1, width=1).detach()[0, 0, 0].requires_grad_(),
            *CLOUDS,
            whole(2, 4),
            whole(2, 5),
            True,
            [True, True],
            "torch",
        ),
    ),
    "groups": (ops.groups, (cloud(2, 9), 3, 4, "torch")),
    "inverse_weights": (weight_ops.inverse_weights, (DISTS, whole(2, 6, 3))),
    "weighted_rows": (ops.weighted_rows, (cloud(2, 5), whole(2, 6, 3), cloud(2, 6, 1), "torch")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_torch_accepts_the_operator(name: str) -> None:
    op, arguments = CASES[name]
    torch.library.opcheck(op.registered, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, arguments) in CASES.items() if arguments[-1] == "torch"])
def test_torch_accepts_the_operator_on_triton(name: str) -> None:
    pytest.importorskip("triton")
    op, (*arguments, _) = CASES[name]
    narrow = [
        argument.detach().float().to(DEVICE).requires_grad_(argument.requires_grad)
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument.to(DEVICE)
        if isinstance(argument, Tensor)
        else argument
        for argument in arguments
    ]
    torch.library.opcheck(op.registered, (*narrow, "triton"))


DIFFERENTIABLE = [name for name in CASES if name.split()[0] not in ("require", "farthest_points")]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_to_second_order(name: str) -> None:
    op, arguments = CASES[name]
    inputs = [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]

    def call(*changed: Tensor) -> list[Tensor]:
        left = list(changed)
        filled = [left.pop(0) if isinstance(a, Tensor) and a.requires_grad else a for a in arguments]
        found = op(*filled)
        found = found if isinstance(found, tuple) else (found,)
        # An output that is not needed is empty, which gradcheck would take for a mistake.
        return [tensor for tensor in found if tensor.requires_grad and tensor.numel()]

    leaves = [tensor.detach().requires_grad_() for tensor in inputs if tensor.numel()]
    if len(leaves) < len(inputs):
        empty = next(i for i, tensor in enumerate(inputs) if not tensor.numel())
        both = call
        call = lambda *some: both(*some[:empty], inputs[empty], *some[empty:])  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "knn": lambda x, y: kernels.knn_points(x, y, LENGTHS, LENGTHS + 1, K=8, return_nn=True).dists.sum(),
    "gather": lambda x, y: kernels.knn_gather(x, kernels.knn_points(y, x, K=2).idx, LENGTHS).square().sum(),
    "fps": lambda x, y: kernels.sample_farthest_points(x, LENGTHS, K=3, start_idx=LENGTHS * 0)[0].square().sum(),
    "random start": lambda x, y: kernels.sample_farthest_points(x, K=7, random_start_point=True)[0].square().sum(),
    "chamfer": lambda x, y: kernels.chamfer_distance(x, y, LENGTHS, None, weights=(x[:, 0, 0] > -99).to(x.dtype))[0],
    "normals": lambda x, y: kernels.chamfer_distance(x, y[:, :6], x_normals=x, y_normals=y[:, :6])[1],  # type: ignore[dict-item,return-value]
    "ChamferL1": kernels.ChamferL1(),
    "ChamferL2": kernels.ChamferL2(),
    "group": lambda x, y: sum(t.square().sum() for t in kernels.group_points(x, 3, 4)),  # type: ignore[misc,return-value]
    "interpolate": lambda x, y: kernels.interpolate_three(x, x.square(), y).square().sum(),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("gather", "group") else pytest.mark.slow) for name in LOSSES]
)
def test_one_graph_with_its_backward(name: str, dtype: torch.dtype) -> None:
    """No graph break, and the eager result; aot_eager is Inductor without the C++ compiler."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        x, y = (cloud(2, n, n, dtype).detach().requires_grad_() for n in (5, 8))
        loss = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager") if compiled else LOSSES[name]
        value = loss(x, y)
        value.backward()
        results.append((value.detach(), x.grad, y.grad))
    torch._dynamo.reset()
    for eager, graph in zip(*results, strict=True):
        assert (eager is None) == (graph is None)
        if eager is not None:
            assert torch.isfinite(eager).all()
            torch.testing.assert_close(graph, eager)


def test_a_compiled_graph_still_checks_values() -> None:
    search = torch.compile(lambda x, n: kernels.knn_points(x, x, n, K=2).dists, fullgraph=True, backend="aot_eager")
    x = cloud(2, 5).detach()
    search(x, LENGTHS)
    with pytest.raises(ValueError, match=r"lengths1 must lie in \[0, 5\]"):
        search(x, LENGTHS + 1)
    torch._dynamo.reset()


# What takes lengths, starts or indices, whose values are checked against how many points there are.
CHECKED: dict[str, Any] = {
    "knn": lambda x, y, n: kernels.knn_points(x, y, n, 2 * n, K=3, return_nn=True).knn,
    "chamfer": lambda x, y, n: kernels.chamfer_distance(x, y, n, 2 * n)[0],
    "fps": lambda x, y, n: kernels.sample_farthest_points(x, n, K=4)[0],
    "start": lambda x, y, n: kernels.sample_farthest_points(x, n, K=4, start_idx=2)[0],
    "gather": lambda x, y, n: kernels.knn_gather(x, kernels.knn_points(y, x, K=2).idx, n),
}


@pytest.mark.parametrize("name", CHECKED)
def test_one_graph_for_any_number_of_points(name: str) -> None:
    counter = CompileCounter()
    compiled = torch.compile(CHECKED[name], fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 6, 9):
        x, y, lengths = cloud(2, n).detach(), cloud(2, 2 * n, 1).detach(), torch.tensor([n, 3])
        assert torch.equal(compiled(x, y, lengths), CHECKED[name](x, y, lengths))
        with pytest.raises(ValueError, match=rf"must lie in \[0, {n}\]"):
            compiled(x, y, lengths + 1)
    assert counter.frame_count == 1
    torch._dynamo.reset()


# Clouds x [2, N, 3] and y [2, M, 3], one of which is empty.
OF_NOTHING: dict[str, Any] = {
    "knn": lambda x, y: kernels.knn_points(x, y, K=2).dists,
    "knn points": lambda x, y: kernels.knn_points(x, y, K=2, return_nn=True).knn,
    "gather": lambda x, y: kernels.knn_gather(y, torch.full((2, 4, 1), -1)),
    "fps": lambda x, y: kernels.sample_farthest_points(y, K=3)[0],
    "chamfer": lambda x, y: kernels.chamfer_distance(x, y)[0],
    "chamfer one way": lambda x, y: kernels.chamfer_distance(x, y, single_directional=True, norm=1)[0],
    "points of chamfer": lambda x, y: kernels.chamfer_distance(x, y, batch_reduction=None, point_reduction=None)[0][0],
    "normals": lambda x, y: kernels.chamfer_distance(x, y, x_normals=x, y_normals=y)[1],
}


@pytest.mark.parametrize("sizes", [(4, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("name", OF_NOTHING)
def test_a_step_on_empty_clouds_has_a_gradient_of_zero(name: str, sizes: tuple[int, int]) -> None:
    x, y = (torch.full((2, size, 3), torch.nan, requires_grad=True) for size in sizes)
    if name in ("gather", "fps") and sizes[1]:
        pytest.skip("takes the second cloud alone")
    found = OF_NOTHING[name](x, y)
    assert not found.any()
    slopes = torch.autograd.grad(found.sum(), (x, y), allow_unused=name in ("knn points", "gather", "fps"))
    assert not any(slope.any() for slope in slopes if slope is not None)


def test_backends_are_chosen_by_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.zeros(1, 2, 3)
    monkeypatch.delenv("RECON_KERNELS", raising=False)
    monkeypatch.setattr("recon.kernels.backends.find_spec", lambda name: None if name == "torch_cluster" else True)
    monkeypatch.setattr("recon.kernels.backends._numba_missing", lambda: "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(None, points, "op") == "numba"  # the interpreter is for tests: nobody gets it unasked
    assert choose(None, points.double(), "op") == choose("numba", points, "op", K=128) == "numba"
    assert choose(None, points, "op", K=129) == choose(None, points.to("meta"), "op") == "torch"
    assert choose("triton", points, "op") == "triton"
    monkeypatch.setenv("RECON_KERNELS", "triton")
    assert choose(None, points, "op") == "triton"
    assert choose("torch", points, "op") == "torch"
    # The environment is a wish for all ops; what Triton does not offer is left to whatever else would run it.
    assert choose(None, points.double(), "op") == "numba"
    assert choose(None, points, "op", K=129) == "torch"
    with pytest.raises(ValueError, match=r"cannot run op: it computes in float32.*backend=\"torch\""):
        choose("triton", points.double(), "op")
    with pytest.raises(ValueError, match="cannot run op: it takes K <= 128, got 129"):
        choose("triton", points, "op", K=129)
    with pytest.raises(ValueError, match="backend numba cannot run op: it takes K <= 128, got 129"):
        choose("numba", points, "op", K=129)
    with pytest.raises(ValueError, match="backend numba needs points on the CPU; these are on meta"):
        choose("numba", points.to("meta"), "op")
    with pytest.raises(ValueError, match="backend cluster needs the package torch_cluster, which is not installed"):
        choose("cluster", points, "op", cluster=True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="backend triton needs points on a CUDA device"):
        choose(None, points, "op")
    monkeypatch.setattr("recon.kernels.backends.find_spec", lambda name: True)
    with pytest.raises(ValueError, match="backend cluster cannot run op: it has no such op"):
        choose("cluster", points, "op")
    monkeypatch.setenv("RECON_KERNELS", "cluster")
    assert choose(None, points, "op", cluster=True) == "cluster"
    assert choose(None, points, "op") == "numba"
    with pytest.raises(ValueError, match='backend must be "triton", "numba", "torch" or "cluster", got \'cuda\''):
        choose("cuda", points, "op")
    monkeypatch.setenv("RECON_KERNELS", "pytorch3d")
    with pytest.raises(ValueError, match="RECON_KERNELS must be"):
        choose(None, points, "op")
