"""What a newcomer types first: a plan before a store, a teacher without its weights, features as a table, pages."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recon.pipeline.base import hub
from recon.pipeline.base.errors import NotFetched, UserError
from recon.pipeline.commands import cli
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping import page
from recon.pipeline.keeping.export import export
from recon.pipeline.store import FeatureStore
from tests.conftest import MANIFEST

ABSENT = """
[[features.teachers]]
name = "absent"
kind = "{kind}"
model = "{model}"
"""


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["recon-pipeline", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("recon.pipeline.teachers.weights.hub_answers", lambda: False)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_plan_comes_before_the_store(
    small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "new.zarr"
    assert run(monkeypatch, "plan", "-m", small_manifest, store, "--json") == 0
    told = {line["stage"]: (line["total"], line["todo"]) for line in json.loads(capsys.readouterr().out)}
    assert told["meshes"] == (12, 12) and told["targets tiny"] == (24, 24)
    assert run(monkeypatch, "plan", "-m", small_manifest, store) == 0
    assert capsys.readouterr().out.startswith(f"{store} does not exist yet: a run makes it")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr" / "zarr.json").touch()
    assert run(monkeypatch, "plan", "-m", small_manifest, tmp_path / "odl.zarr") == 0
    assert f"(did you mean {tmp_path / 'old.zarr'}?)" in capsys.readouterr().out.splitlines()[0]
    assert run(monkeypatch, "status", "-m", small_manifest, store) == 1  # which speaks of what is there


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("open_clip", 'ViT-B-32"\npretrained = "laion2b_s34b_b79k'),
        ("open_clip", "hf-hub:a/b"),
        ("timm", "vit_tiny_patch16_224"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_what_needs_no_weights_is_done_without_them(
    kind: str,
    model: str,
    clip_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tmp_path / "m.toml"
    manifest.write_text(MANIFEST.format(shapes=1, model=clip_config) + ABSENT.format(kind=kind, model=model))
    assert run(monkeypatch, "all", "-m", manifest, tmp_path / "s.zarr", "--workers", "0") == 1
    told = capsys.readouterr().err.splitlines()
    said = "its weights are not on this machine, and the Hugging Face hub does not answer; offline, name"
    # At once and whole, before any stage; and again at the end.
    assert "teacher 'absent'" in told[0] and said in told[0] and told[0].endswith("what needs no weights is done first")
    assert told[-1].startswith("error: teacher 'absent'") and said in told[-1]
    assert sum("absent" in line for line in told) == 2
    finished = [line.split(":")[0].rpartition(" ")[0].strip() for line in told if " finished, " in line]
    assert finished == ["meshes", "points", "views", "targets tiny", "captions facts", "text tiny"]
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.teachers == ["tiny"] and len(dict(store.features())) == 3
    with pytest.raises(NotFetched):
        Flow(load_manifest(manifest), None, FeatureStore.open(store.path, write=True)).all()


def test_the_hub_is_left_alone_where_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for answers in (True, False):
        monkeypatch.setattr(hub, "hub_answers", lambda answers=answers: answers)
        with pytest.raises(KeyError), hub.fetching_if_it_answers():
            assert constants.HF_HUB_OFFLINE is not answers
            raise KeyError
        assert constants.HF_HUB_OFFLINE is False


def test_a_run_names_teachers_and_finished_rows(
    small_manifest: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "all", "-m", small_manifest, small_store, "--workers", "0", "--json") == 0
    shown = capsys.readouterr()
    key = FeatureStore.open(small_store).ref().targets["tiny"]
    assert f"    targets tiny {key}: 24 of 24 finished, up to date" in shown.err.splitlines()
    lines = {line["name"]: line for line in json.loads(shown.out)}
    assert (lines["targets tiny"]["stage"], lines["targets tiny"]["finished"]) == ("targets", 24)


def test_features_alone_are_a_table(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "export", small_store, tmp_path / "out", "--only", "targets") == 0
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["README.json", "rows.jsonl", "shapes/part-000000.parquet"]
    table = pq.read_table(tmp_path / "out" / "shapes")
    assert table.column_names == ["uid", "dataset", "category", "split", "label", "targets-tiny"]
    store = FeatureStore.open(small_store)
    assert table["uid"].to_pylist() == store.registry.uid
    feat = store.targets().feat
    for row in (0, 11):
        assert table["targets-tiny"][row].as_py() == feat[:, row].ravel().tolist()
    with pytest.raises(UserError, match="form openshape holds more than targets"):
        export(store, tmp_path / "other", "openshape", only_targets=True)


def test_a_stores_page(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "store.html"
    assert run(monkeypatch, "report", small_store, "-o", out) == 0
    told = out.read_text()
    assert "12 shapes of small in 3 categories: 3 test, 9 train" in told
    assert re.search(r'<th scope="row">targets/tiny</th><td class="number">24</td>', told)
    assert told.count("<img") == told.count('loading="lazy"') == told.count("data:image/png;base64,") == 1
    assert "prefers-color-scheme: dark" in told and not re.search(r"https?:|<script|<link|@import|url\(", told)
    assert len(re.findall(r"<th(?: |>)", told)) == told.count("<th scope=")
    monkeypatch.setattr(page, "PICTURE_BYTES", 100)
    assert run(monkeypatch, "report", small_store, "-o", out) == 0
    assert "<img" not in out.read_text() and "1 sheet left out" in out.read_text()


def test_a_finished_store_opened_for_reading_is_up_to_date(small_manifest: Path, small_store: Path) -> None:
    flow = Flow(load_manifest(small_manifest), None, FeatureStore.open(small_store))
    assert [result.computed for result in flow.all()] == [0] * 6
