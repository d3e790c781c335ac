"""Second copies: which files have one, who is to blame when two differ, and that agreement can always be had again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import twins
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS


@pytest.fixture
def store(small_store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "s.zarr"
    shutil.copytree(small_store, path)
    twins.save(path, twins.sources(path))
    return path


def flip(path: Path, bit: int = 77) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_what_cannot_be_computed_again_has_a_twin_and_shards_have_none(store: Path) -> None:
    found = {str(path) for path in twins.sources(store)}
    assert {"zarr.json", "registry/zarr.json", "registry/uid/zarr.json", "registry/uid/c/0", "refs/small.json"} <= found
    every = {str(p.relative_to(store)) for p in store.rglob("zarr.json")}
    assert {name for name in every if not name.startswith("twins")} <= found
    assert sum("/prompt/c/" in name for name in found) == 1
    assert not any("/c/" in name for name in found if not name.startswith("registry") and "/prompt/" not in name)
    held = {str(p.relative_to(store / "twins")) for p in (store / "twins").rglob("*") if p.is_file()}
    assert held == found


def test_a_sound_store_is_left_alone(store: Path) -> None:
    before = contents(store)
    assert twins.check(store) == []
    assert twins.settle(store) == []
    twins.save(store, twins.sources(store))
    assert contents(store) == before


@pytest.mark.parametrize("name", ["zarr.json", "registry/uid/c/0", "refs/small.json"])
def test_a_flipped_original_is_named_and_restored(store: Path, name: str) -> None:
    before = contents(store)
    flip(store / name)
    damaged = contents(store)
    assert [damage.path for damage in twins.check(store)] == [name]
    assert contents(store) == damaged
    assert twins.settle(store) == [f"{name}: restored from its second copy"]
    assert contents(store) == before


@pytest.mark.parametrize("bit", [3, 600])
@pytest.mark.parametrize("name", ["zarr.json", "registry/uid/c/0"])
def test_a_flipped_twin_is_named_and_written_anew(store: Path, name: str, bit: int) -> None:
    before = contents(store)
    flip(store / "twins" / name, bit)
    assert [damage.path for damage in twins.check(store)] == [f"twins/{name}"]
    assert twins.settle(store) == [f"{name}: second copy written anew"]
    assert contents(store) == before


def test_missing_files_come_back(store: Path) -> None:
    before = contents(store)
    (key,) = (p.name for p in (store / "points").iterdir() if p.is_dir())
    (store / "registry/split/c/0").unlink()
    (store / "points" / key / "zarr.json").unlink()
    (store / "twins/refs/small.json").unlink()
    found = {damage.path: damage for damage in twins.check(store)}
    assert set(found) == {"registry/split/c/0", f"points/{key}/zarr.json", "refs/small.json"}
    assert found[f"points/{key}/zarr.json"].key == key
    assert all(damage.by_retry for damage in found.values())
    twins.settle(store)
    assert contents(store) == before


def test_an_update_that_was_cut_off_is_rolled_back(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store)
    opened = FeatureStore.open(store, write=True)
    rows = len(opened.registry)
    with monkeypatch.context() as patch:
        patch.setattr(twins, "save", lambda *_: None)  # as if killed before it
        opened.append_registry({name: ["new"] for name in REGISTRY_COLUMNS})
    assert len(FeatureStore.open(store).registry) == rows + 1
    twins.settle(store)
    assert len(FeatureStore.open(store).registry) == rows
    assert contents(store) == before


def test_both_lost_is_an_error_that_names_the_file(store: Path) -> None:
    (key,) = (p.name for p in (store / "views").iterdir() if p.is_dir())
    name = f"views/{key}/zarr.json"
    (store / name).write_text("{")
    (store / "twins" / name).write_text("gone")
    (damage,) = twins.check(store)
    assert damage.path == name
    assert not damage.by_retry
    with pytest.raises(UserError, match=rf"{name}: damaged.*delete .*{key} to have it computed again") as caught:
        twins.settle(store)
    assert "\n" not in str(caught.value)


def test_a_file_whose_making_was_cut_off_is_removed(store: Path) -> None:
    (store / "points/0123456789abcdef").mkdir()
    (store / "points/0123456789abcdef/zarr.json").touch()
    twins.settle(store)
    assert not (store / "points/0123456789abcdef/zarr.json").exists()
    assert twins.check(store) == []


def test_temporary_files_get_no_twin(store: Path) -> None:
    names = ["registry/uid/c/.0.1.tmp", "registry/uid/c/0.abc.partial", "refs/.small.json.1.tmp"]
    for name in names:
        (store / name).write_text("x")
    twins.save(store, names)
    assert twins.check(store) == []
    assert not set(names) & {str(path) for path in twins.sources(store)}


def test_a_forgotten_key_stays_deleted(store: Path) -> None:
    (key,) = (p.name for p in (store / "views").iterdir() if p.is_dir())
    twins.forget(store, f"views/{key}")
    shutil.rmtree(store / "views" / key)
    assert twins.check(store) == []
    assert twins.settle(store) == []
    for prefix in ("", ".", "..", "../points", "views/../.."):
        with pytest.raises(ValueError, match="not a folder"):
            twins.forget(store, prefix)


def test_links_out_of_the_store_are_not_followed(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "zarr.json").write_text("mine")
    (store / "views" / "link").symlink_to(outside)
    assert twins.check(store) == []
    with pytest.raises(UserError, match="leads out of the store"):
        twins.save(store, ["views/link/zarr.json"])
    with pytest.raises(UserError, match="leads out of the store"):
        twins.save(store, ["../outside/zarr.json"])
    shutil.move(store / "registry", outside / "registry")
    before = contents(outside)
    (store / "registry").symlink_to(outside / "registry")
    flip(store / "twins/registry/zarr.json")
    assert {damage.what for damage in twins.check(store)} == {"lies behind a link that leaves the store"}
    with pytest.raises(UserError, match="behind a link"):
        twins.settle(store)
    assert contents(outside) == before


def test_a_link_in_place_of_a_file_is_replaced_not_followed(store: Path, tmp_path: Path) -> None:
    before = contents(store)
    (tmp_path / "precious").write_text("mine")
    (store / "refs/small.json").unlink()
    (store / "refs/small.json").symlink_to(tmp_path / "precious")
    twins.settle(store)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (store / "refs/small.json").is_symlink()
    assert contents(store) == before


def test_a_full_disk_or_missing_permission_is_one_line(store: Path) -> None:
    (store / "refs/new.json").write_text("{}")
    shutil.rmtree(store / "twins/refs")
    (store / "twins/refs").write_text("in the way")
    with pytest.raises(UserError, match=r"twins/refs/new\.json: cannot be written: \w"):
        twins.save(store, ["refs/new.json"])


def test_settling_reads_each_file_once_and_enters_no_shards(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before every writing run, and a store of a million shapes has a million files of shards."""
    for number in range(3):
        for column in ("xyz", "normal"):
            name = store / f"points/{number:016x}/{column}/zarr.json"
            name.parent.mkdir(parents=True)
            name.write_text(json.dumps({"zarr_format": 3}))
            for shard in range(5):
                (name.parent / f"c/{shard}").mkdir(parents=True)
    for column in REGISTRY_COLUMNS:
        for chunk in range(5):
            (store / f"registry/{column}/c/{chunk}").write_bytes(b"chunk")
    twins.save(store, twins.sources(store))
    expected = sorted(str(store / folder / path) for path in twins.sources(store) for folder in ("", twins.FOLDER))
    opened, entered = [], []
    open_file, scandir = os.open, os.scandir

    def noted_open(path: Path, flags: int) -> int:
        opened.append(str(path))
        return open_file(path, flags)

    def noted_scandir(path: Path) -> Any:
        entered.append(str(path.relative_to(store)))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", noted_open)
        patch.setattr(os, "scandir", noted_scandir)
        assert twins.settle(store) == []
    assert sorted(opened) == expected
    assert len(entered) == len(set(entered)) and "registry/uid/c" in entered
    assert not [folder for folder in entered if folder.startswith("points") and folder.endswith("/c")]
