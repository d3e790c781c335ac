"""Which machines compute in bfloat16, by what torch and the environment say of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recon.pipeline.base.precision import computes_bfloat16, decide
from tests.machines import fake_cpu, fake_gpu


@pytest.mark.parametrize(
    ("cpu", "found"),
    [
        ("avx2", (False, "no AVX512-BF16 or AMX")),
        ("avx512", (False, "no AVX512-BF16 or AMX")),
        ("avx512_bf16", (True, "AVX512-BF16")),
        ("amx", (True, "AVX512-BF16, AMX")),
        ("arm", (False, "no bfloat16 instructions")),
        ("arm_bf16", (True, "Arm BF16")),
    ],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, cpu: str, found: tuple[bool, str]) -> None:
    fake_cpu(monkeypatch, cpu)
    assert computes_bfloat16("cpu") == found


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    fake_gpu(monkeypatch, *capability)
    assert computes_bfloat16("cuda") == (capability >= (8, 0), "CUDA {}.{}".format(*capability))


@pytest.mark.parametrize(
    ("variable", "value", "held"),
    [
        *(
            ("ONEDNN_MAX_CPU_ISA", level, True)
            for level in ("SSE41", "AVX", "avx2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
        ),
        ("DNNL_MAX_CPU_ISA", "AVX2", True),
        ("ATEN_CPU_CAPABILITY", "avx2", True),
        ("ATEN_CPU_CAPABILITY", "default", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX10_1_512", False),
        ("ONEDNN_MAX_CPU_ISA", "ALL", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX3", False),  # oneDNN ignores what it does not know
        ("ONEDNN_MAX_CPU_ISA", "", False),
        ("ATEN_CPU_CAPABILITY", "avx512", False),
    ],
)
def test_an_environment_that_holds_the_processor_down(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, held: bool
) -> None:
    fake_cpu(monkeypatch, "amx")
    monkeypatch.setenv(variable, value)
    assert computes_bfloat16("cpu") == ((False, f"{variable}={value}") if held else (True, "AVX512-BF16, AMX"))
    fake_cpu(monkeypatch, "arm_bf16")
    monkeypatch.setenv(variable, value)
    assert computes_bfloat16("cpu")[0] is (value != "default")  # x86's levels mean nothing to an Arm
    fake_gpu(monkeypatch, 9, 0)
    assert computes_bfloat16("cuda")[0]


def test_the_newer_name_of_the_variable_counts_before_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cpu(monkeypatch, "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert computes_bfloat16("cpu") == (True, "AVX512-BF16")


def test_a_torch_that_does_not_list_capabilities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_cpu(monkeypatch, "avx2")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert computes_bfloat16("cpu") == (False, "no AVX512-BF16 or AMX")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert computes_bfloat16("cpu") == (True, "AVX512-BF16")
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("recon.pipeline.base.precision.CPU_INFO", info)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for features, computed in (("fp asimd bf16 sve\n", True), ("fp asimd sve\n", False)):
        info.write_text(f"processor\t: 0\nFeatures\t: {features}")
        assert computes_bfloat16("cpu")[0] is computed
    info.unlink()
    assert computes_bfloat16("cpu") == (False, "no bfloat16 instructions")


def test_without_onednn_there_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cpu(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert computes_bfloat16("cpu") == (False, "torch without oneDNN")


def test_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cpu(monkeypatch, "avx2")
    auto = decide("auto", "cpu", "x=auto")
    assert (str(auto), auto.note) == ("float32 (auto: no AVX512-BF16 or AMX)", "")
    assert auto.record() == {"asked": "auto", "used": "float32", "why": "no AVX512-BF16 or AMX"}
    emulated = decide("bfloat16", "cpu", "x=auto")
    assert str(emulated) == "bfloat16 (asked for)"
    assert emulated.note == (
        "warning: bfloat16 is emulated on this device (no AVX512-BF16 or AMX) and takes about ten times float32's "
        "time; x=auto takes float32 here"
    )
    fake_cpu(monkeypatch, "avx512_bf16")
    for asked, told in (("auto", "bfloat16 (auto: AVX512-BF16)"), ("bfloat16", "bfloat16 (asked for)")):
        decision = decide(asked, "cpu", "x=auto")  # type: ignore[arg-type]
        assert (str(decision), decision.note) == (told, "")
    assert str(decide("float32", "cpu", "x=auto")) == "float32 (asked for)"


def test_this_machine_is_judged_alike_every_time_and_torch_is_not_loaded_before() -> None:
    code = "import sys, recon.pipeline.base.precision; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert computes_bfloat16("cpu") == computes_bfloat16("cpu")
