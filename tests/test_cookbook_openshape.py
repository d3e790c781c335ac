"""The cookbook's page on OpenShape runs, from files to the zero-shot tables, on miniatures in the genuine layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recon.pipeline.store import FeatureStore
from tests import openshape_trees as trees
from tests.released2_goldens import released_weights
from tests.released_goldens import GOLDEN
from tests.test_docs import ROOT, commands, small_settings, succeeds, without_workers

PAGE = ROOT / "docs" / "cookbook" / "openshape.md"
DIM = 1280  # the page's, and that of the recorded student's answers
RELEASED = "released/best_lvis.pth"
# The recorded student is a small one: its groups, queries and points are fewer.
SMALLER_RELEASED = [
    "--set", "model.num_group=16", "--set", "model.heads=4", "--set", "data.num_points=80", "--set",
    'model.teachers=[{name="image", kind="image", dim=1280, loss="matched_sum", queries=4}, '
    '{name="text", kind="text", dim=1280, loss="matched_sum", queries=2}]',
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """The shipped manifests but for the number of points, all of OpenShape's files, and a file of released names."""
    (tmp_path / "data_manifests").mkdir()
    for name in ("openshape", *trees.EVALUATION):
        text = (ROOT / "data_manifests" / f"{name}.toml").read_text("utf-8")
        for old, new in trees.SMALLER.items():
            text = text if old.startswith("dim") else text.replace(old, new)
        (tmp_path / "data_manifests" / f"{name}.toml").write_text(text)
    root = trees.ensemble(tmp_path / "data" / "openshape", dim=DIM)
    for build, _ in trees.EVALUATION.values():
        build(root, dim=DIM)
    state = {f"module.{name}": value for name, value in released_weights(GOLDEN / "recon2_small", "rand").items()}
    (tmp_path / "released").mkdir()
    torch.save({"base_model": state, "epoch": 1}, tmp_path / RELEASED)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("recon.pipeline.flow.manifest.SHIPPED", workplace / "data_manifests")
    without_workers(monkeypatch)
    for program, *words in commands(PAGE):
        more = SMALLER_RELEASED if RELEASED in words else []
        if words[0] == "pretrain":  # without the start weights, which are fetched
            more = [*small_settings(), "--set", 'task.start=""']
        # A miniature lacks most of what was published, which is what `check` is there to say.
        succeeds(program, *words, *more, status=int(words[0] == "check" and "objaverse_lvis" in words))
    found = [json.loads(path.read_text()) for path in sorted((workplace / "runs/openshape/results").glob("*.json"))]
    assert {(each["protocol"], each["ref"]) for each in found} == {
        *(("zeroshot_recon2", name) for name in trees.EVALUATION),
        *((f"zeroshot_{protocol}", "modelnet40_openshape") for protocol in ("openshape", "uni3d")),
    }
    assert all("features of the classes" in each["variant"] for each in found)
    (released,) = (workplace / "results/recon2/results").glob("*.json")
    assert json.loads(released.read_text())["num_points"] == 80
    store = FeatureStore.open(workplace / "stores/openshape.zarr")
    assert len(store.registry) == 4 * len(trees.SOURCES) and store.targets().ok.all()
