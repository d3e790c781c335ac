"""benchmarks/sharing.py: every contestant trains where it should, and the ratios are of the right pairs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_ratios_are_of_medians_and_leave_out_what_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ratios = importlib.import_module("sharing").ratios
    seconds = {
        "ours, alone": [1.0, 2.0, 9.0],
        "torch's, alone": [4.0],
        "one thread, alone": [8.0],
        "ours, beside a busy process": [5.0],
        "torch's, beside a busy process": [6.0],
    }
    taken = {who: {"wall": wall, "cpu": [0.0]} for who, wall in seconds.items()}
    assert ratios(taken) == {
        "ours, beside a busy process to alone": 2.5,
        "torch's, beside a busy process to alone": 1.5,
        "alone, ours to torch's": 0.5,
    }
    taken["ours, quota of one core"] = {"wall": [10.0], "cpu": [0.0]}
    assert ratios(taken)["ours under the quota to one thread on one core"] == 1.25


@pytest.mark.slow
def test_every_contestant_trains_where_it_should(tmp_path: Path) -> None:
    """The times themselves are for a quiet machine, not for a test."""
    options = ["--quick", "--rounds", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "sharing.py"), *options]
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    found = json.loads((tmp_path / "sharing.json").read_text())
    both = min(2, len(os.sched_getaffinity(0)))
    assert 1 <= found["threads"]["torch's, alone"] <= both  # torch leaves out second threads of a core
    assert found["threads"]["one thread, alone"] == 1
    places = ["alone", "beside a busy process"]
    if found["quota"] == "of a control group":
        places.append("quota of one core")
        assert found["threads"]["ours, quota of one core"] == 1
    for form in found["milliseconds"].values():
        assert set(form) == {f"{who}, {place}" for who in ("ours", "torch's") for place in places} | {
            "one thread, alone"
        }
        assert all(clocks["wall"]["low"] > 0 and clocks["cpu"]["low"] > 0 for clocks in form.values())
    assert "| batch in two parts |" in (tmp_path / "sharing.md").read_text()
