"""Without a GPU the Triton kernels run through Triton's interpreter, which it decides as a kernel is decorated."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
