"""The CPU libraries that benchmarks/kernels.py times the ops of kernels/ against.

Each is called as its page shows: a cloud at a time, default leaves, indices as int64 tensors, with the threads that
torch has. None has a rule for ties. fpsample's bucket line starts at a point of its own choice, whatever start it is
given; its heights are those its page names for small and for middle sizes.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from kernel_parts.contestants import Pair, group, weigh
from torch import Tensor

NAMES = {
    "fpsample": "fpsample",
    "fpsample bucket": "fpsample",
    "pykdtree": "pykdtree",
    "SciPy": "scipy",
    "faiss": "faiss",
}

Knn = Callable[[Tensor, Tensor, int], Pair]


def installed(device: torch.device) -> set[str]:
    """The contestants of NAMES that can take part."""
    if device.type != "cpu":
        return set()
    return {name for name, package in NAMES.items() if find_spec(package) is not None}


def set_threads(number: int) -> None:
    """For the libraries that have threads of their own; they have to be loaded to be told."""
    if find_spec("threadpoolctl") is None:
        return
    from threadpoolctl import threadpool_limits

    for module in ("pykdtree.kdtree", "faiss"):
        if find_spec(module.split(".")[0]) is not None:
            import_module(module)
    threadpool_limits(number)


def fpsample_fps(points: Tensor, K: int) -> Tensor:
    from fpsample import fps_sampling

    return _stack([fps_sampling(cloud, K, start_idx=0) for cloud in points.numpy()])


def bucket_fps(points: Tensor, K: int) -> Tensor:
    from fpsample import bucket_fps_kdline_sampling

    height = 3 if points.shape[1] <= 2048 else 5
    return _stack([bucket_fps_kdline_sampling(cloud, K, h=height, start_idx=0) for cloud in points.numpy()])


def pykdtree_knn(p1: Tensor, p2: Tensor, K: int) -> Pair:
    from pykdtree.kdtree import KDTree

    found = [KDTree(two).query(one, k=K, sqr_dists=True) for one, two in _clouds(p1, p2)]
    return _pair(found, (*p1.shape[:2], K))


def scipy_knn(p1: Tensor, p2: Tensor, K: int) -> Pair:
    from scipy.spatial import cKDTree

    found = [cKDTree(two).query(one, K, workers=torch.get_num_threads()) for one, two in _clouds(p1, p2)]
    return _pair([(dists.astype(np.float32) ** 2, idx) for dists, idx in found], (*p1.shape[:2], K))


def faiss_knn(p1: Tensor, p2: Tensor, K: int) -> Pair:
    import faiss

    return _pair([faiss.knn(one, two, K) for one, two in _clouds(p1, p2)], (*p1.shape[:2], K))


KNN: dict[str, Knn] = {"pykdtree": pykdtree_knn, "SciPy": scipy_knn, "faiss": faiss_knn}


def fps(points: Tensor, K: int) -> dict[str, Callable[[], Any]]:
    return {"fpsample": lambda: fpsample_fps(points, K), "fpsample bucket": lambda: bucket_fps(points, K)}


def knn(p1: Tensor, p2: Tensor, K: int) -> dict[str, Callable[[], Any]]:
    return {name: (lambda search=search: search(p1, p2, K)) for name, search in KNN.items()}


def groups(points: Tensor, num_group: int, size: int) -> dict[str, Callable[[], Any]]:
    """fpsample's vanilla sampling, which starts where ours does, then the neighbours of each."""
    if find_spec("fpsample") is None:
        return {}
    runs = {name: group(fpsample_fps, search) for name, search in KNN.items()}
    return {name: (lambda run=run: run(points, num_group, size)) for name, run in runs.items()}


def chamfer(search: Knn) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss: matches by the library, distances in torch, so that it has a gradient."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        batch = torch.arange(len(x))[:, None]
        total = x.new_zeros(())
        for one, two in ((x, y), (y, x)):
            dists, near = search(one.detach(), two.detach(), 1)
            if one.requires_grad:
                dists = ((one - two[batch, near[..., 0]]) ** 2).sum(2)
            total = total + dists.mean()
        return total

    return run


def interpolate(known: Tensor, features: Tensor, query: Tensor) -> dict[str, Callable[[], Any]]:
    return {name: (lambda search=search: weigh(features, *search(query, known, 3))) for name, search in KNN.items()}


def _clouds(p1: Tensor, p2: Tensor) -> Any:
    return zip(p1.numpy(), p2.numpy(), strict=True)


def _stack(found: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(found).astype(np.int64))


def _pair(found: list[Any], shape: tuple[int, ...]) -> Pair:
    dists, idx = zip(*found, strict=True)
    return torch.from_numpy(np.stack(dists)).view(shape), _stack(list(idx)).view(shape)
