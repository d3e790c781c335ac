"""benchmarks/store.py and benchmarks/scale.py measure what they say, on counts small enough for a test."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("store")


def test_a_fabricated_store_is_finished_to_the_real_flow(bench: ModuleType, tmp_path: Path) -> None:
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.store import FeatureStore

    manifest = load_manifest(bench.write_manifest(tmp_path, 150))
    bench.fabricate(Flow(manifest, None, FeatureStore.create(tmp_path / "s.zarr")))
    results = Flow(manifest, None, FeatureStore.open(tmp_path / "s.zarr", write=True)).all()
    assert [result.computed for result in results] == [0] * 6
    assert [result.total for result in results[:5]] == [150, 150, 150, 450, 150]


def test_plans_see_which_receipts_are_gone(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(command: list[str], **_: Any) -> SimpleNamespace:
        """A fresh process is for the benchmark's memory, which is not judged here."""
        monkeypatch.setattr(sys, "argv", command[1:])
        bench.main()
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(bench.subprocess, "run", here)
    found = bench.plan(150, tmp_path)
    todo = {state: [found[state][scope]["todo"] for scope in ("one stage", "all stages")] for state in bench.STATES}
    assert todo["all done"] == [0, 0]
    assert 0 < todo["half done"][0] < 150
    assert todo["only meshes done"][0] == todo["nothing done"][0] == 150
    assert todo["nothing done"][1] > 7 * 150  # four stages, three draws and the prompts


def test_overhead_times_the_same_pictures(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 2)
    found = bench.overhead_of("demo", 4, tmp_path, 64)
    assert found["pictures"] == 24
    assert found["stage_beside_forward"]["low"] > 1  # reading, preparing and writing take their time


def test_every_column_has_a_size(bench: ModuleType, tmp_path: Path) -> None:
    found = bench.sizes(3, tmp_path)
    assert found["demo, points xyz"]["uncompressed"] == 8192 * 3 * 4
    assert found["demo, targets feat"]["uncompressed"] == 3 * 6 * 256 * 2
    assert all(line["on_disk"] > 0 for name, line in found.items() if name != "shapes")


def test_scale_stops_resumes_and_ends(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "scale.py"),
        "--part",
        "engine",
        "--rows",
        "2048",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "scale.json").read_text())
    assert report["plan, nothing done"]["tasks"] == 64
    done = sum(report[name]["rows_done"] for name in report if "resumed" in name or "quarter" in name)
    # Workers go on with what they had in hand when the run was stopped.
    assert 2048 - 8 * 32 <= done <= 2048
    assert report["plan, all done"]["todo"] == 0
    assert "again" in report["dask, finished again"]
    assert report["receipts"]["files"] == 64
    assert (tmp_path / "scale.md").read_text().startswith("# benchmarks/scale.py")


def test_scale_reads_and_streams_openshape(tmp_path: Path) -> None:
    """All phases on 48 shapes; what another part had measured is kept."""
    (tmp_path / "scale.json").write_text(json.dumps({"rows": 7, **bench_facts()}))
    command = [
        sys.executable,
        str(BENCHMARKS / "scale.py"),
        "--part",
        "openshape",
        "--rows",
        "48",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "scale.json").read_text())
    found = report["openshape"]
    assert report["rows"] == 7 and found["rows"] == 48
    assert found["plan before anything"]["points"]["todo"] == 48
    assert found["plan before anything"]["points"]["gb_to_come"] > 48 * 10_000 * 15 * 0.7 / 1e9
    assert set(found["shapes of genuine size"]["cpu_ms_a_shape"]) == {"points", "captions", "both targets"}
    assert found["plan after these"]["points"]["todo"] == 0
    assert found["open"]["finished"] == 48 and found["stream"]["samples"] > 0
    assert "## OpenShape's 48 shapes" in (tmp_path / "scale.md").read_text()


def bench_facts() -> dict[str, Any]:
    """What `markdown` says of the machine."""
    return {"date": "", "machine": {"cpu": "", "cores": 1, "load": 0.0}, "versions": {}, "load_after": 0.0}
