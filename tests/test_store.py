"""Opening, registering and asking a store for what it does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.store import twins
from recon.pipeline.store.columns import append_text
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

COLUMNS = ("uid", "dataset", "category", "split", "source", "fingerprint")


def registered(path: Path, names: list[str]) -> FeatureStore:
    store = FeatureStore.create(path)
    store.append_registry(dict.fromkeys(COLUMNS, names))
    return store


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recon-pipeline all"):
        FeatureStore.open(tmp_path / "none.zarr")
    assert not (tmp_path / "none.zarr").exists()


def test_a_foreign_zarr_is_refused_and_left_alone(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "f.zarr"), attributes={"a": 1})
    before = (tmp_path / "f.zarr" / "zarr.json").read_bytes()
    for open_ in (FeatureStore.open, FeatureStore.create):
        with pytest.raises(UserError, match="no feature store"):
            open_(tmp_path / "f.zarr")
    assert (tmp_path / "f.zarr" / "zarr.json").read_bytes() == before


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "n.zarr"), attributes={"format": "recon-store", "version": 99})
    with pytest.raises(UserError, match="version 99"):
        FeatureStore.open(tmp_path / "n.zarr")


def test_a_damaged_group_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=r"d\.zarr"):
        FeatureStore.open(tmp_path / "d.zarr")


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is no feature store"):
        FeatureStore.create(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_registry_grows_and_keeps_its_rows(tmp_path: Path) -> None:
    store = registered(tmp_path / "s.zarr", ["b", "a"])
    store.append_registry({c: ["c", "ä-long-name" * 20] for c in COLUMNS})
    registry = FeatureStore.open(tmp_path / "s.zarr").registry
    assert registry.uid == ["b", "a", "c", "ä-long-name" * 20]
    assert [registry.categories[i] for i in registry.category] == registry.uid


def test_an_append_cut_off_before_its_commit_is_not_seen(tmp_path: Path) -> None:
    store = registered(tmp_path / "s.zarr", ["a"])
    group = store.group["registry"]
    assert isinstance(group, zarr.Group)
    rows = group.attrs["rows"]
    append_text(group, {"uid": ["half"]}, 1)  # the first column of an append, then the power goes
    group.attrs["rows"] = rows
    assert FeatureStore.open(tmp_path / "s.zarr").registry.uid == ["a"]
    store.append_registry({c: ["whole"] for c in COLUMNS})
    assert FeatureStore.open(tmp_path / "s.zarr").registry.uid == ["a", "whole"]


def test_refs(tmp_path: Path) -> None:
    store = registered(tmp_path / "s.zarr", ["a"])
    with pytest.raises(UserError, match="no finished stage"):
        store.ref()
    store.write_ref("one", "points", "k1")
    store.write_ref("one", "targets", "k2", part="clip")
    assert store.ref().keys == {"points": "k1"}
    assert store.ref().targets == {"clip": "k2"}
    store.write_ref("two", "points", "k3")
    with pytest.raises(UserError, match="one, two"):
        store.ref()
    with pytest.raises(UserError, match="no ref 'three'"):
        store.ref("three")


def test_an_unknown_key_offers_those_there_are(tmp_path: Path) -> None:
    store = registered(tmp_path / "s.zarr", ["a"])
    store.require_key("points", "abc", {"stage": "points"}, ())
    with pytest.raises(UserError, match="'abd'; it holds abc"):
        store.kind_group("points", "abd")
    with pytest.raises(UserError, match="no key"):
        store.digest("abd")


def test_prompts_are_kept_once_in_order(tmp_path: Path) -> None:
    store = registered(tmp_path / "s.zarr", ["a"])
    store.require_key("text", "k", {"stage": "text"}, ())
    store.append_prompts("k", ["one", "two", "one"])
    store.append_prompts("k", ["two", "three"])
    assert store.prompts("k") == ["one", "two", "three"]


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    write_atomically(path, json.dumps(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomically(path, json.dumps(2))
    assert path.read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_kinds_metadata_that_a_kill_left_out_gets_its_second_copy(tmp_path: Path) -> None:
    """Zarr writes a key's group before its kind's: found by the soak, once in 1,716 kills."""
    column = Column("xyz", (3,), "float32")
    FeatureStore.create(tmp_path / "s.zarr").require_key("points", "k", {"stage": "points"}, [column])
    for folder in ("", "twins/"):
        (tmp_path / f"s.zarr/{folder}points/zarr.json").unlink()
    twins.settle(tmp_path / "s.zarr")  # as every writing run does first
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    group = store.require_key("points", "k", {"stage": "points"}, [column])
    store.require_column(group, column, 4, 0, 4)
    assert twins.check(store.path) == []
