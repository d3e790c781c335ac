"""benchmarks/render.py on a few shapes: its pictures are equal, and its similarity can tell pictures apart."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_similarity_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that calls everything alike would pass any picture."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "render", raising=False)
    ssim = importlib.import_module("render").ssim
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    assert np.allclose(ssim(picture, picture), 1)
    assert abs(ssim(picture, 255 - picture).mean() + 1) < 0.05, "its negative is as unlike as can be"
    assert ssim(picture, np.roll(picture, 1, 1)).mean() < 0.1
    flat = np.full((40, 40, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)  # without structure the means alone decide
    assert np.allclose(ssim(flat, flat + np.uint8(20)), expected)


@pytest.mark.slow
def test_the_pictures_compared_are_equal(tmp_path: Path) -> None:
    """The benchmark's speeds mean something only then; they themselves are for a quiet machine, not for a test.

    In a process of its own: pyrender's renderer would end the display of this one's when it is collected.
    """
    out = tmp_path / "render.json"
    options = ["--shapes", "1", "--processes", "1", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "render.py"), *options]
    done = subprocess.run(command, check=False, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert out.is_file(), done.stderr
    found = json.loads(out.read_text())
    assert {row["loop"] for row in found["render"]} == {"patched", "as it comes", "rewritten", "unlit"}
    assert all(row["ssim_lowest"] >= 0.99 for row in found["render"] if row["loop"] == "patched")
    assert all(row["ssim_lowest"] > 0.999 for row in found["render"] if row["loop"] in ("rewritten", "unlit"))
    assert all(row["mask_iou"] > 0.999 and row["depth_p99"] < 0.002 for row in found["render"])
