"""benchmarks/use.py at small sizes: every part runs, and a part that is run alone replaces its own entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(out: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, str(BENCHMARKS / "use.py"), "--quick", "--out", str(out), *words]
    done = subprocess.run(command, check=False, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads((out / "use.json").read_text())
    assert done.stdout == (out / "use.md").read_text()
    return found


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert [*found] == ["facts", "cold", "warm", "search"]
    again = run(tmp_path, "search")
    assert [*again] == [*found] and again["cold"] == found["cold"] and again["search"] != found["search"]
    page = (tmp_path / "use.md").read_text()
    assert page.count("\n| ") == 2 + 8 and "exact search over 2000 shapes" in page
