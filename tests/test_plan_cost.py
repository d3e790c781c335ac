"""What a plan says of the cost before anything runs; and that another teacher costs its own features alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recon.pipeline.execution.executor import InProcess
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import describe, report, together
from recon.pipeline.flow.run import Flow
from recon.pipeline.shapes import meshfile
from recon.pipeline.stages import views
from recon.pipeline.store import FeatureStore
from tests.openshape_files import ensemble
from tests.test_stored_features import manifest


def test_all_stages_together_with_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes at once; time once a few shapes have been done, by what they took."""
    root, path = ensemble(tmp_path / "root"), manifest(tmp_path)
    store = tmp_path / "not yet" / "s.zarr"

    def plan(limit: int | None = None) -> tuple[list[Any], list[str]]:
        flow = Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "s.zarr"), InProcess(), limit)
        lines = report(flow, 2)
        return lines, together(lines, store, 2)

    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1 if place == tmp_path else -1))
    lines, (line,) = plan()
    size = sum(line.bytes_to_come for line in lines)
    assert size > 4 * (13 + 8) * 8 * 2
    assert f"together: about {size / 1000:.1f} kB to come, time not known yet: ask again after a run with" in line
    assert line.endswith("; the 1 B free there are too few")
    Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "s.zarr"), limit=2).all()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**13))
    lines, (line,) = plan()
    assert all(stage.done == 2 and stage.missing == 2 for stage in lines), describe(lines)
    assert "s on 2 workers; 10.0 TB are free there" in line and "not known" not in line
    assert plan(limit=2)[1] == []


def test_another_teacher_renders_and_reads_nothing_again(
    small_store: Path, small_manifest: Path, clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of coloured meshes: points, views and the first teacher's features stay, to the byte and unasked for."""
    path = Path(shutil.copytree(small_store, tmp_path / "s.zarr"))
    color = np.asarray(FeatureStore.open(path).points().color[:])
    assert len(np.unique(color.reshape(-1, 3), axis=0)) > 12
    before = FeatureStore.open(path)
    held = {f"{kind}/{key}" for kind, key in before.list_keys()}
    files = {file: file.stat().st_mtime_ns for name in held for file in (path / name).glob("*/c/**/*")}
    assert len(files) > len(held)

    def refuse(*_: object) -> None:
        raise AssertionError("a mesh was read, or a view rendered")

    monkeypatch.setattr(views, "_renderer", refuse)
    monkeypatch.setattr(meshfile, "load_mesh", refuse)
    monkeypatch.setattr("recon.pipeline.sources.procedural.ProceduralSource.mesh", refuse)
    more = f'[[features.teachers]]\nname = "more"\nkind = "open_clip"\nmodel = "{clip_config}"\ntap = "patch"\n'
    (tmp_path / "more.toml").write_text(small_manifest.read_text() + more)
    flow = Flow(load_manifest(tmp_path / "more.toml"), None, FeatureStore.open(path, write=True))
    flow.all()
    computed = {name: result.computed for name, result in flow.results.items() if result.computed}
    assert computed == {"targets more": 24}
    after = FeatureStore.open(path)
    assert held | {f"targets/{after.ref().targets['more']}"} == {f"{kind}/{key}" for kind, key in after.list_keys()}
    assert all(file.stat().st_mtime_ns == when for file, when in files.items())
    assert all(after.digest(name.split("/")[1]) == before.digest(name.split("/")[1]) for name in held)
