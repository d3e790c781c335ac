"""The examples of docs/extending.md run as they stand: a source, a stage, a teacher, a probe."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore
from tests.conftest import MANIFEST
from tests.test_docs import EXTENDING, ROOT, commands, small_settings, succeeds

pytestmark = pytest.mark.slow

BLOCKS = dict(
    re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```$', EXTENDING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)


def put(folder: Path, name: str) -> Path:
    (folder / name).write_text(BLOCKS[name], encoding="utf-8")
    return folder / name


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    """In a copy of the checkout: the file, the line in layouts.py, the manifest, the command."""
    checkout = tmp_path / "checkout"
    for name in ("recon", "pipeline", "trainer", "kernels", "data_manifests"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    put(checkout, "pipeline/sources/npy.py")
    layouts = checkout / "pipeline" / "sources" / "layouts.py"
    before = layouts.read_text()
    (line,) = re.findall(r"^AnySource = .*$", before, re.MULTILINE)
    assert BLOCKS["pipeline/sources/layouts.py"].splitlines()[-1] == f"{line} | NpySource"
    layouts.write_text(before.replace(line, BLOCKS["pipeline/sources/layouts.py"]))
    put(tmp_path, "npy.toml")
    rng = np.random.default_rng(0)
    clouds = {}
    for place in ("train/chair/a", "train/mug/b", "test/mug/c"):
        path = tmp_path / "clouds" / f"{place}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        clouds[f"{place}.npy"] = rng.random((1500, 3), np.float32)
        np.save(path, clouds[f"{place}.npy"])
    (tmp_path / "clouds" / "test" / "mug" / "bad.npy").write_bytes(b"\x93NUMPY")

    (command,) = [words for words in commands(EXTENDING) if "npy.toml" in words]
    assert command[0] == "recon-pipeline"
    again = [sys.executable, "-m", "recon.pipeline", *command[1:], "--workers", "0"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "test/mug/bad.npy" in done.stderr

    store = FeatureStore.open(tmp_path / "stores" / "npy.zarr")
    points, registry = store.points("mine"), store.registry
    rows = registry.numbers("mine")
    assert {uid: (registry.categories[registry.category[row]], registry.split[row]) for uid, row in rows.items()} == {
        "train/chair/a.npy": ("chair", "train"),
        "train/mug/b.npy": ("mug", "train"),
        "test/mug/c.npy": ("mug", "test"),
        "test/mug/bad.npy": ("mug", "test"),
    }
    for uid, row in rows.items():
        assert points.ok[row] == (uid in clouds)
        if uid in clouds:
            x, y, z = clouds[uid].T  # its +Z is up and its -Y the front
            own = {tuple(point) for point in np.stack([x, z, -y], axis=1).tolist()}
            assert {tuple(point) for point in np.asarray(points.xyz[row]).tolist()} <= own


def test_a_stage_of_ones_own(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script fills a store, does nothing the second time, and a student learns from what it wrote."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_store, "stores/demo.zarr")
    script = put(tmp_path, "distances.py")
    (ran,) = [words for words in commands(EXTENDING) if words[1] == "distances.py"]
    (pretrain,) = [words for words in commands(EXTENDING) if words[1] == "pretrain"]
    monkeypatch.setattr(sys, "argv", ran[1:])
    runpy.run_path(str(script))
    assert capsys.readouterr().out.startswith("12 of 12 computed, 0 set aside")
    store = FeatureStore.open("stores/demo.zarr")
    found = store.targets("d2")
    assert found.feat.shape == (1, 12, 1, 64)
    assert found.ok.all()
    assert np.abs(np.asarray(found.feat[0, :, 0], np.float32).sum(axis=1) - 1).max() < 0.01
    assert len({found.feat[0, row].tobytes() for row in range(12)}) == 12
    assert not verify(store, full=True).damages
    runpy.run_path(str(script))
    assert capsys.readouterr().out.startswith("0 of 12 computed")
    succeeds(*pretrain, *small_settings())
    assert "image:d2" in json.loads(Path("runs/d2/metrics.jsonl").read_text().splitlines()[-1])


def test_a_teacher_of_ones_own(clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "grid_teacher.py")
    monkeypatch.syspath_prepend(tmp_path)
    text = MANIFEST.format(shapes=1, model=clip_config).replace("draws = 2", "draws = 1")
    (tmp_path / "own.toml").write_text(text + BLOCKS["the manifest"])
    flow = Flow(load_manifest(tmp_path / "own.toml"), None, FeatureStore.create(tmp_path / "s.zarr"))
    assert not any(result.failed for result in flow.all())
    store = FeatureStore.open(tmp_path / "s.zarr")
    rgb = np.asarray(store.views().rgb[:], np.float64)  # [3, 2, 32, 32, 3]
    means = [[rgb[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean((2, 3)) for j in range(4)] for i in range(4)]
    expected = np.moveaxis(np.array(means), (0, 1), (2, 3)).reshape(3, 2, 48) / 255
    assert np.allclose(store.targets("grid").feat[0], expected, atol=1e-3)


def test_a_probe_of_ones_own(
    own_run: Path,
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script, then the report and the table, which have its result."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_store, "stores/demo.zarr")
    shutil.copytree(own_run, "runs/demo")
    own, report, table = list(commands(EXTENDING))[-3:]
    monkeypatch.setattr(sys, "argv", own[1:])
    runpy.run_path(str(put(tmp_path, own[1])))
    said = capsys.readouterr().out
    succeeds(*report)
    assert "neighbours on demo.zarr/small, test" in Path("runs/demo/report.html").read_text()
    capsys.readouterr()
    succeeds(*table)
    row = next(line for line in capsys.readouterr().out.splitlines() if "neighbours" in line)
    assert said.partition(" %")[0] in row
