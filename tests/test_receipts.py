"""Receipts: where each row was made, earlier forms, failures withdrawn one by one, and what is on the disk before."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from recon.pipeline.base import provenance
from recon.pipeline.base.code import code_digest
from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.files import make_directory, write_atomically
from recon.pipeline.commands.store import ls
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess
from recon.pipeline.execution.planning import plan_stage
from recon.pipeline.execution.stage import Block, Row
from recon.pipeline.keeping.stats import list_store
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import DamagedReceipt, Entry, Failure, Receipt
from tests.test_engine import Squares, rows_of
from tests.toy_stage import register


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return register(tmp_path / "s.zarr", [str(number) for number in range(20)])


def receipt_of(store: FeatureStore, key: str, number: int = 0) -> Receipt:
    return cast(Receipt, Receipt.read(store.receipt_path(key, 0, number)))


def at(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """From now on this is another machine."""
    monkeypatch.setattr(provenance.socket, "gethostname", lambda: host)


def hosts_of(store: FeatureStore, key: str, number: int = 0) -> list[str | None]:
    entries = receipt_of(store, key, number).entries().values()
    return [entry.made["host"] if entry.made else None for entry in entries]


# ---- provenance


def test_rows_keep_where_they_were_made(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "one")
    rows = [*rows_of(["1", "bad-2"]), Row(2, "3", "", ready=False)]
    key = run_stage(store, Squares(), rows, InProcess()).key
    assert hosts_of(store, key) == ["one", "one", None]  # who could not make it counts too
    at(monkeypatch, "two")
    run_stage(store, Squares(), [*rows_of(["1", "bad-2", "3"]), Row(3, "4", "v1")], InProcess())
    receipt = receipt_of(store, key)
    assert hosts_of(store, key) == ["one", "one", "two", "two"]
    assert receipt.made == (0, 0, 1, 1)
    assert receipt.hosts == ("one", "two")
    assert len(receipt.provenance) == 2


def test_a_copy_was_made_where_its_original_was(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Squares(contents=True)
    at(monkeypatch, "one")
    key = run_stage(store, stage, [Row(0, "3", "three")], InProcess()).key
    at(monkeypatch, "two")
    run_stage(store, stage, [Row(0, "3", "three"), Row(1, "4", "four"), Row(2, "3", "three")], InProcess())
    assert hosts_of(store, key) == ["one", "two", "one"]


def test_provenance_says_what_the_work_used_and_only_that(store: FeatureStore) -> None:
    class Drawn(Squares):
        def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
            if rows[0].index == 0:
                provenance.note("opengl", "llvmpipe, 4.5")
            return super().compute(store, key, rows, lane)

    key = run_stage(store, Drawn(), rows_of([str(number) for number in range(8)]), InProcess()).key
    first, second = (receipt_of(store, key, number).provenance[0] for number in (0, 1))
    assert first == second | {"opengl": "llvmpipe, 4.5"}
    assert set(second) == {"host", "processor", "code", "versions"}
    assert second["code"] == code_digest()
    assert {"python", "torch", "torchvision", "pillow", "pyrender", "recon-pointcloud"} <= set(second["versions"])
    assert all(version != "-" for name, version in second["versions"].items() if name != "transformers")


@pytest.mark.slow
def test_views_and_features_say_their_driver_and_device(small_store: Path) -> None:
    opened = FeatureStore.open(small_store)
    ref = opened.ref()
    views = receipt_of(opened, ref.keys["views"]).provenance
    assert all(made["opengl"] and "device" not in made for made in views)
    targets = receipt_of(opened, ref.targets["tiny"]).provenance
    assert all(made["device"] and "opengl" not in made for made in targets)


def test_rows_of_one_key_tell_that_different_code_made_them(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key says which recipe; that the code was another is told beside it, and changes neither key nor digest."""
    key = run_stage(store, Squares(), rows_of([str(number) for number in range(6)]), InProcess()).key
    before = store.digest(key)
    (line,) = list_store(store)
    assert line.codes == (code_digest(),)
    monkeypatch.setattr(provenance, "code_digest", lambda: "fedcba9876543210")
    store.receipt_path(key, 0, 1).unlink()
    run_stage(store, Squares(), rows_of([str(number) for number in range(6)]), InProcess())
    assert store.digest(key) == before
    (line,) = list_store(store)
    assert set(line.codes) == {code_digest(), "fedcba9876543210"}
    ls(store.path)
    assert ", made by 2 versions of the code\n" in capsys.readouterr().out


# ---- the file


def sealed(fields: dict[str, Any]) -> str:
    rest = canonical_json(fields)[1:]
    return f'{{"sum":"{hashlib.sha256(rest.encode()).hexdigest()[:16]}",{rest}\n'


