"""Machines that this one is not: what torch finds of their processors and GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

X86 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
CPUS = {
    "avx2": X86,
    "avx512": X86 | {"avx512_f": True},
    "avx512_bf16": X86 | {"avx512_f": True, "avx512_bf16": True},
    "amx": X86 | {"avx512_f": True, "avx512_bf16": True, "amx_bf16": True, "amx_tile": True},
    "arm": {"architecture": "aarch64", "neon": True},
    "arm_bf16": {"architecture": "aarch64", "neon": True, "bf16": True, "sve_bf16": True},
}
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def fake_cpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have torch find one of CPUS, in an environment that holds nothing down."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CPUS[name], raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def fake_gpu(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    """Have torch find a GPU of a compute capability; nothing can be run on it."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=minor))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
