"""benchmarks/kernels.py runs, finds a wrong op, and its table is the one in the manual."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from recon import kernels

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "kernels.py"


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # as for a script that is started
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_the_manual_links_to_the_whole_table() -> None:
    for threads in (1, 2):
        page = (ROOT / "benchmarks" / "results" / f"kernels-cpu-{threads}.md").read_text()
        for name in ("kernels.md", "benchmarks.md"):
            assert f"(../benchmarks/results/kernels-cpu-{threads}.md)" in (ROOT / "docs" / name).read_text()
        rows = re.findall(r"^\| (?!op |---).*$", page, re.MULTILINE)
        assert len(rows) == 16


@pytest.mark.slow
def test_a_case_is_timed_beside_its_rivals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("kernels-*")}
    run(monkeypatch, "--device", "cpu", "--threads", "1", "--seconds", "0", "--only", "group")
    table = capsys.readouterr().out
    assert "| group_points | [128, 1024] 64 x 32 |" in table and "plain torch, ms" in table
    # A part of the table must not pass for the whole.
    assert results == {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("kernels-*")}


@pytest.mark.slow
def test_check_only_says_which_op_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as right:
        run(monkeypatch, "--device", "cpu", "--check-only", "--only", "group")
    assert right.value.code == 0
    assert "ok    group_points [128, 1024] 64 x 32 [torch]" in capsys.readouterr().out
    group = kernels.group_points
    monkeypatch.setattr(kernels, "group_points", lambda *a, **k: tuple(t + 1e-7 for t in group(*a, **k)))
    with pytest.raises(SystemExit) as wrong:
        run(monkeypatch, "--device", "cpu", "--check-only", "--only", "group")
    assert wrong.value.code == 1
    assert "WRONG group_points [128, 1024] 64 x 32 [torch]: AssertionError" in capsys.readouterr().out
