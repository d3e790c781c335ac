"""benchmarks/serve.py at small sizes: it runs, and its page has every figure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_it_measures_the_page(own_run: Path, small_store: Path, clip_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    command = [sys.executable, str(BENCHMARKS / "serve.py"), "--quick", "--out", str(tmp_path)]
    command += ["--run", str(own_run), "--store", str(small_store)]
    # Where the run looks for its teachers.
    done = subprocess.run(command, check=False, cwd=clip_config.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "serve.json").read_text())
    assert found["map"]["shapes"] == 500 and found["map"]["frames_a_second"] > 1
    assert [len(found[part]["drawn"]) for part in ("first_view", "first_view_large")] == [1, 1]
    page = (tmp_path / "serve.md").read_text()
    assert page == done.stdout and page.count("\n| ") == 2 + 7 and "map of 500 shapes" in page
