"""Every command of the README and the manuals runs, on a small store in place of the real one and for a few steps."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from recon.pipeline.execution.executor import InProcess
from tests.openshape_files import ensemble
from tests.test_stored_features import shipped

ROOT = Path(__file__).resolve().parents[1]
EXTENDING = ROOT / "docs" / "extending.md"  # whose commands tests/test_extending.py runs, with the page's files
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != EXTENDING),
]
SMALL = [
    *("optim.epochs=3", "optim.warmup_epochs=1", "optim.batch_size=4", "data.num_points=64"),
    *("model.width=24", "model.heads=3", "model.depth=1", "model.decoder_depth=1"),
    *("model.num_group=8", "model.group_size=8"),
]
OTHER_STORES = ("stores/modelnet", "stores/scanobjectnn", "stores/shapenetpart", "runs/shapenet55")
DOWNSTREAM = [
    word
    for setting in (*SMALL[:4], "optim.accumulate=1", "model.num_group=8", "model.group_size=8")
    for word in ("--set", setting)
]
PRETRAINING = ["--recipe", "demo", "--store", "stores/demo.zarr"]
# What a manual's placeholder stands for.
STANDS_FOR = {"S": "stores/demo.zarr", "R": "runs/other", "RUN": "runs/demo", "STORE": "stores/demo.zarr"}


# As the shipped manifest of the name, with fewer shapes and views: the manual's points are as many.
DENSE = """
name = "demo_dense"
test_fraction = 0.25
[source]
layout = "procedural"
categories = ["chair", "table"]
shapes_per_category = 4
[sample]
num_points = 1024
[render]
preset = "ring2"
resolution = 96
[features.lift]
teachers = ["cells"]
[[features.teachers]]
name = "demo"
kind = "open_clip"
model = "demo"
[[features.teachers]]
name = "cells"
kind = "open_clip"
model = "demo"
tap = "dense"
"""


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command in a page's code blocks, comments left out."""
    fenced = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
            continue
        text = line if fenced else line.removeprefix("    ") if line.startswith("    ") else ""
        words = shlex.split(re.sub(r"\s#.*", "", text)) if re.match(r"(\.venv/bin/)?(make|recon-|python)", text) else []
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_make_target_exists(path: Path) -> None:
    for program, *targets in commands(path):
        if program == "make":
            done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_manifest: Path, clip_config: Path) -> Path:
    """A folder laid out as the manuals assume, with small things in it."""
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.store import FeatureStore
    from tests.test_pipeline import folder_manifest

    place = tmp_path_factory.mktemp("docs")
    (place / "data_manifests").mkdir()
    demo = small_manifest.read_text().replace('name = "small"', 'name = "demo"')
    (place / "data_manifests" / "demo.toml").write_text(demo)
    (place / "data_manifests" / "demo_dense.toml").write_text(DENSE)
    store = FeatureStore.create(place / "stores" / "demo.zarr")
    Flow(load_manifest(place / "data_manifests" / "demo.toml"), None, store).all()
    shutil.copytree(store.path, place / "stores" / "more.zarr")
    folder_manifest(place, clip_config).rename(place / "data_manifests" / "folder.toml")
    shipped(place / "data_manifests")
    ensemble(place / "openshape")
    for category in ("chairs", "tables"):
        (place / "my" / "meshes" / category).mkdir(parents=True)
        trimesh.creation.box((1, 1, 2)).export(place / "my" / "meshes" / category / "a.ply")
    (place / "my" / "clouds").mkdir()
    np.save(place / "my" / "clouds" / "a.npy", np.random.default_rng(0).random((200, 9)))
    for path in clip_config.parent.iterdir():  # where runs look for their teachers
        shutil.copy(path, place)
    Image.new("RGB", (32, 32), "white").save(place / "view.png")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in DOCS if {words[0] for words in commands(path)} - {"make"}], ids=lambda p: p.name
)
def test_every_command_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("recon.pipeline.flow.manifest.SHIPPED", workplace / "data_manifests")
    if path.name != "README.md":  # whose commands run as they are, with their workers
        without_workers(monkeypatch)
    for program, *given in commands(path):
        words = [STANDS_FOR.get(word, word) for word in given]
        if program not in ("recon-pipeline", "recon-train"):
            named = words[2] if words[0] == "-m" else words[0]  # python -m pytest FOLDER
            assert program == "make" or (ROOT / named).exists(), f"{path.name}: {program} {words}"
            continue
        if words[0] == "pretrain":
            words += small_settings()
        if words[0] == "serve":  # would answer until it is interrupted; tests/test_serve.py asks it
            monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: sockets[0].close())
            words += ["--port", "0"]
        if words[0] == "classify":
            words += ["--split", "train+test"]  # a miniature has too few test shapes to calibrate on
        if any(word.startswith(OTHER_STORES) for word in words):
            continue  # tests/test_transfer_rows.py runs these
        if words[0] in ("finetune", "fewshot", "partseg"):
            words += DOWNSTREAM
            start = words[words.index("--from") + 1]
            if not Path(start).exists():
                succeeds("recon-train", "pretrain", *PRETRAINING, "--run", start, *small_settings())
            succeeds(program, *words)
            continue
        if words[0] == "ablate":
            succeeds(program, *words, *small_settings())
            continue
        run = words[words.index("--run") + 1] if "--run" in words else ""
        if run and not Path(run).exists() and (words[0] != "pretrain" or "--resume" in words):
            # A page may begin with a run that another page trains.
            succeeds("recon-train", "pretrain", *PRETRAINING, "--run", run, *small_settings())
        if words[0] == "pretrain" and "--resume" not in words:
            words.append("--overwrite")
        succeeds(program, *words)


def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run their stages in this process: starting workers again and again would take most of a test's time."""
    monkeypatch.setattr("recon.pipeline.execution.opening.Processes", lambda *workers: InProcess())


def small_settings() -> list[str]:
    return [word for setting in SMALL for word in ("--set", setting)]


def succeeds(program: str, *words: str, status: int = 0) -> None:
    """Run a command line in this process."""
    from recon.pipeline.commands import cli as pipeline_cli
    from recon.trainer import cli as trainer_cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as exit_:
            (pipeline_cli if program == "recon-pipeline" else trainer_cli).main()
    assert (exit_.value.code or 0) == status, f"{program} {' '.join(words)}"
