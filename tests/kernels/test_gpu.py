"""The checks of kernel_checks.py; `make gpu` runs the same without pytest."""

import pytest
import torch
from kernel_checks import CHECKS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.startswith("Inductor") else ()) for name in CHECKS]
)
def test_on_the_gpu(name: str) -> None:
    CHECKS[name]()
