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
import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.own import run_own
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
    """The module, the manifest, the command, with a worker that has to find the module too."""
    put(tmp_path, "npy_source.py")
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
    again = [sys.executable, "-m", "recon.pipeline", *command[1:], "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
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
    put(tmp_path, own[2])
    succeeds(*own)
    said = re.findall(r"accuracy (0\.\d+)", capsys.readouterr().out)[0]
    succeeds(*report)
    assert "neighbours on demo.zarr/small, test" in Path("runs/demo/report.html").read_text()
    capsys.readouterr()
    succeeds(*table)
    row = next(line for line in capsys.readouterr().out.splitlines() if "neighbours" in line)
    assert f"{100 * float(said):.1f}" in row


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1", "has no function `predict`"),
        ("1 / 0", "does not run: ZeroDivisionError: division by zero"),
        ("def predict(*_): raise KeyError('left')", "predict: KeyError: 'left'"),
        (
            "def predict(probe, student, train, test): return test.category + 9",
            "predict gave [3] of int64, not [3] whole",
        ),
        ("def predict(probe, student, train, test): return test.category[:1]", "predict gave [1] of int64"),
        (None, "no such file; a probe is a Python file"),
    ],
)
def test_a_probe_that_is_none_is_a_line(
    code: str | None, told: str, probed_run: Path, small_store: Path, tmp_path: Path
) -> None:
    if code is not None:
        (tmp_path / "own.py").write_text(code)
    with pytest.raises(UserError, match=re.escape(told)):
        run_own(probed_run, small_store, torch.device("cpu"), file=tmp_path / "own.py")


@pytest.mark.parametrize(
    ("code", "line", "told"),
    [
        ("", "", 'code: layout "python" wants the class'),
        ("", 'code = "own_npy"', "'own_npy' is no import path"),
        ("", 'code = "no_such:X"', "cannot import no_such"),
        ("class X: pass", 'code = "{}:X"', "is no class derived from"),
        (
            "from recon.pipeline.sources.source import Source\nclass X(Source): pass",
            'code = "{}:X"',
            "needs a name of its own",
        ),
        (None, 'code = "{}:NpySource"\nupp = "+Z"', "unknown field 'source.upp' (did you mean 'up'?)"),
    ],
)
def test_a_source_that_is_none_is_a_line(
    code: str | None, line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{abs(hash((code, line)))}"  # modules stay imported
    (tmp_path / f"{name}.py").write_text(BLOCKS["npy_source.py"] if code is None else code)
    monkeypatch.syspath_prepend(tmp_path)
    before = 'code = "npy_source:NpySource"'
    (tmp_path / "m.toml").write_text(BLOCKS["npy.toml"].replace(before, line.format(name)))
    with pytest.raises(UserError, match=re.escape(told)):
        load_manifest(tmp_path / "m.toml")
