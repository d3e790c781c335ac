"""A store checked against itself: flipped bits are named, mending leads to a sound store, rows compute the same."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.recompute import recompute
from recon.pipeline.keeping.mend import mend
from recon.pipeline.keeping.verify import Report, verify, verify_path
from recon.pipeline.store import twins
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.lock import hold
from recon.pipeline.store.receipts import Receipt


@dataclass(frozen=True)
class Flip:
    """One flipped bit and what `verify --full` said of it."""

    path: str
    bit: int
    damages: tuple[str, ...]
    named: bool


def flip_and_check(store: Path, rng: np.random.Generator) -> Flip:
    """Flip a random bit of a random file (each equally likely), verify, put the file back; the store must be sound."""
    files = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file() and p.stat().st_size)
    name = files[int(rng.integers(len(files)))]
    sound = (store / name).read_bytes()
    bit = int(rng.integers(8 * len(sound)))
    data = bytearray(sound)
    data[bit // 8] ^= 1 << bit % 8
    (store / name).write_bytes(data)
    try:
        damages = tuple(damage.path for damage in verify_path(store, full=True).damages)
    finally:
        (store / name).write_bytes(sound)
    blamed = any(name == path or name.startswith(f"{path}/") for path in damages)
    return Flip(name, bit, damages, blamed and len(damages) == 1)


@pytest.fixture
def store(small_store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "s.zarr"
    shutil.copytree(small_store, path)
    twins.save(path, twins.sources(path))
    return path


def only(folder: Path) -> Path:
    """The one folder in a folder."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def add_cache(store: Path, name: str = "0123456789abcdef") -> Path:
    """A copy of rows as the trainer keeps it."""
    folder = store / "cache" / name
    folder.mkdir(parents=True)
    np.save(folder / "xyz.npy", np.arange(12.0))
    np.save(folder / "image.npy", np.arange(3.0))
    sums = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir())}
    (folder / "sums.json").write_text(json.dumps(sums))
    return folder


def listing(store: Path) -> Iterator[tuple[str, bytes]]:
    return ((str(p), p.read_bytes()) for p in sorted(store.rglob("*")) if p.is_file())


def paths(report: Report) -> list[str]:
    return [damage.path for damage in report.damages]


def test_a_finished_store_is_sound_and_left_as_it_is(store: Path) -> None:
    shutil.rmtree(store / "cache", ignore_errors=True)  # other tests may have trained on the store this is a copy of
    before = list(listing(store))
    told: list[tuple[int, int]] = []
    quick = verify_path(store, full=False)
    full = verify_path(store, True, lambda done, total: told.append((done, total)))
    assert (quick.damages, quick.notes, full.damages, full.notes) == ((), (), (), ())
    assert (full.keys, full.shards) == (quick.keys, quick.shards) == (6, 7)
    opened = FeatureStore.open(store)
    prompts = len(opened.prompts(only(store / "text").name))
    assert full.rows == 12 * 6 + prompts
    assert quick.bytes == 0
    shard_files = [p for p in store.glob("*/*/*/c/**/*") if p.is_file() and "/prompt/" not in str(p)]
    assert full.bytes == sum(p.stat().st_size for p in shard_files if "twins" not in p.parts)
    assert told == [(n, 7) for n in range(1, 8)]
    assert list(listing(store)) == before


@pytest.mark.slow
def test_any_flipped_bit_is_named(store: Path) -> None:
    add_cache(store)
    assert verify_path(store, full=True).damages == ()
    rng = np.random.default_rng(20)
    flips = [flip_and_check(store, rng) for _ in range(40)]
    assert len({flip.path for flip in flips}) > 20
    assert [flip for flip in flips if not flip.named] == []
    assert verify_path(store, full=True).damages == ()


