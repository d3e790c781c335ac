"""Stores that may not be written to: what is done can be asked again and trained on; and links out of a store."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.keeping.gc import collect, plan_gc
from recon.pipeline.keeping.mend import mend
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore, lock
from recon.pipeline.store.session import writing
from recon.trainer.config import DataConfig
from recon.trainer.data import cache
from recon.trainer.data.dataset import load_dataset
from tests import trainer_store as tiny
from tests.test_store_safety import read_only
from tests.test_trainer_cli import run_main
from tests.toy_stage import Toy, files_of, fill, register

ALL = DataConfig(splits=("train", "test"), num_points=32, drop_last=False)


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.fixture
def trained_on(tmp_path: Path) -> FeatureStore:
    return tiny.make_store(tmp_path / "disk" / "tiny.zarr")


# ---- finished stores


def test_a_finished_run_is_asked_again_and_an_unfinished_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    fill(register(path, ["a", "b"]), Toy())
    before = files_of(path)
    monkeypatch.setattr(lock, "_place", refuse)
    with writing(path, "all", idle=True) as store:
        key = fill(store, Toy())
        assert files_of(path) == before
        more = Toy(settings=(("seed", 1),))
        changes = (
            lambda: fill(store, more),
            lambda: register_more(store),
            lambda: store.update_registry("split", {0: "test"}),
            lambda: store.write_ref("toy", "views", key),
            lambda: store.require_key("views", key, more.recipe, more.columns),
        )
        for change in changes:
            with pytest.raises(MachineError, match=rf"^{path}: cannot write \(Read-only file system\)"):
                change()
    assert files_of(path) == before
    with pytest.raises(UserError, match="cannot lock the store"), writing(path, "gc"):
        pass


def register_more(store: FeatureStore) -> None:
    names = ("uid", "dataset", "category", "split", "source", "fingerprint")
    store.append_registry({name: ["c"] for name in names})


def test_a_store_that_another_run_holds_is_refused_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    register(path, ["a"])
    (path / lock.FILE).write_text("another program's")
    with pytest.raises(UserError, match="unreadable"), writing(path, "all", idle=True):
        pass


# ---- training


def test_a_process_has_a_copy_of_its_own_where_the_store_takes_none(
    trained_on: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_dataset(trained_on, ALL)
    for path in (trained_on.path / "cache").glob("*/*"):
        path.unlink()
    before = files_of(trained_on.path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(cache, "_only_builder", refuse)
    again = load_dataset(trained_on, ALL)
    assert torch.equal(again.xyz, expected.xyz)
    assert torch.equal(again.targets[0].feat, expected.targets[0].feat)
    assert again.record == expected.record
    assert files_of(trained_on.path) == before
    assert list((tmp_path / "temporary").iterdir()) == []
    (line,) = caplog.messages
    assert line.startswith(
        f"{trained_on.path / 'cache'}: cannot be written to (Read-only file system); copies of its rows"
    )
    monkeypatch.setattr(cache, "_copy_rows", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(UserError, match=rf'^{tmp_path}/temporary: .*No space left; .*TMPDIR.*data.loader = "stream"$'):
        load_dataset(trained_on, ALL)


@pytest.mark.slow
def test_pretraining_on_a_disk_that_cannot_be_written_to(
    trained_on: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    with read_only(trained_on.path.parent, tmp_path / "mounted") as disk:
        words = ("--recipe", str(tmp_path / "tiny.toml"), "--store", str(disk / "tiny.zarr"))
        assert run_main(monkeypatch, "pretrain", *words, "--run", str(tmp_path / "run")) == 0
    assert not (trained_on.path / "cache").exists()


# ---- a cache that leads elsewhere


@pytest.fixture(params=["cache", "a copy", "its file", "its lock"])
def elsewhere(request: pytest.FixtureRequest, trained_on: FeatureStore, tmp_path: Path) -> Path:
    """A folder that part of the store's cache was moved to, and is a link to."""
    load_dataset(trained_on, ALL)
    root = trained_on.path / "cache"
    folder = min(path for path in root.iterdir() if path.is_dir())
    moved = {"cache": root, "a copy": folder, "its file": folder / cache.FILE, "its lock": root / cache.LOCK}
    outside = tmp_path / "outside"
    outside.mkdir()
    place = moved[request.param]
    place.rename(outside / place.name)
    place.symlink_to(outside / place.name)
    (outside / "notes.txt").write_text("mine")
    return outside


def test_a_link_among_the_copies_is_not_followed(elsewhere: Path, trained_on: FeatureStore) -> None:
    held = elsewhere / cache.LOCK
    if held.exists():
        held.write_text("not a lock")
    else:  # a damaged copy is made again, and a check has it deleted
        for path in elsewhere.rglob(cache.FILE):
            path.write_bytes(b"damaged")
    before = files_of(elsewhere)
    with pytest.raises(
        UserError, match=r"^\S+/cache\S*: a link, and copies of rows stay in the store: delete the link$"
    ):
        load_dataset(trained_on, ALL)
    mend(trained_on.path, verify(trained_on, full=True).damages)
    collect(trained_on, plan_gc(trained_on, 0.0))
    assert files_of(elsewhere) == before


def test_a_check_names_a_cache_that_is_a_link(trained_on: FeatureStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "0123").mkdir(parents=True)
    (outside / "0123" / "sums.json").write_text("{}")
    (trained_on.path / "cache").symlink_to(outside)
    (damage,) = [found for found in verify(trained_on, full=True).damages if found.path.startswith("cache")]
    assert (damage.path, damage.mend, damage.by_retry) == ("cache", "delete the link", False)
    assert any(line.startswith("cache: lies behind a link") for line in plan_gc(trained_on, 0.0).skipped)
