"""The public ops on every backend at hand: the same indices and distances to the bit, gradients within rounding.

Triton runs on the GPU where there is one, else through its interpreter.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import clouds
import pytest
import torch
from torch import Tensor

from recon import kernels
from recon.kernels.backends import BACKENDS

pytestmark = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGES = {"triton": "triton", "cluster": "torch_cluster", "torch": "torch"}
OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(PACKAGES[name]) is None, reason=f"needs {PACKAGES[name]}"))
    for name in BACKENDS
    if name != "torch" or DEVICE == "cuda"
]
Op = Callable[[Tensor, Tensor, str], Sequence[Tensor | None]]


def ragged(points: Tensor) -> Tensor:
    return torch.tensor([11, 0, 4], device=points.device)


def _chamfer(x: Tensor, y: Tensor, backend: str, norm: int = 2, lengths: Tensor | None = None) -> Sequence[Tensor]:
    found, _ = kernels.chamfer_distance(
        x, y, lengths, None, batch_reduction=None, point_reduction=None, norm=norm, backend=backend
    )
    assert isinstance(found, tuple)
    return found


OPS: dict[str, Op] = {
    "knn": lambda x, y, backend: kernels.knn_points(x, y, K=5, return_nn=True, backend=backend),
    "knn ragged": lambda x, y, backend: kernels.knn_points(x, y, ragged(x), ragged(x), K=12, backend=backend)[:2],
    "fps": lambda x, y, backend: kernels.sample_farthest_points(x, K=9, backend=backend),
    "fps ragged": lambda x, y, backend: kernels.sample_farthest_points(x, ragged(x), K=14, backend=backend),
    "fps start": lambda x, y, backend: kernels.sample_farthest_points(x, K=9, start_idx=ragged(x), backend=backend),
    "group": lambda x, y, backend: kernels.group_points(x, 7, 6, backend=backend),
    "knn manhattan": lambda x, y, backend: kernels.knn_points(x, y, norm=1, K=5, backend=backend)[:2],
    "chamfer": _chamfer,
    "chamfer manhattan": lambda x, y, backend: _chamfer(x, y, backend, 1),
    "chamfer ragged": lambda x, y, backend: _chamfer(x, y, backend, 2, ragged(x)),
    "interpolate": lambda x, y, backend: [kernels.interpolate_three(x, x.nan_to_num().sin(), y, backend=backend)],
}
# What torch-cluster has: squared distances' neighbours and sampling.
CLUSTER = ("knn", "knn ragged", "fps", "fps ragged", "fps start", "group")


# The interpreter takes seconds a call; the kernels' own tests vary the kinds and sizes further.
@pytest.mark.parametrize("kind", clouds.KINDS if DEVICE == "cuda" else ["grid", "non_finite"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", OTHERS)
def test_backends_agree(backend: str, name: str, kind: str) -> None:
    if backend == "cluster" and name not in CLUSTER:
        with pytest.raises(ValueError, match="backend cluster cannot run"):
            OPS[name](torch.zeros(3, 13, 3, device=DEVICE), torch.zeros(3, 8, 3, device=DEVICE), backend)
        return
    x, y = (clouds.cloud(kind, 3, size, 3, torch.float32, seed=size).to(DEVICE) for size in (13, 21))
    results = []
    for each, device in ((backend, DEVICE), ("torch", "cpu")):
        inputs = [points.to(device).requires_grad_() for points in (x.detach(), y.detach())]
        outputs = [tensor for tensor in OPS[name](*inputs, each) if tensor is not None]
        generator = torch.Generator().manual_seed(0)
        loss = sum(
            (tensor.nan_to_num(posinf=0) * torch.randn(tensor.shape, generator=generator).to(device)).sum()
            for tensor in outputs
            if tensor.requires_grad
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        grads = [points.grad for points in inputs if points.grad is not None]
        results.append([tensor.detach().cpu() for tensor in (*outputs, *grads)])
    num_outputs = len(outputs)
    exact = 0 if name == "interpolate" else num_outputs
    for i, (ours, theirs) in enumerate(zip(*results, strict=True)):
        tolerance = {"rtol": 0.0, "atol": 0.0} if i < exact else {"rtol": 1e-5, "atol": 1e-6 * _scale(theirs)}
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def _scale(values: Tensor) -> float:
    """The largest finite size: sums in another order differ by roundings of it."""
    return float(values[values.isfinite()].abs().max()) if values.isfinite().any() else 1.0
