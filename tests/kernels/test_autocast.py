"""Under autocast some tensors are narrower than others, and clouds of two dtypes are what torch's operators take."""

from collections.abc import Callable, Sequence

import clouds
import pytest
import torch
from torch import Tensor

from recon import kernels

Op = Callable[[Tensor, Tensor], Sequence[Tensor | None]]
OPS: dict[str, Op] = {
    "knn": lambda x, y: kernels.knn_points(x, y, K=3, return_nn=True),
    "chamfer": lambda x, y: kernels.chamfer_distance(x, y, x_normals=x, y_normals=y),  # type: ignore[return-value]
    "ChamferL1": lambda x, y: [kernels.ChamferL1()(x, y)],
    "ChamferL2": lambda x, y: [kernels.ChamferL2()(x, y)],
    "interpolate": lambda x, y: [kernels.interpolate_three(x, x.detach().float().sin(), y)],
}


def pair(one: torch.dtype, other: torch.dtype) -> tuple[Tensor, Tensor]:
    return clouds.cloud("random", 2, 9, 3, one, 1).requires_grad_(), clouds.cloud("random", 2, 7, 3, other, 2)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("one", "other", "wider"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_two_dtypes_promote(name: str, one: torch.dtype, other: torch.dtype, wider: torch.dtype) -> None:
    x, y = pair(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = OPS[name](x, y), OPS[name](x.to(wider), y.to(wider))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    slopes = [torch.autograd.grad(part[0].float().sum(), x)[0] for part in (found, expected)]  # type: ignore[union-attr]
    torch.testing.assert_close(*slopes)  # sums of narrow parts, in another order
    assert slopes[0].dtype == one


@pytest.mark.parametrize("name", OPS)
def test_two_dtypes_without_autocast_are_a_mistake(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have.*dtype"):
        OPS[name](*pair(torch.bfloat16, torch.float32))


def test_one_graph_under_autocast() -> None:
    x, y = pair(torch.bfloat16, torch.float32)
    loss = torch.compile(kernels.ChamferL2(), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(x, y), kernels.ChamferL2()(x, y))
    torch._dynamo.reset()
