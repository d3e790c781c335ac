"""The nearest point of the other cloud, both ways, and the gradient of its distance."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels.norms import ROOT
from recon.kernels.on_numba.compiled import bits, compiled, in_use, shared
from recon.kernels.on_numba.knn import all_pairs, search

Cloud = NDArray[np.floating]
Rows = NDArray[np.int64]
Matches = tuple[Tensor, Tensor, Tensor, Tensor]

PAIRS = 2**20
"""Pairs of a cloud up to which both directions are taken from all of them: 1024 x 1024 in 0.14 ms with AVX-512 and in
0.23 with AVX2, where two searches take 0.39."""


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single: bool
) -> Matches:
    """dists, idx [B, N] from x [B, N, D] to y [B, M, D], and [B, M] back, or [B, 0] if `single`; N, M >= 1."""
    if not single and x.shape[1] * y.shape[1] <= PAIRS:
        return _nearest_shared(x, y, x_lengths, y_lengths, norm)
    forth = search(x, y, y_lengths, norm, 1)
    back = search(y[:, :0] if single else y, x, x_lengths, norm, 1)
    return forth[0][..., 0], forth[1][..., 0], back[0][..., 0], back[1][..., 0]


def _nearest_shared(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int) -> Matches:
    one, two = x.detach().numpy(), y.detach().numpy()
    sizes_x, sizes_y = in_use(x, x_lengths), in_use(y, y_lengths)
    dists_x, dists_y = np.empty(one.shape[:2], one.dtype), np.empty(two.shape[:2], two.dtype)
    idx_x, idx_y = np.empty(dists_x.shape, np.int64), np.empty(dists_y.shape, np.int64)
    like = bits(dists_x)

    def some(low: int, high: int) -> None:
        all_pairs(one, two, sizes_x, sizes_y, norm, like, low, high, dists_x, idx_x, dists_y, idx_y)

    shared(some, len(one), one.shape[1] * two.shape[1] / 5)
    return torch.from_numpy(dists_x), torch.from_numpy(idx_x), torch.from_numpy(dists_y), torch.from_numpy(idx_y)


def nearest_backward(
    grad_x: Tensor,
    grad_y: Tensor,
    x: Tensor,
    y: Tensor,
    idx_x: Tensor,
    idx_y: Tensor,
    norm: int,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients in x and y of sum(grad_x * dists_x) + sum(grad_y * dists_y); one that is not needed is empty."""
    one, two = x.detach().numpy(), y.detach().numpy()
    forth, back = (grad_x.numpy(), idx_x.numpy()), (grad_y.numpy(), idx_y.numpy())
    of_x, of_y = np.empty(one.shape, one.dtype), np.empty(two.shape, two.dtype)

    def some(low: int, high: int) -> None:
        _gradients(*forth, *back, one, two, norm, low, high, of_x, of_y)

    shared(some, len(one), 10 * (one.shape[1] + two.shape[1]))
    return torch.from_numpy(of_x if needs_x else of_x[:0, 0, 0]), torch.from_numpy(of_y if needs_y else of_y[:0, 0, 0])


@compiled
def _gradients(
    grad_x: Cloud,  # [B, N]
    idx_x: Rows,  # [B, N]
    grad_y: Cloud,  # [B, M], or [B, 0]
    idx_y: Rows,  # [B, M], or [B, 0]
    x: Cloud,  # [B, N, D]
    y: Cloud,  # [B, M, D]
    norm: int,
    low: int,
    high: int,  # clouds
    of_x: Cloud,  # [B, N, D], results
    of_y: Cloud,  # [B, M, D]
) -> None:
    # What a point's own match gives it, and what the points do that match it: two sums, then one.
    from_y, from_x = np.empty(x.shape[1:], x.dtype), np.empty(y.shape[1:], y.dtype)
    for b in range(low, high):
        from_y[:], from_x[:], of_y[b] = 0, 0, 0
        _slopes(grad_x, idx_x, x, y, b, norm, of_x, from_x)
        _slopes(grad_y, idx_y, y, x, b, norm, of_y, from_y)
        of_x[b] += from_y
        of_y[b] += from_x


@compiled
def _slopes(
    grad: Cloud,  # [B, N]
    idx: Rows,  # [B, N], -1 for none
    first: Cloud,  # [B, N, D]
    second: Cloud,  # [B, M, D]
    b: int,
    norm: int,
    of_first: Cloud,  # [B, N, D], gradients in the first cloud
    of_second: Cloud,  # [M, D], zeros: gradients in the second, added up in the order of the first
) -> None:
    zero = first.dtype.type(0)
    for i in range(idx.shape[1]):
        j = max(0, idx[b, i])
        distance = zero
        for d in range(first.shape[2]):
            apart = first[b, i, d] - second[b, j, d]
            distance += abs(apart) if norm == 1 else apart * apart
        inside = idx[b, i] >= 0 and np.isfinite(distance) and (norm != ROOT or distance > 0)
        root = np.sqrt(distance)
        for d in range(first.shape[2]):
            apart = first[b, i, d] - second[b, j, d]
            if norm == 1:
                slope = np.sign(apart)
            elif norm == ROOT:
                slope = apart / root
            else:
                slope = apart + apart
            slope = (slope if inside else zero) * grad[b, i]
            of_first[b, i, d] = slope
            of_second[j, d] -= slope
