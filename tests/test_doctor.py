import pytest

from pipeline import doctor


def test_every_failed_check_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package-here"))
    monkeypatch.setattr(doctor, "GL_LIBRARIES", ("libNoSuchGL.so.9",))
    monkeypatch.setattr(doctor, "MIN_DISK_GB", 1e12)
    monkeypatch.setattr(doctor, "MIN_MEMORY_GB", 1e12)
    failed = [doctor._packages(), doctor._gl_libraries(), doctor._disk(), doctor._machine()]
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


@pytest.mark.slow
def test_this_machine_passes():
    checks = doctor.diagnose()
    assert len({c.name for c in checks}) == len(checks) == 7
    assert [c for c in checks if not c.ok] == []
