"""Counted operations of a step, and what a device computes at most: model FLOPs utilisation (MFU) is the quotient."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recon.pipeline.base.precision import Precision

PEAKS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100 NVL": (835e12, 60e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A10G": (70e12, 31.2e12),
    "A10": (125e12, 31.2e12),
    "A40": (149.7e12, 37.4e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "RTX A6000": (154.8e12, 38.7e12),
}
"""Part of a GPU's name -> FLOP/s of its data sheet: bfloat16 tensor cores, dense, summed in float32; and float32, as
torch multiplies it unless TF32 is allowed. The first name that fits counts."""

MEASURED_SECONDS, LARGEST_SIDE = 0.2, 4096


@torch.enable_grad()
def count_flops(model: nn.Module, train: Callable[[nn.Module], object]) -> int:
    """Floating-point operations of `train(model)`, which it calls with a copy of the model: two a multiply-add.

    Counted of matrix products and convolutions, attention's own among them, forward and backward.
    """
    twin = copy.deepcopy(model)
    for layer in twin.modules():  # with a hook, which a faster form of the same function would not call
        layer.register_forward_hook(lambda *_: None)
    # Fused attention is one operation, which the counter does not know on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        train(twin)
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: Precision) -> float:
    """FLOP/s that a device reaches at most: a GPU's by its data sheet, 0 for one that `PEAKS` does not name; a CPU's
    by measuring, as its data sheet gives none that its clock would keep.
    """
    if device.type == "cuda":
        return named_peak(torch.cuda.get_device_name(device), precision)
    return measured_peak(torch.get_num_threads(), precision)


def named_peak(name: str, precision: Precision) -> float:
    """By the name torch gives a GPU; 0 for an unknown one, and for a laptop's, which shares a desktop's name only."""
    for part, (half, single) in PEAKS.items():
        if re.search(rf"\b{part}\b", name) and "Laptop" not in name:
            return half if precision == "bfloat16" else single
    return 0.0


@lru_cache
def measured_peak(threads: int, precision: Precision) -> float:
    """FLOP/s of the fastest of a few products of square matrices, with torch's present `threads`; takes 0.3 s."""
    dtype, side, fastest = torch.bfloat16 if precision == "bfloat16" else torch.float32, 256, 0.0
    deadline = time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < deadline:
        a = torch.ones(side, side, dtype=dtype)
        began = time.perf_counter()
        a @ a
        took = time.perf_counter() - began
        fastest = max(fastest, 2 * side**3 / took)
        # Larger ones come nearer to the peak, while there is time for several.
        if side < LARGEST_SIDE and 8 * took < MEASURED_SECONDS / 4:
            side *= 2
    return fastest
