"""The trainer's copy of a store's rows: built once, checked, shared, and refused where the store is damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.cache import FILE, LOCK
from recon.trainer.data.dataset import load_dataset
from tests import trainer_store as tiny

ROOT = Path(__file__).parents[1]
BOTH = DataConfig(splits=("train", "test"), num_points=32, drop_last=False)


@pytest.fixture
def own_store(tmp_path: Path) -> FeatureStore:
    """One to damage."""
    return tiny.make_store(tmp_path / "own.zarr")


def copies(store: FeatureStore) -> list[Path]:
    """What lies in the folder of copies, but for the lock."""
    return [path for path in (store.path / "cache").glob("*") if path.name != LOCK]


def test_the_copy_is_made_once_and_again_when_damaged(own_store: FeatureStore) -> None:
    first = load_dataset(own_store, BOTH)
    made = {folder: (folder / FILE).stat().st_mtime_ns for folder in copies(own_store)}
    assert all(sorted(path.name for path in folder.iterdir()) == [FILE, "sums.json"] for folder in made)
    load_dataset(own_store, BOTH)
    assert {folder: (folder / FILE).stat().st_mtime_ns for folder in copies(own_store)} == made

    expected = first.xyz.clone(), first.targets[0].feat.clone()
    for folder in made:
        damaged = bytearray((folder / FILE).read_bytes())
        damaged[-3] ^= 1
        (folder / FILE).unlink()  # the first data set still maps the old file
        (folder / FILE).write_bytes(damaged)
    again = load_dataset(own_store, BOTH)
    assert torch.equal(again.xyz, expected[0]) and torch.equal(again.targets[0].feat, expected[1])
    assert set(copies(own_store)) == set(made)


def test_what_other_teachers_are_added_to_is_not_copied_again(own_store: FeatureStore) -> None:
    load_dataset(own_store, replace(BOTH, teachers=(TeacherConfig("image"),)))
    before = copies(own_store)
    load_dataset(own_store, BOTH)
    assert len(before) == 2 and copies(own_store) == before
    # Without pictures, a row whose pictures are not finished counts too.
    assert len(load_dataset(own_store, replace(BOTH, teachers=()))) == 29


BUILD = """
import sys, time
from pathlib import Path
from recon.pipeline.store import FeatureStore
from recon.trainer.data import cache
from recon.trainer.data import dataset as data
from recon.trainer.config import DataConfig, TeacherConfig
store, log, mark = FeatureStore.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
build = cache._write_cache
def write(*arguments):
    with log.open("a") as file:
        file.write(mark)
    time.sleep(1.0)
    build(*arguments)
cache._write_cache = write
(log.parent / mark).touch()
while not all((log.parent / name).exists() for name in "ab"):
    time.sleep(0.01)
data.load_dataset(store, DataConfig(num_points=32))
"""
"""One of two processes that start to load at the same moment; each writes its mark when it builds a copy."""


@pytest.mark.slow
def test_of_two_processes_one_builds_the_copy(own_store: FeatureStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(own_store.path), str(tmp_path / "log")]
    both = [subprocess.Popen([*command, mark], cwd=ROOT) for mark in "ab"]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert len((tmp_path / "log").read_text()) == 2  # each of the two columns once
    assert len(copies(own_store)) == 2


DIE = """
import os, signal, sys
from pathlib import Path
from recon.trainer.data import cache
with cache._only_builder(Path(sys.argv[1])):
    Path(sys.argv[1], ".writing-half").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_builder_leaves_neither_lock_nor_litter(own_store: FeatureStore) -> None:
    root = own_store.path / "cache"
    root.mkdir()
    killed = subprocess.run([sys.executable, "-c", DIE, str(root)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (root / ".writing-half").is_dir()
    load_dataset(own_store, BOTH)
    assert len(copies(own_store)) == 2
    assert not any(folder.name.startswith(".") for folder in copies(own_store))


@pytest.mark.parametrize(("kind", "file"), [("points/points-key/xyz", "1/0/0"), ("targets/image-key/feat", "0/1/0/0")])
def test_a_damaged_shard_is_named(own_store: FeatureStore, kind: str, file: str) -> None:
    # The second shard: rows 8 to 15.
    path = sorted(p for p in (own_store.path / kind / "c").rglob("*") if p.is_file())[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damage in (lambda: path.write_bytes(content), path.unlink):
        damage()
        with pytest.raises(
            UserError, match=rf"{kind}/c/{file}: (missing|cannot be read).*`recon-pipeline retry`"
        ) as error:
            load_dataset(own_store, BOTH)
        assert "\n" not in str(error.value)
    assert len(copies(own_store)) == kind.startswith("targets")  # of the points, which are sound


def test_the_copy_follows_the_store(own_store: FeatureStore) -> None:
    before = load_dataset(own_store, BOTH)
    changed = own_store.receipt_path("image-key", 0, 0)
    receipt = Receipt.read(changed)
    assert receipt is not None
    replace(receipt, digests=("anew", *receipt.digests[1:])).write(changed)
    after = load_dataset(FeatureStore.open(own_store.path), BOTH)
    learnt = [data.record["teachers"]["image"]["digest"] for data in (before, after)]
    assert learnt[0] != learnt[1]
    assert len(copies(own_store)) == 3


def test_what_a_program_writes_into_the_maps_stays_out_of_the_files(own_store: FeatureStore) -> None:
    data = load_dataset(own_store, BOTH)
    paths = [folder / FILE for folder in copies(own_store)]
    before = [path.read_bytes() for path in paths]
    data.xyz.zero_()
    data.targets[0].feat.zero_()
    assert [path.read_bytes() for path in paths] == before


def test_who_may_read_the_store_may_map_its_copies(own_store: FeatureStore) -> None:
    before = os.umask(0o027)
    try:
        load_dataset(own_store, BOTH)
    finally:
        os.umask(before)
    (folder, *_) = copies(own_store)
    assert {oct(path.stat().st_mode & 0o777) for path in copies(own_store)} == {"0o750"}
    assert oct((folder / FILE).stat().st_mode & 0o777) == "0o640"
