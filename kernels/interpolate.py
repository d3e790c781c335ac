"""Feature propagation from few points to many: f(q) = sum_k w_k f_k / sum_k w_k over the three nearest k, with
w_k = 1 / (|q - p_k|^2 + 1e-8) (Qi et al., "PointNet++", 2017, equation 2).
"""

from torch import Tensor

from recon.kernels import transforms
from recon.kernels.backends import choose
from recon.kernels.checks import check_beside, check_like, check_points, promoted, working_dtype


def interpolate_three(known: Tensor, features: Tensor, query: Tensor, backend: str | None = None) -> Tensor:
    """Mean of the three known features nearest to each query, weighted by 1 / (squared distance + 1e-8).

    known [B, M, 3], features [B, M, C], query [B, N, 3] -> [B, N, C] in the dtype of features; fewer than
    three known points use those there are. Differentiable in all three. This is the propagation of
    PointNet++ as ReCon's segmentation head weights it. A query at an infinite distance of all its
    neighbours gets 0. `backend` as in kernels.backends.choose. ValueError for arguments that do not fit each other
    or M = 0.
    """
    check_points("known", known)
    check_points("features", features)
    check_points("query", query)
    known, query = promoted(known, query)
    check_beside("features", features, (known.shape[0], known.shape[1], None), known, "known")
    check_like("query", query, (known.shape[0], None, known.shape[2]), known, "known")
    if known.shape[1] == 0:
        raise ValueError(f"known must hold at least one point a cloud, got {list(known.shape)}")
    dtype, num_near = working_dtype(known), min(3, known.shape[1])
    by = choose(backend, query, "knn_points", cluster=True, K=num_near)
    dists, idx = transforms.knn(query.to(dtype), known.to(dtype), None, 2, num_near, by)
    weights, idx = transforms.inverse_weights(dists, idx)
    dtype = working_dtype(features)
    by = choose(backend, features, "interpolate_three")
    return transforms.weighted_rows(features.to(dtype), idx, weights.to(dtype), by).to(features.dtype)
