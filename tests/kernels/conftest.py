"""Without a GPU the Triton kernels run through Triton's interpreter, which it decides as a kernel is decorated."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def quiet_overflow() -> Iterator[None]:
    """The interpreter computes in NumPy, which warns of infinities that a GPU makes in silence."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
