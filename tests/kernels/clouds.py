"""`made_clouds` and what hypothesis draws of them."""

from importlib.util import find_spec

import torch
from hypothesis import strategies as st
from made_clouds import KINDS, cloud

__all__ = ["CPU", "KINDS", "cloud", "dtypes", "kinds", "lengths", "seeds"]

CPU = ["torch", *(["numba"] if find_spec("numba") else [])]
"""Backends that run on a CPU, here."""

dtypes = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**16)


def lengths(num_clouds: int, size: int) -> st.SearchStrategy[list[int]]:
    """One length a cloud, often the whole."""
    return st.one_of(
        st.just([size] * num_clouds), st.lists(st.integers(0, size), min_size=num_clouds, max_size=num_clouds)
    )
