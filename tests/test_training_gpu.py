"""The checks of training_checks.py; `make gpu` runs the same without pytest."""

import pytest
import torch

from tests.training_checks import CHECKS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_gpu(name: str) -> None:
    CHECKS[name]()