@pytest.mark.parametrize(
    "kind",
    ["targets", *(pytest.param(k, marks=pytest.mark.slow) for k in ("meshes", "points", "views", "captions", "text"))],
)
def test_a_flip_in_a_shard_names_key_draw_and_rows_and_mending_withdraws_it(store: Path, kind: str) -> None:
    key = only(store / kind).name
    names = {column.name for column in FeatureStore.open(store).columns(kind, key)}
    shards = sorted(
        p for p in (store / kind).glob("*/*/c/**/*") if p.is_file() and p.parts[len(store.parts) + 2] in names
    )
    data = bytearray(shards[-1].read_bytes())
    data[len(data) // 2] ^= 16
    shards[-1].write_bytes(data)
    assert verify_path(store, full=False).damages == ()
    (damage,) = verify_path(store, full=True).damages
    lane = 1 if kind == "targets" else 0
    assert (damage.path, damage.key) == (str(shards[-1].relative_to(store)), key)
    assert (damage.lane, damage.shard) == (lane, 0)
    receipt = FeatureStore.open(store).receipt_path(key, lane, 0)
    signed = Receipt.read(receipt)
    assert signed is not None
    assert damage.rows == signed.rows
    (line,) = mend(store, [damage])
    assert line.startswith(f"receipts/{key}/{lane}-000000.json: withdrawn")
    assert not receipt.exists()
    assert not shards[-1].exists()
    assert verify_path(store, full=True).damages == ()


def test_rows_that_decode_but_are_not_what_was_computed_are_found(store: Path) -> None:
    opened = FeatureStore.open(store, write=True)
    key = only(store / "points").name
    xyz: Any = opened.kind_group("points", key)["xyz"]
    xyz[3, 0, 0] = xyz[3, 0, 0] + 1
    (damage,) = verify(opened, full=True).damages
    assert damage.path == f"points/{key}"
    assert "1 rows of points shard 0 are not what their receipt says: 3" in damage.what


@pytest.mark.parametrize("how", ["missing", "empty", "short"])
def test_the_quick_check_sees_a_lost_or_shortened_file(store: Path, how: str) -> None:
    file = next(p for p in (store / "targets").glob("*/feat/c/**/*") if p.is_file())
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(b"" if how == "empty" else content[:-9])
    for full in (False, True):
        assert paths(verify_path(store, full)) == [str(file.relative_to(store))]


def test_receipts_of_another_shard_or_shape_are_damaged(store: Path) -> None:
    key = only(store / "points").name
    path = store / "receipts" / key / "0-000000.json"
    sound = Receipt.read(path)
    assert sound is not None
    wrong = [
        (path.with_name("0-000001.json"), sound),
        (path.with_name("1-000000.json"), sound),
        (path, replace(sound, rows=(0, 40))),
        (path, replace(sound, rows=(0, 11))),
        (path, replace(sound, digests=sound.digests[:-1])),
        (path, replace(sound, ok=(False, *sound.ok[1:]))),
    ]
    for place, receipt in wrong:
        receipt.write(place)
        (damage,) = verify_path(store, full=False).damages
        assert damage.path == str(place.relative_to(store))
        place.unlink()
        sound.write(path)
    assert verify_path(store, full=True).damages == ()


def test_what_is_unfinished_or_left_over_is_a_note(store: Path) -> None:
    key, text = only(store / "points").name, only(store / "text").name
    (store / "receipts" / key / "0-000000.json").unlink()
    (store / "receipts" / text / ".0-000000.json.17.tmp").write_text("{")
    (store / "receipts/0000000000000000").mkdir()
    (store / "thesis.tex").write_text("x")
    with (store / "log.jsonl").open("a") as file:
        file.write('{"stage":"vie')
    report = verify_path(store, full=True)
    assert report.damages == ()
    notes = "\n".join(report.notes)
    assert f"points/{key}: 1 shards without a receipt" in notes
    assert f"receipts/{text}: 1 files that are no receipts" in notes
    assert "receipts/0000000000000000: of a key that is gone" in notes
    assert "thesis.tex: not a part of the store" in notes
    assert "log.jsonl: the last line was cut off" in notes
    assert len(report.notes) == 5


def test_a_key_whose_making_was_cut_off_is_a_note(store: Path) -> None:
    recipe = {"stage": "points", "version": 0}
    opened = FeatureStore.open(store, write=True)
    columns = opened.columns("points", only(store / "points").name)
    opened.require_key("points", digest_of(recipe), recipe, columns)
    report = verify_path(store, full=True)
    assert report.damages == ()
    assert "cut off" in report.notes[0]


def test_a_key_under_another_recipe_is_damaged(store: Path) -> None:
    key = only(store / "points").name
    file = store / "points" / key / "zarr.json"
    file.write_text(file.read_text().replace('"num_points": 256', '"num_points": 257'))
    twins.save(store, [file.relative_to(store)])
    (damage,) = verify_path(store, full=False).damages
    assert (damage.path, damage.key) == (f"points/{key}/zarr.json", key)
    assert "recipe" in damage.what
    assert "left as it is" in mend(store, [damage])[0]


def test_a_ref_to_a_key_that_is_not_there_is_damaged(store: Path) -> None:
    key = only(store / "views").name
    twins.forget(store, f"views/{key}")
    shutil.rmtree(store / "views" / key)
    (damage,) = verify_path(store, full=False).damages
    assert damage.path == "refs/small.json"
    assert f"views/{key}" in damage.what


def test_a_store_that_cannot_be_opened_is_checked_and_mended(store: Path) -> None:
    before = list(listing(store))
    (store / "zarr.json").write_text("{")
    report = verify_path(store, full=True)
    assert paths(report) == ["zarr.json"]
    assert mend(store, report.damages) == ["zarr.json: restored from its second copy"]
    assert list(listing(store)) == before
    with pytest.raises(UserError, match="no feature store"):
        verify_path(store / "none", full=False)
    shutil.rmtree(store / "twins")
    (store / "zarr.json").write_text("{")
    with pytest.raises(UserError):
        verify_path(store, full=False)


def test_damaged_metadata_of_one_key_leaves_the_others_checked(store: Path) -> None:
    file = only(store / "points") / "xyz" / "zarr.json"
    file.write_text(file.read_text().replace("float32", "floaty"))
    shard = next(p for p in (store / "targets").glob("*/feat/c/**/*") if p.is_file())
    shard.unlink()
    report = verify_path(store, full=True)
    assert paths(report) == [str(file.relative_to(store)), str(shard.relative_to(store))]
    mend(store, report.damages)
    assert verify_path(store, full=True).damages == ()


def test_the_log_and_copies_are_checked_and_mended(store: Path) -> None:
    lines = (store / "log.jsonl").read_text().splitlines()
    changed = lines[1].replace('"workers":', '"workerz":')
    (store / "log.jsonl").write_text("\n".join([lines[0], changed, *lines[2:], '{"a":', "", '{"b":1}']) + "\n")
    folder, other = add_cache(store), add_cache(store, "fedcba9876543210")
    np.save(folder / "xyz.npy", np.arange(1.0, 13.0))
    report = verify_path(store, full=True)
    assert paths(report) == ["log.jsonl", "cache/0123456789abcdef"]
    last = len(lines)
    assert report.damages[0].what == f"damaged lines: 2, {last + 1}, {last + 2}, {last + 3}"
    assert len(mend(store, report.damages)) == 2
    assert (store / "log.jsonl").read_text().splitlines() == [lines[0], *lines[2:]]
    assert not folder.exists()
    assert other.exists()
    assert verify_path(store, full=True).damages == ()


def test_a_log_whose_last_newline_flipped_is_damaged_not_cut_off(store: Path) -> None:
    text = (store / "log.jsonl").read_bytes()
    for end in (b"\x0b", b"\x8a", b"*", b"J"):
        (store / "log.jsonl").write_bytes(text[:-1] + end)
        report = verify_path(store, full=False)
        assert paths(report) == ["log.jsonl"]
    (store / "log.jsonl").write_bytes(text[:-1])
    assert verify_path(store, full=False).damages == ()


def test_a_shard_that_is_written_meanwhile_is_looked_at_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces a shard and its receipt between verify's look at the one and at the other."""
    from recon.pipeline.keeping import verify as module

    opened = FeatureStore.open(store, write=True)
    key = only(store / "points").name
    path = opened.receipt_path(key, 0, 0)
    old = Receipt.read(path)
    assert old is not None
    xyz: Any = opened.kind_group("points", key)["xyz"]
    before = np.asarray(xyz[:])
    compare, calls = module.compare_rows, []

    def meddle(*arguments: Any) -> Any:
        calls.append(arguments)
        mine = arguments[1].key == key
        if mine and len(calls) < 5:
            xyz[3, 0, 0] = xyz[3, 0, 0] + 1
            replace(old, seconds=old.seconds + len(calls)).write(path)
        elif mine:
            xyz[:] = before
            replace(old, seconds=99.0).write(path)
        return compare(*arguments)

    monkeypatch.setattr(module, "compare_rows", meddle)
    assert verify(opened, full=True).damages == ()
    assert len(calls) > 7
    monkeypatch.setattr(module, "compare_rows", lambda *arguments: path.unlink(missing_ok=True) or [("x", "y")])
    assert key not in {damage.key for damage in verify(opened, full=True).damages}


def test_a_living_writer_gets_time_to_write_the_second_copy(store: Path) -> None:
    """The original of a ref is there, its twin comes half a second later; without a writer that is damage at once."""
    with hold(store, "views"):
        owner = json.loads((store / "lock.json").read_text())
    ref = store / "refs/small.json"
    ref.write_text(ref.read_text() + "\n")
    assert paths(verify_path(store, full=False)) == ["refs/small.json"]
    (store / "lock.json").write_text(json.dumps(owner | {"host": "another"}))
    later = threading.Timer(0.5, twins.save, (store, ["refs/small.json"]))
    later.start()
    assert verify_path(store, full=False).damages == ()
    later.join()


@pytest.mark.slow
def test_recomputed_rows_are_the_same_and_a_changed_one_is_not(store: Path, small_manifest: Path) -> None:
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow

    opened = FeatureStore.open(store, write=True)
    stages = list(Flow(load_manifest(small_manifest), None, opened).stages())
    for part in stages:
        name, stage, rows = part.name, part.stage, part.rows
        found = recompute(opened, stage, rows, 3, seed=1)
        assert len({(one.lane, one.row) for one in found}) == 3
        assert {one.column for one in found} == {column.name for column in stage.columns}
        if stage.kind not in ("targets", "text"):  # a batch's size may move a teacher's last bits
            assert all(one.equal and one.max_error == 0 for one in found), name
        assert all(one.cosine is None or one.cosine > 0.9999 for one in found), name
        assert found == recompute(opened, stage, rows, 3, seed=1)
    points, rows = next((part.stage, part.rows) for part in stages if part.stage.kind == "points")
    xyz: Any = opened.kind_group("points", digest_of(points.recipe))["xyz"]
    xyz[:, 0, 0] = np.asarray(xyz[:, 0, 0]) + 0.5
    changed = [one for one in recompute(opened, points, rows, 2, seed=1) if one.column == "xyz"]
    assert all(not one.equal and one.max_error == pytest.approx(0.5) for one in changed)
    assert len(recompute(opened, points, rows, 1000, seed=1)) == len(points.columns) * len(rows)
    stale = [replace(row, inputs="other") for row in rows]
    assert recompute(opened, points, stale, 5, seed=1) == []


def test_verify_reads_a_store_it_may_not_write_to(store: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes where it likes")
    store.chmod(0o500)
    try:
        assert verify_path(store, full=True).damages == ()
    finally:
        store.chmod(0o700)
