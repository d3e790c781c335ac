"""benchmarks/evaluate.py: both ways give the same features, and the SVM is at its optimum."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "evaluate.py"


@pytest.mark.slow
def test_a_small_run_tells_all_and_both_ways_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--shapes", "2", "--samples", "120", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the script adds
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads((tmp_path / "evaluate.json").read_text())
    for size in ("tiny", "base"):
        assert found["features"][size]["largest_relative_difference"]["most"] < 1e-4
        assert found["features"][size]["times_as_fast"] > 0
    assert found["svm"]["furthest_from_the_optimum"]["ours"] < 1e-5
    assert found["svm"]["predictions_that_differ"]["ours"] == 0
