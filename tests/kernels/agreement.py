"""The public ops on one backend beside plain torch on the CPU: the same indices and distances to the bit, gradients
within rounding. Needs torch alone.
"""

from collections.abc import Callable, Sequence

import torch
from made_clouds import cloud
from torch import Tensor

from recon import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


def agree(backend: str, name: str, kind: str) -> None:
    """AssertionError where an op of OPS on clouds of a kind is another on `backend` than plain torch has it."""
    x, y = (cloud(kind, 3, size, 3, torch.float32, seed=size).to(DEVICE) for size in (13, 21))
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