def test_an_earlier_receipt_has_one_provenance(tmp_path: Path) -> None:
    earlier = {
        "rows": [4, 7], "inputs": ["a", "b", ""], "digests": ["c", "", ""], "ok": [True, False, False],
        "failed": {"5": {"reason": "no-faces", "traceback": ""}}, "nonfinite": 0, "bytes": 9, "seconds": 1.5,
        "host": "old", "versions": {"torch": "2.6"},
    }  # fmt: skip
    path = tmp_path / "0-000000.json"
    path.write_text(sealed(earlier))
    receipt = cast(Receipt, Receipt.read(path))
    made = {"host": "old", "versions": {"torch": "2.6"}}
    assert receipt.entries() == {4: Entry("a", "c", True, made), 5: Entry("b", "", False, made), 6: Entry()}
    assert receipt.failed == {5: Failure("no-faces")}
    receipt.write(path)
    assert Receipt.read(path) == receipt


def test_a_receipts_sum_covers_the_provenance(store: FeatureStore) -> None:
    key = run_stage(store, Squares(), rows_of(["1"]), InProcess()).key
    path = store.receipt_path(key, 0, 0)
    host = provenance.provenance()["host"]
    path.write_text(path.read_text().replace(json.dumps(host), json.dumps(host[::-1] + "x")))
    with pytest.raises(DamagedReceipt, match="does not match its own sum"):
        Receipt.read(path)


def test_reading_a_large_stores_receipts_takes_no_time(tmp_path: Path) -> None:
    """52,480 rows in 1,640 shards; planning reads every one."""
    made = provenance.provenance()
    entries = {row: Entry(digest_of(row), digest_of(row), True, made) for row in range(32)}
    receipt = Receipt.of(0, entries, {}, nonfinite=0, bytes=1, seconds=1.0)
    for number in range(164):
        (tmp_path / f"{number}.json").write_text(sealed({**vars(receipt), "failed": {}}))
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for number in range(164):
            assert Receipt.read(tmp_path / f"{number}.json") == receipt
        best = min(best, time.process_time() - began)
    assert best < 0.1  # a tenth of the receipts; a fiftieth of a second is usual


# ---- failures


def test_failures_are_withdrawn_by_row_and_reason(store: FeatureStore) -> None:
    rows = rows_of(["1", "bad-1", "odd-2", "bad-3", "4", "bad-5"])
    key = run_stage(store, Squares(), rows, InProcess()).key
    before = receipt_of(store, key)
    assert store.withdraw_failures(key, {0, 2}, "BAD") == 0
    assert receipt_of(store, key) == before
    assert store.withdraw_failures(key, {0, 1, 2, 5}, "IS BAD") == 2
    assert set(store.failures(key)) == {2, 3}
    assert {row.index for task in plan_stage(store, Squares(), rows).tasks for row in task.rows} == {1, 5}
    assert receipt_of(store, key).entry(1) == Entry()
    assert receipt_of(store, key).entry(3) == before.entry(3)
    assert store.withdraw_failures(key) == 2
    assert store.failures(key) == {}


# ---- power cuts


def test_all_that_a_receipt_vouches_for_is_on_the_disk_before_it(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was synced keeps the names it held then: every name on the way to a shard's file is among them."""
    kept: defaultdict[str, set[str]] = defaultdict(set)
    fsync, written = os.fsync, 0

    def noted(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        kept[str(path)] |= {entry.name for entry in path.iterdir()} if path.is_dir() else {"synced"}

    def lost(path: Path) -> list[str]:
        """Folders above a file that a power cut would take away with all that is in them."""
        above = [path, *path.parents][: len(path.relative_to(store.path).parts)]
        return [str(place) for place in above if place.name not in kept[str(place.parent)]]

    def signed(self: Receipt, path: Path) -> None:
        nonlocal written
        lane, number = path.stem.split("-")
        for column in ("square", "word"):
            shard = store.path / "points" / path.parent.name / column / "c" / lane / str(int(number))
            for file in [shard] if shard.is_file() else [file for file in shard.rglob("*") if file.is_file()]:
                written += 1
                assert lost(file) == []
                assert "synced" in kept[str(file)]
        write(self, path)
        assert lost(path) == []

    write = Receipt.write
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Receipt, "write", signed)
    rows = [str(number) for number in range(12)]
    run_stage(store, Squares(draws=2), rows_of(rows[:6]), InProcess())
    run_stage(store, Squares(draws=2), rows_of(rows), InProcess())
    run_stage(store, Squares(draws=2, scale=2), rows_of(rows), InProcess())
    assert written == 2 * 2 * (2 + 2 + 3)  # columns, draws, shards a run


def test_folders_are_made_where_they_are_missing(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    write_atomically(tmp_path / "a" / "c" / "file", "text")
    assert (tmp_path / "a" / "c" / "file").read_text() == "text"
    for name in ("file", "file/d"):
        with pytest.raises(FileExistsError):
            make_directory(tmp_path / "a" / "c" / name)
