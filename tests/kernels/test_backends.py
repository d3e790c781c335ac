"""The public ops on every backend at hand: the same indices and distances to the bit, gradients within rounding.

Triton runs on the GPU where there is one, else through its interpreter.
"""

from importlib.util import find_spec

import pytest
import torch
from agreement import DEVICE, OPS, agree
from made_clouds import KINDS

from recon.kernels.backends import BACKENDS

pytestmark = pytest.mark.slow
PACKAGES = {"triton": "triton", "numba": "numba", "cluster": "torch_cluster", "torch": "torch"}
OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(PACKAGES[name]) is None, reason=f"needs {PACKAGES[name]}"))
    for name in BACKENDS
    if name not in (("numba",) if DEVICE == "cuda" else ("torch",))
]
# What torch-cluster has: squared distances' neighbours and sampling.
CLUSTER = ("knn", "knn ragged", "fps", "fps ragged", "fps start", "group")


# The interpreter takes seconds a call; the kernels' own tests vary the kinds and sizes further.
@pytest.mark.parametrize("kind", KINDS if DEVICE == "cuda" else ["grid", "non_finite"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", OTHERS)
def test_backends_agree(backend: str, name: str, kind: str) -> None:
    if backend == "cluster" and name not in CLUSTER:
        with pytest.raises(ValueError, match="backend cluster cannot run"):
            OPS[name](torch.zeros(3, 13, 3, device=DEVICE), torch.zeros(3, 8, 3, device=DEVICE), backend)
        return
    agree(backend, name, kind)
