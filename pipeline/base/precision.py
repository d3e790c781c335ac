"""Which arithmetic a model runs in: bfloat16 where the device computes in it, float32 elsewhere.

Decided by what the device can do, never by timing, so that a machine always decides alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]

CPU_INFO = Path("/proc/cpuinfo")

# oneDNN's levels of ONEDNN_MAX_CPU_ISA below AVX512_CORE_BF16; it ignores names that it does not know.
_BELOW_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Decision:
    """The arithmetic taken, and why."""

    asked: str
    """ "auto", "float32" or "bfloat16"."""
    used: Precision
    why: str
    note: str = ""
    """The one line that the user should read about it; empty where nothing is out of the ordinary."""

    def __str__(self) -> str:
        return f"{self.used} ({'auto: ' if self.asked == 'auto' else ''}{self.why})"

    def record(self) -> dict[str, str]:
        """As results and runs note it."""
        return {"asked": self.asked, "used": self.used, "why": self.why}


def decide(asked: Literal["auto", "float32", "bfloat16"], device: str, mend: str) -> Decision:
    """What "auto" or a precision asked for comes to on "cpu" or "cuda".

    `mend` is how the user writes auto here, for the note on bfloat16 where it is emulated.
    """
    if asked == "auto":
        computed, why = computes_bfloat16(device)
        return Decision(asked, "bfloat16" if computed else "float32", why)
    cost = emulation(device) if asked == "bfloat16" else ""
    note = f"warning: {cost}; {mend} takes float32 here" if cost else ""
    return Decision(asked, asked, "asked for", note)


def emulation(device: str) -> str:
    """Why bfloat16 is slow on a device and what it costs; empty where the device computes in it."""
    computed, why = computes_bfloat16(device)
    if computed:
        return ""
    # Measured with torch 2.11 on a processor with AVX2: a training step, and a matrix product.
    cost = "about ten times float32's time" if device == "cpu" else "more time than float32"
    return f"bfloat16 is emulated on this device ({why}) and takes {cost}"


def computes_bfloat16(device: str) -> tuple[bool, str]:
    """Whether "cpu" or "cuda" computes in bfloat16 rather than emulates it, and why in a few words."""
    if device.startswith("cuda"):
        return _cuda_computes()
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False, "torch without oneDNN"  # whose the matrix products in bfloat16 are
    names = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX", "bf16": "Arm BF16", "sve_bf16": "Arm BF16"}
    flags = _capabilities()
    found = ", ".join(dict.fromkeys(name for flag, name in names.items() if flags.get(flag)))
    if not found:
        return False, "no AVX512-BF16 or AMX" if _is_x86() else "no bfloat16 instructions"
    held = _held_down()
    return (False, held) if held else (True, found)


def _cuda_computes() -> tuple[bool, str]:
    import torch

    computed = torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.version.hip:
        return computed, "ROCm"
    return computed, "CUDA {}.{}".format(*torch.cuda.get_device_capability())


def _capabilities() -> Mapping[str, Any]:
    """torch's flags of the processor, among them architecture, avx512_bf16, amx_bf16 and, on Arm, bf16."""
    import platform

    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        flags: Mapping[str, Any] = torch.cpu.get_capabilities()
        return flags
    # Before torch 2.11.
    machine = platform.machine()
    if machine in ("aarch64", "arm64"):
        features = CPU_INFO.read_text("utf-8").split() if CPU_INFO.exists() else []
        return {"architecture": machine, "bf16": "bf16" in features}
    return {
        "architecture": machine,
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def _is_x86() -> bool:
    return str(_capabilities().get("architecture", "")).lower() in ("x86_64", "x86", "amd64", "i686")


def _held_down() -> str:
    """The variable by which the environment keeps torch from instructions that the processor has, with its value."""
    variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    aten, onednn, dnnl = (os.environ.get(name, "") for name in variables)
    if aten == "default" or (aten == "avx2" and _is_x86()):
        return f"{variables[0]}={aten}"
    # The older name counts where the newer one is not set.
    name, level = (variables[1], onednn) if onednn else (variables[2], dnnl)
    return f"{name}={level}" if level.upper() in _BELOW_BFLOAT16 and _is_x86() else ""
