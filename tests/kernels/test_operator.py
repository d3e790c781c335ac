"""An operator's function, called itself, gives what torch's operator gives; who looks for operators sees them."""

import threading
from collections.abc import Callable
from typing import Any

import clouds
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recon import kernels
from recon.kernels import loss_ops, ops, weight_ops
from recon.kernels.on_torch import knn as on_torch_knn
from recon.kernels.operator import Operator

X, Y = (clouds.cloud("random", 2, size, 3, torch.float32, seed) for seed, size in enumerate((40, 30)))
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "knn": lambda x: kernels.knn_points(x, Y, K=3, return_nn=True),
    "one neighbour": lambda x: kernels.knn_points(x, Y, norm=1),
    "fps": lambda x: kernels.sample_farthest_points(x, K=7),
    "chamfer": lambda x: [kernels.ChamferL1()(x, Y)],
    "group": lambda x: kernels.group_points(x, 5, 6),
    "interpolate": lambda x: [kernels.interpolate_three(x, x.sin(), Y)],
}


def results(call: Callable[[Tensor], Any]) -> list[Tensor]:
    """What a call returns, and its gradient and that gradient's, where there is one."""
    x = X.clone().requires_grad_()
    found = [each for each in call(x) if each is not None]
    total = sum(each.square().sum() for each in found if each.is_floating_point())
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), x)
    return [*found, first, second]


class Seen(TorchDispatchMode):
    """Notes the operators of this package that a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "recon":
            self.names.add(func._schema.name.removeprefix("recon::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_as_the_registered_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(CALLS[name])
    with Seen() as seen:
        dispatched = results(CALLS[name])
    assert seen.names
    for ours, theirs in zip(found, dispatched, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    named = (vars(ops) | vars(loss_ops) | vars(weight_ops)).values()
    for operator in [each for each in named if isinstance(each, Operator)]:
        monkeypatch.setattr(operator, "function", None)  # nobody calls it past the dispatcher
        monkeypatch.setattr(operator, "_differentiable", None)
    monkeypatch.setattr(Operator, "__call__", lambda operator, *arguments: operator.registered(*arguments))
    for ours, theirs in zip(found, results(CALLS[name]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_without_a_gradient_nothing_is_kept() -> None:
    with torch.no_grad():
        dists = kernels.knn_points(X.clone().requires_grad_(), Y).dists
    assert dists.grad_fn is None
    assert kernels.knn_points(X, Y).dists.grad_fn is None


def test_integers_stand_outside_the_graph() -> None:
    x = X.clone().requires_grad_()
    dists_x, idx_x, dists_y, idx_y = ops.nearest(x, Y, None, None, 2, False, "torch")
    assert dists_x.grad_fn is dists_y.grad_fn is not None
    assert idx_x.grad_fn is None and idx_y.grad_fn is None and not idx_x.requires_grad
    # One direction alone has a gradient: the other's is zeros, which a backward is given.
    (found,) = torch.autograd.grad(dists_y.sum(), x)
    near = torch.take_along_dim(x, idx_y[..., None], 1)
    (expected,) = torch.autograd.grad((near - Y).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_tensor_left_over_from_a_transform_is_its_value() -> None:
    left: list[Tensor] = []
    torch.func.grad(lambda x: left.append(x) or x.sum())(X)  # type: ignore[func-returns-value]
    (leaked,) = left
    assert leaked.requires_grad  # that of the transform, which is over
    assert not kernels.ChamferL2()(leaked, Y).requires_grad
    y = Y.clone().requires_grad_()
    ours, plain = (torch.autograd.grad(kernels.ChamferL2()(x, y), y)[0] for x in (leaked, X))
    assert torch.equal(ours, plain)


@pytest.mark.filterwarnings("ignore")  # tracing is out of date, and says so
def test_a_trace_holds_the_operator_and_not_its_numbers() -> None:
    traced = torch.jit.trace(lambda x: kernels.knn_points(x, x).dists, (X,), check_trace=False)
    assert "recon::knn" in str(traced.graph)
    torch.testing.assert_close(traced(X * 2), kernels.knn_points(X * 2, X * 2).dists, rtol=0, atol=0)


def test_tensors_of_another_class_and_without_values_are_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Tensor):
        pass

    monkeypatch.setattr(ops.knn, "function", None)
    assert isinstance(kernels.knn_points(X.as_subclass(Own), Y.as_subclass(Own)).dists, Own)
    assert kernels.knn_points(X.to("meta"), Y.to("meta"), K=4).dists.shape == (2, 40, 4)


@pytest.mark.parametrize("backend", clouds.CPU)
@pytest.mark.parametrize("name", CALLS)
def test_what_torch_makes_elsewhere_is_not_mixed_in(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch.set_default_device or set_default_dtype."""
    monkeypatch.setenv("RECON_KERNELS", backend)
    expected = results(CALLS[name])
    monkeypatch.setattr(on_torch_knn, "_kept", threading.local())  # nothing is kept from an earlier call
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = results(CALLS[name])
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*CALLS, "gather"])
def test_a_sign_still_to_be_changed_is_changed(name: str) -> None:
    """As in the imaginary part of a conjugate: NumPy has no such arrays."""
    call = CALLS.get(name, lambda x: [kernels.knn_gather(x, torch.zeros(2, 4, 1, dtype=torch.int64))])
    for lazy in (torch.complex(X, X).conj().imag, torch._neg_view(X)):
        assert lazy.is_neg()
        slopes = []
        for x in (lazy.requires_grad_(), (-X).requires_grad_()):
            found = [each for each in call(x) if each is not None and each.requires_grad]
            # A gradient, too, may come so.
            grads = [torch._neg_view(torch.ones_like(each)) for each in found]
            slopes.append([*found, *torch.autograd.grad(found, x, grads)])
        for ours, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [kernels.ChamferL1(), kernels.ChamferL2()])
def test_a_loss_is_one_operator_each_way(loss: torch.nn.Module) -> None:
    x = X.clone().requires_grad_()
    with Seen() as seen:
        loss(x, Y).backward()
    assert seen.names == {"chamfer_loss", "chamfer_loss_backward"}
