"""benchmarks/kernel_calls.py times every public op both ways, and the manual's figures are its results."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recon import kernels

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "kernel_calls.py"
OPS = set(kernels.__all__) - {"KNN", "warm_up"}


def check(folder: Path) -> dict[str, Any]:
    """The results in a folder, which hold every public op, in their table too."""
    found: dict[str, Any] = json.loads((folder / "kernel-calls-cpu.json").read_text())
    assert found["ops"].keys() > OPS
    page = (folder / "kernel-calls-cpu.md").read_text()
    assert found["processor"] in page
    for name, ways in found["ops"].items():
        assert list(ways) == ["forward", "with backward"]
        assert all(0 < way["low"] <= way["ratio"] <= way["high"] for way in ways.values())
        row = re.search(rf"^\| {re.escape(name)} \| ([\d.]+) .*? \| ([\d.]+) ", page, re.MULTILINE)
        assert row and [float(cell) for cell in row.groups()] == [round(way["ratio"], 1) for way in ways.values()]
    return found


@pytest.mark.slow
def test_every_op_is_timed_with_and_without_its_backward(tmp_path: Path) -> None:
    """The times themselves are for a quiet machine, not for a test."""
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--calls", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    found = check(tmp_path)
    assert done.stdout == (tmp_path / "kernel-calls-cpu.md").read_text()
    assert (found["rounds"], found["calls"]) == (2, 3) and found["unit"]["low"] > 0


def test_a_backward_is_asked_for_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("kernel_calls")
    calls = script.make_calls()
    assert calls.keys() > OPS
    for call, inputs in calls.values():
        gradients = script.with_backward(call, inputs)()
        assert [gradient.shape for gradient in gradients] == [each.shape for each in inputs]


def test_the_manual_has_the_results_figures() -> None:
    ops = check(ROOT / "benchmarks" / "results")["ops"]
    text = (ROOT / "docs" / "kernels.md").read_text()
    for name in OPS:
        (row,) = re.findall(rf"^\| `{name}` \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
        assert [float(cell) for cell in row] == [
            round(ops[name][way]["ratio"], 1) for way in ("forward", "with backward")
        ]
