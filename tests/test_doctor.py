from pathlib import Path

import pytest
from typer.testing import CliRunner

from recon.pipeline.commands import cli, doctor
from recon.pipeline.commands.doctor import Check

ROOT = Path(__file__).resolve().parents[1]


def test_every_failed_check_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package-here"))
    monkeypatch.setattr(doctor, "GL_LIBRARIES", ("libNoSuchGL.so.9",))
    monkeypatch.setattr(doctor, "MIN_DISK_GB", 1e12)
    monkeypatch.setattr(doctor, "MIN_MEMORY_GB", 1e12)
    failed = [doctor._packages(), doctor._gl_libraries(), doctor._disk(), doctor._memory()]
    assert not any(c.ok for c in failed) and all(c.mend for c in failed)
    assert "no-such-package-here" in failed[0].detail and "apt-get install" in failed[1].mend


@pytest.mark.parametrize(
    ("code", "words"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("raise ImportError('no EGL')", "no EGL")],
)
def test_a_crashing_renderer_is_a_finding_not_a_crash(monkeypatch, code, words):
    monkeypatch.setattr(doctor, "DRAW", code)
    check = doctor._test_picture()
    assert not check.ok and words in check.detail and check.mend


def test_a_black_picture_is_found_out(monkeypatch):
    black = '{"driver": "d", "milliseconds": 1, "foreground": 0.7, "corner": [0, 0, 0], "shape": [0, 0, 0]}'
    monkeypatch.setattr(doctor, "DRAW", f"print('{black}')")
    assert not doctor._test_picture().ok


def install(folder: Path, name: str, package: str) -> None:
    """What pip leaves of a distribution that brings `package`."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    info = folder / f"{name}-0.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.5\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{name}-0.5.dist-info/METADATA,,\n")


def test_a_package_of_our_name_is_found_out(monkeypatch, tmp_path):
    install(tmp_path, "other-recon", "recon")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = doctor._own_package()
    assert (check.ok, check.detail) == (False, "the package other-recon installs recon too")
    assert check.mend.startswith("pip uninstall other-recon ")


def test_a_package_of_another_name_is_none_of_ours(monkeypatch, tmp_path):
    install(tmp_path, "kernels", "kernels")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor._own_package().ok


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"machine": 4, "affinity": 4}, "4 of 4"),
        ({"machine": 64, "affinity": 64, "quota": 2}, "2 of 64, by its control group's CPU quota"),
        ({"machine": 64, "affinity": 8, "quota": 16}, "8 of 64, by this process's affinity"),
        ({"machine": 8, "affinity": 1, "quota": 1}, "1 of 8, by this process's affinity and its control group's CPU"),
    ],
)
def test_cores_are_told_with_what_limits_them(monkeypatch, limits, detail):
    monkeypatch.setattr(doctor, "core_limits", lambda: limits)
    check = doctor._cores()
    assert check.ok and check.detail.startswith(detail)


def test_memory_is_told_with_what_limits_it(monkeypatch):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 1_500_000_000)
    monkeypatch.setattr(doctor, "memory_limits", lambda: {"machine": 64_000_000_000, "control group": 8_000_000_000})
    check = doctor._memory()
    assert check.ok and check.detail == "1.5 GB free of 8.0 GB that its control group allows, of the machine's 64.0 GB"
    monkeypatch.setattr(doctor, "memory_limits", lambda: {"machine": 64_000_000_000, "control group": 2_000_000_000})
    assert not doctor._memory().ok


def test_the_processor_is_told_with_what_it_lacks(monkeypatch):
    monkeypatch.setattr(doctor, "processor", lambda: "Some Processor")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert doctor._processor("AVX2").detail.endswith("vector level AVX2, not AVX512")
    assert doctor._processor("AVX512").detail.endswith("vector level AVX512")
    assert doctor._processor("AVX512").mend == ""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert "unset" in doctor._processor("AVX2").mend
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert doctor._processor("SVE256").detail.endswith("vector level SVE256")


def test_emulated_bfloat16_is_a_note(monkeypatch):
    lacking = doctor._bfloat16(False, "no AVX512-BF16 or AMX")
    assert lacking.ok and "no AVX512-BF16" in lacking.detail and "float32" in lacking.mend
    there = doctor._bfloat16(True, "AVX512-BF16")
    assert there.ok and there.detail == "computed by the processor (AVX512-BF16)" and not there.mend


def test_no_compiler_is_a_note(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor._compiler()
    assert check.ok and check.detail == "no g++: training works, run.compile does not" and "apt-get" in check.mend
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in doctor._compiler().detail
    (tmp_path / "Python.h").write_text("")
    assert doctor._compiler() == Check("compiler", True, "g++, for run.compile on a GPU")


@pytest.mark.parametrize(
    ("check", "status", "lines"),
    [
        (Check("cores", True, "2 of 2"), 0, ["ok   cores: 2 of 2"]),
        (Check("compiler", True, "none", "install one"), 0, ["note compiler: none; install one"]),
        (Check("disk", False, "full", "empty it"), 1, ["FAIL disk: full", "     mend: empty it"]),
    ],
)
def test_only_failures_fail(monkeypatch, check, status, lines):
    monkeypatch.setattr(doctor, "diagnose", lambda: [check])
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert (result.exit_code, result.output.splitlines()) == (status, lines)


@pytest.mark.slow
def test_this_machine_passes():
    checks = doctor.diagnose()
    assert len({c.name for c in checks}) == len(checks) == 12
    assert [c for c in checks if not c.ok] == []
