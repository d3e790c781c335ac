"""What nobody asks for goes, what somebody may ask for stays, and a collection cut off leaves no half of a key."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping import gc
from recon.pipeline.keeping.gc import DAY, GcItem, GcPlan, collect, plan_gc
from recon.pipeline.store import FeatureStore, twins
from tests.toy_stage import Toy, files_of, fill, register

pytestmark = pytest.mark.slow  # whole stores are made

NOW = 2_000_000_000.0
GRACE = 7.0


def chain(number: int) -> tuple[Toy, Toy, Toy]:
    """Targets of views of meshes, each naming the one before."""
    meshes = Toy("meshes", (("origin", number),))
    views = Toy("views", (("meshes", digest_of(meshes.recipe)),))
    return meshes, views, Toy("targets", (("views", digest_of(views.recipe)),), draws=1)


def age(path: Path, days: float) -> None:
    """Set when everything below a folder was written and read."""
    for entry in (path, *path.rglob("*")):
        os.utime(entry, (NOW - days * DAY, NOW - days * DAY), follow_symlinks=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chains; the ref names the first one's targets alone. All is 30 days old. For reading only."""
    store = register(tmp_path_factory.mktemp("made") / "s.zarr", ["a", "b"])
    for number in (0, 1):
        for stage in chain(number):
            fill(store, stage, ref="")
    fill(store, Toy("text"), ["a chair"], ref="")
    store.write_ref("toy", "targets", digest_of(chain(0)[2].recipe), "t")
    age(store.path, 30)
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> FeatureStore:
    shutil.copytree(made, tmp_path / "s.zarr")
    return FeatureStore.open(tmp_path / "s.zarr", write=True)


def paths(plan: GcPlan) -> set[str]:
    return {item.path for item in plan.items}


def path_of(stage: Toy) -> str:
    return f"{stage.kind}/{digest_of(stage.recipe)}"


def test_a_ref_keeps_what_its_keys_were_made_from(store: FeatureStore) -> None:
    before = files_of(store.path)
    doomed = [digest_of(stage.recipe) for stage in (*chain(1), Toy("text"))]
    plan = plan_gc(store, GRACE, NOW)
    assert paths(plan) == {path_of(stage) for stage in (*chain(1), Toy("text"))}
    assert (plan.young, plan.skipped) == ((), ())
    assert files_of(store.path) == before  # dry
    dropped = collect(store, plan)
    assert {item.path for item in dropped} == paths(plan)
    assert files_of(store.path) == {p: data for p, data in before.items() if not any(key in p for key in doomed)}
    assert twins.check(store.path) == []
    assert len(store.registry.uid) == 2
    assert [store.ok(key, 2).all() for kind, key in store.list_keys()] == [True] * 3
    assert plan_gc(store, GRACE, NOW).items == ()


def test_bytes_are_those_that_come_free(store: FeatureStore) -> None:
    def size() -> int:
        return sum(len(data) for path, data in files_of(store.path).items() if not path.startswith("twins/"))

    plan, before = plan_gc(store, GRACE, NOW), size()
    collect(store, plan)
    assert plan.bytes == sum(item.bytes for item in plan.items) == before - size()


