"""K nearest neighbours by direct differences: the K smallest of sum_c (q_c - p_c)^2, or of sum_c |q_c - p_c|, in the
order (distance, index).
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from recon.kernels import transforms
from recon.kernels.backends import choose
from recon.kernels.checks import (
    check_count,
    check_dense,
    check_integers,
    check_lengths,
    check_like,
    check_points,
    describe,
    promoted,
    some,
    working_dtype,
)
from recon.kernels.on_torch.knn import padded


class KNN(NamedTuple):
    """dists [B, N, K] (squared for norm 2), idx int64 [B, N, K], knn [B, N, K, D] or None."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    *,
    return_nn: bool = False,
    return_sorted: bool = True,
    backend: str | None = None,
) -> KNN:
    """The K points of `p2` nearest to each point of `p1`, nearest first, ties to the lowest index.

    p1 [B, N, D], p2 [B, M, D]: the same floating dtype and device. lengths1, lengths2 [B]: points in use, the
    rest is padding. norm 2 gives squared Euclidean distances, norm 1 Manhattan ones, as in
    pytorch3d.ops.knn_points, whose signature this is; `return_sorted=False` permits any order, and here the
    order is sorted all the same.

    Returns dists [B, N, K] (float32, or float64 for float64 clouds; differentiable in both clouds, twice
    for norm 2), idx int64 [B, N, K] and, with return_nn, knn [B, N, K, D]. Beyond min(K, lengths2)
    neighbours and beyond lengths1 rows, idx is -1 and dists and knn are 0. A point with a NaN or infinite
    coordinate lies at distance +inf of every point: last, in index order. No gradient flows through an
    infinite distance. `backend` as in kernels.backends.choose. ValueError for arguments that do not fit each other.
    """
    check_points("p1", p1)
    check_points("p2", p2)
    p1, p2 = promoted(p1, p2)
    check_like("p2", p2, (p1.shape[0], None, p1.shape[2]), p1, "p1")
    lengths1 = check_lengths("lengths1", lengths1, p1)
    lengths2 = check_lengths("lengths2", lengths2, p2)
    norm = check_norm(norm)
    K = check_count("K", K)
    found = min(K, p2.shape[1])
    dtype = working_dtype(p1)
    backend = choose(backend, p1, "knn_points", cluster=norm == 2, K=found)
    if found:
        dists, idx = transforms.knn(p1.to(dtype), p2.to(dtype), lengths2, norm, found, backend)
    else:
        # Of nothing, and yet of both clouds, which may ask for gradients.
        dists = (p1[..., :0] + p2[..., :0].sum(1, keepdim=True)).to(dtype)
        idx = dists.long()
    if some(K - found):
        dists, idx = pad(dists, (0, K - found)), pad(idx, (0, K - found), value=-1)
    if lengths1 is not None:
        padding = padded(lengths1, p1.shape[1])[:, :, None]
        dists, idx = dists.masked_fill(padding, 0), idx.masked_fill(padding, -1)
    return KNN(dists, idx, _rows_or_zeros(p2, idx) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Rows of x [B, M, U] at idx int64 [B, N, K] -> [B, N, K, U]; 0 where idx is -1 or k >= lengths [B].

    x is of any dtype, labels and masks too, and differentiable to any order. ValueError for arguments that do not fit
    each other, or idx beyond M.
    """
    check_dense("x", x)
    if x.dim() != 3:
        raise ValueError(f"x must have shape [B, M, U], got {describe(x)}")
    num_rows = x.shape[1]
    if not isinstance(idx, Tensor) or idx.dim() != 3:
        raise ValueError("idx must be an int64 tensor [B, N, K]")
    idx = check_integers("idx", idx, -1, num_rows - 1, (x.shape[0], *idx.shape[1:]), x)
    lengths = check_lengths("lengths", lengths, x)
    if lengths is not None:
        idx = idx.masked_fill(padded(lengths, idx.shape[2])[:, None, :], -1)
    return _rows_or_zeros(x, idx)


def _rows_or_zeros(x: Tensor, idx: Tensor) -> Tensor:
    """x [B, M, U] at idx [B, N, K] -> [B, N, K, U]; 0 where idx is -1."""
    if x.shape[1] == 0:
        x = pad(x, (0, 0, 0, 1))  # a row to take, and nothing taken
    rows = transforms.take_rows(x, idx.clamp(min=0).flatten(1))
    return rows.view(*idx.shape, x.shape[2]).masked_fill((idx < 0)[..., None], 0)


def check_norm(norm: float) -> int:
    """`norm` as an integer; ValueError unless it is 1 (Manhattan) or 2 (squared Euclidean)."""
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 (Manhattan) or 2 (squared Euclidean), got {norm!r}")
    return int(norm)
