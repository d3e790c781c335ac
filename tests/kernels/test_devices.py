"""Plain torch on a device that is neither a CPU nor CUDA: the same bits, and nothing made or read on the CPU.

There is no such device here: `elsewhere` makes one of the CPU. The operators' own bodies run in their place, for
torch sends an operator's to the true device.
"""

from collections.abc import Callable, Sequence

import clouds
import pytest
import torch
from elsewhere import Device, Elsewhere
from torch import Tensor

from recon import kernels
from recon.kernels import ops
from recon.kernels.operator import Operator

Call = Callable[[Tensor, Tensor, Tensor, Tensor], Sequence[Tensor | None]]
CALLS: dict[str, Call] = {
    "knn": lambda x, y, n, g: kernels.knn_points(x, y, n, None, K=5, return_nn=True),
    "nearest neighbour": lambda x, y, n, g: kernels.knn_points(x, y, None, n, norm=1)[:2],
    "large clouds": lambda x, y, n, g: kernels.knn_points(y.repeat(1, 9, 1), y.repeat(1, 9, 1))[:2],
    "gather": lambda x, y, n, g: [kernels.knn_gather(x, n[:, None, None].expand(-1, 3, 2) - 1, n.clamp(max=2))],
    "fps": lambda x, y, n, g: kernels.sample_farthest_points(x, n, K=[9, 4], start_idx=n - 1),
    "random start": lambda x, y, n, g: kernels.sample_farthest_points(x, n, random_start_point=True)[0][:, :0],
    "chamfer": lambda x, y, n, g: kernels.chamfer_distance(x, y, n, None, x, y, weights=n, batch_reduction=None),  # type: ignore[return-value]
    "tiny chamfer": lambda x, y, n, g: [kernels.ChamferL1()(x[:, :9], y[:, :5])],
    "group": lambda x, y, n, g: kernels.group_points(x, 4, 5),
    "interpolate": lambda x, y, n, g: [kernels.interpolate_three(x, x.sin(), y)],
    "gradient": lambda x, y, n, g: ops.matched_backward(g, x, y, (g > 0) * 3, 2, True, True),
    "gradient of Chamfer": lambda x, y, n, g: ops.nearest_backward(
        g[..., 0], g[:, :130, 1], x, y, (g[..., 0] > 0).long(), (g[:, :130, 1] > 0).long() - 1, 2, True, True, "torch"
    ),
    "gradient of rows": lambda x, y, n, g: [ops.add_rows(g, (g[..., 0] > 0).long(), 4)],
}  # fmt: skip


@pytest.mark.parametrize("device", ["xpu", "mps"])
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_on_another_device(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, op in vars(ops).items():
        if isinstance(op, Operator):
            monkeypatch.setattr(ops, key, op.function)
    x, y = (clouds.cloud("grid", 2, size, 3, torch.float32, size).contiguous() for size in (200, 130))
    arguments = x, y, torch.tensor([130, 37]), clouds.cloud("random", 2, 200, 2, torch.float32, 1)
    expected = CALLS[name](*arguments)
    with Device(device):
        found = CALLS[name](*(argument.as_subclass(Elsewhere) for argument in arguments))  # type: ignore[call-arg]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            assert isinstance(ours, Elsewhere)
            torch.testing.assert_close(ours.as_subclass(Tensor), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["xpu", "mps"])
def test_a_wrong_value_is_noticed_on_another_device(device: str) -> None:
    body = ops.require.function
    values = torch.tensor([6, 5])
    with Device(device), pytest.raises((ValueError, RuntimeError), match="lengths must lie"):
        body(values.as_subclass(Elsewhere), (values < 6).as_subclass(Elsewhere), "lengths must lie in [0, {most}]", 5)