@given(ages=st.lists(st.sampled_from([1.0, 6.9, 7.1, 30.0]), min_size=3, max_size=3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_young_keys_stay_with_what_they_need(store: FeatureStore, ages: list[float]) -> None:
    """The age is that of the newest receipt; a young key's upstream stays however old it is."""
    for stage, days in zip(chain(1), ages, strict=True):
        age(store.path / "receipts" / digest_of(stage.recipe), days)
    plan = plan_gc(store, GRACE, NOW)
    young = [days < GRACE for days in ages]
    stays = [any(young[i:]) for i in range(3)]
    assert {item.path for item in plan.young} == {path_of(s) for s, y in zip(chain(1), young, strict=True) if y}
    gone = {path_of(s) for s, y in zip(chain(1), stays, strict=True) if not y}
    assert paths(plan) - {path_of(Toy("text"))} == gone


def test_a_key_without_receipts_is_as_old_as_its_group(store: FeatureStore) -> None:
    key = digest_of(Toy("text").recipe)
    shutil.rmtree(store.path / "receipts" / key)
    assert f"text/{key}" in paths(plan_gc(store, GRACE, NOW))
    os.utime(store.path / "text" / key / "zarr.json", (NOW, NOW))
    assert f"text/{key}" in {item.path for item in plan_gc(store, GRACE, NOW).young}


def test_what_changes_after_the_plan_is_kept(store: FeatureStore) -> None:
    plan = plan_gc(store, GRACE, NOW)
    store.write_ref("toy", "views", digest_of(chain(1)[1].recipe))  # needs meshes too
    age(store.path / "receipts" / digest_of(chain(1)[2].recipe), 0)
    assert [item.path for item in collect(store, plan)] == [path_of(Toy("text"))]
    assert all(store.ok(digest_of(stage.recipe), 2).all() for stage in chain(1))


@pytest.mark.parametrize("cut", ["receipts", "twins", "folder", "deleting"])
def test_a_collection_cut_off_leaves_no_half_of_a_key(
    store: FeatureStore, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step in turn: the key is not there, or counts as not done; both the next run and the next gc cope."""
    plan = plan_gc(store, GRACE, NOW)
    item = next(item for item in plan.items if item.kind == "views")
    digest = store.digest(item.key)

    rename, rmtree = gc._rename, shutil.rmtree

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    def delete(path: Path) -> None:
        if twins.FOLDER in path.parts:
            return rmtree(path)
        if cut == "deleting":
            next(entry for entry in sorted(path.rglob("*")) if entry.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if cut == "receipts":
            patch.setattr(twins, "forget", killed)
        elif cut == "twins":
            patch.setattr(gc, "_rename", lambda s, p: rename(s, p) if p.startswith("receipts") else killed())
        else:
            patch.setattr(shutil, "rmtree", delete)
        with pytest.raises(KeyboardInterrupt):
            collect(store, GcPlan((item,), (), (), item.bytes))
    assert not store.ok(item.key, 2).any()
    twins.settle(store.path)  # as every writing run does first
    assert not store.ok(item.key, 2).any()
    again = plan_gc(store, GRACE, NOW)
    there = (store.path / item.path / "zarr.json").is_file()
    assert (item.path in paths(again) | {young.path for young in again.young}) == there
    assert sum(path.startswith(".gc-") for path in paths(again)) >= 1
    for _ in range(2):  # computed anew it is whole; and what remained goes without it
        fill(store, chain(1)[1], ref="")
        assert store.digest(item.key) == digest
        collect(store, plan_gc(store, GRACE, NOW))
    assert not list(store.path.glob(".gc-*"))
    assert twins.check(store.path) == []


def test_caches_go_when_not_read(store: FeatureStore) -> None:
    for name, days in (("old", 30.0), ("read", 30.0), ("new", 1.0)):
        folder = store.path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "xyz.npy").write_bytes(b"x" * 1000)
        age(folder, days)
    os.utime(store.path / "cache/read/xyz.npy", (NOW - DAY, NOW - 30 * DAY))
    (store.path / "cache/.lock").touch()
    plan = plan_gc(store, GRACE, NOW)
    caches = [item for item in plan.items if item.kind == "cache"]
    assert [(item.path, item.bytes) for item in caches] == [("cache/old", 1000)]
    assert {item.path for item in plan.young} == {"cache/new", "cache/read"}
    collect(store, plan)
    assert sorted(p.name for p in (store.path / "cache").iterdir()) == [".lock", "new", "read"]


def test_remains_of_killed_runs_go_after_a_day(store: FeatureStore) -> None:
    key = digest_of(chain(0)[1].recipe)
    files = [
        "refs/.toy.json.123.tmp",
        f"receipts/{key}/.0-000000.json.7.tmp",
        f"views/{key}/rgb/c/0/0/0/0/0.0123abcd.partial",
        "cache/.writing-x/xyz.npy",
        "twins/refs/.toy.json.9.tmp",
        "s.partial-9/zarr.json",
    ]
    for days in (0.5, 1.5):
        for name in files:
            path = store.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half")
            age(path.parent if "writing" in name or "partial-" in name else path, days)
        found = {item.path: item.kind for item in plan_gc(store, GRACE, NOW).items if item.kind == "temporary"}
        expected = {*files[:3], "cache/.writing-x", files[4], "s.partial-9"}
        assert found == (dict.fromkeys(expected, "temporary") if days > 1 else {})
    collect(store, plan_gc(store, GRACE, NOW))
    assert not any((store.path / name).exists() for name in files)
    assert store.ok(key, 2).all()


def test_orphans_and_notes_of_workers_go_when_old(store: FeatureStore) -> None:
    shutil.copytree(store.path / "receipts" / digest_of(Toy("text").recipe), store.path / "receipts/0123456789abcdef")
    age(store.path / "receipts/0123456789abcdef", 30)
    for name, days in (("old", 8.0), ("new", 1.0)):
        (store.path / "running" / name).mkdir(parents=True)
        (store.path / "running" / name / "note").write_text("x")
        age(store.path / "running" / name, days)
    plan = plan_gc(store, GRACE, NOW)
    assert {"receipts/0123456789abcdef", "running/old"} <= paths(plan)
    assert {item.path for item in plan.young} == {"running/new"}
    (store.path / "views/0123456789abcdef").mkdir()  # a damaged key may yet be mended
    assert "receipts/0123456789abcdef" not in paths(plan_gc(store, GRACE, NOW))


def test_links_are_neither_followed_nor_dropped(store: FeatureStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    key = digest_of(Toy("text").recipe)
    shutil.move(store.path / "text", outside)
    (store.path / "text").symlink_to(outside)
    (store.path / "cache").mkdir()
    (store.path / "cache/link").symlink_to(outside)
    (store.path / "cache/.writing-link").symlink_to(outside)
    (store.path / ".gc-link").symlink_to(outside)
    views = store.path / path_of(chain(1)[1])
    (views / "link").symlink_to(outside)
    age(store.path, 30)
    before = files_of(outside)
    plan = plan_gc(store, GRACE, NOW)
    assert paths(plan) == {path_of(stage) for stage in chain(1)}
    assert len(plan.skipped) == 1 and f"text/{key}" in plan.skipped[0]
    collect(store, plan)
    assert files_of(outside) == before
    assert not views.exists()


@pytest.mark.parametrize("path", ["../outside", "/etc", "", ".", "text/../../outside", "link"])
def test_a_path_that_leaves_the_store_is_refused(store: FeatureStore, tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").mkdir()
    (store.path / "link").symlink_to(tmp_path / "outside")
    before = files_of(tmp_path)
    sound = plan_gc(store, GRACE, NOW)
    bad = GcItem(path, "cache", "", 0, "", 0.0)
    with pytest.raises(UserError, match="outside of"):
        collect(store, GcPlan((*sound.items, bad), (), (), 0))
    assert files_of(tmp_path) == before


def test_nothing_goes_when_what_is_reached_cannot_be_told(store: FeatureStore) -> None:
    for name in ("refs/toy.json", path_of(chain(0)[2]) + "/zarr.json"):
        path = store.path / name
        sound = path.read_bytes()
        path.write_bytes(sound[:30])
        before = files_of(store.path)
        with pytest.raises(UserError, match=r"\.json: ") as error:
            plan_gc(store, GRACE, NOW)
        assert "\n" not in str(error.value)
        assert files_of(store.path) == before
        path.write_bytes(sound)
    for days in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="grace period"):
            plan_gc(store, days, NOW)
