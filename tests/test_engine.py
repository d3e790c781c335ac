"""The shard engine and the store on a stage small enough to reason about: resume, growth, change, failure, death."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.digests import canonical_json, digest_of, row_digest, row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution import planning, work
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess, Processes
from recon.pipeline.execution.planning import plan_stage, rows_a_shard
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.flow.manifest import load_manifest, origin_of
from recon.pipeline.rendering.render import RenderConfig
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store import FeatureStore, shards
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.records import Column


@dataclass(frozen=True)
class Squares:
    """Rows named "<number>": their square, and a text. "bad" and "odd" rows raise."""

    scale: int = 1
    draws: int = 0
    contents: bool = False
    kind = "points"
    gpu = False
    attributes: ClassVar[dict[str, Any]] = {}
    shard_rows = 4
    columns = (Column("square", (3,), "int64"), Column("word", (), "str"))

    @property
    def lanes(self) -> int:
        return self.draws

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "squares", "scale": self.scale}

    def by_content(self, lane: int) -> bool:
        return self.contents

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, str]:
            if row.name.startswith("bad"):
                raise UserError(f"{row.name} is bad")
            if row.name.startswith("odd"):
                raise RuntimeError("a library's own words")
            return np.full(3, self.scale * int(row.name) ** 2 + lane), f"word {row.name}"

        return each_row(rows, [c.name for c in self.columns], one)


@dataclass(frozen=True)
class Batched(Squares):
    """The same in one go: one odd row, or a broken machine, fails them all."""

    broken: bool = False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        if self.broken:
            raise RuntimeError("nothing works")
        if any(row.name == "odd" for row in rows):
            raise RuntimeError(f"odd among {len(rows)} rows")
        return super().compute(store, key, rows, lane)


def rows_of(names: Sequence[str], version: str = "v1") -> list[Row]:
    return [Row(i, name, digest_of([name, version])) for i, name in enumerate(names)]


def numbers(store: FeatureStore, key: str) -> list[int]:
    return [int(v) for v in store.kind_group("points", key)["square"][:, 0]]  # type: ignore[index]


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as executor:
        yield executor


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore.create(tmp_path / "s.zarr")
    names = [str(i) for i in range(20)]
    columns = ("uid", "dataset", "category", "split", "source", "fingerprint")
    store.append_registry(dict.fromkeys(columns, names))
    return store


def test_a_stage_is_computed_once(store: FeatureStore) -> None:
    rows = rows_of([str(i) for i in range(10)])
    first = run_stage(store, Squares(), rows, InProcess())
    assert (first.computed, first.total) == (10, 10)
    assert numbers(store, first.key) == [i * i for i in range(10)]
    files = {p: p.stat().st_mtime_ns for p in store.path.rglob("*") if p.is_file()}
    assert run_stage(store, Squares(), rows, InProcess()).computed == 0
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*") if p.is_file()} == files


def test_growth_computes_only_the_new_rows(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = run_stage(store, Squares(), rows_of([str(i) for i in range(6)]), InProcess()).key
    before = Receipt.read(store.receipt_path(key, 0, 1))
    asked: list[str] = []
    compute = Squares.compute

    def spy(self: Squares, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        asked.extend(row.name for row in rows)
        return compute(self, store, key, rows, lane)

    monkeypatch.setattr(Squares, "compute", spy)
    run_stage(store, Squares(), rows_of([str(i) for i in range(11)]), InProcess())
    assert asked == ["6", "7", "8", "9", "10"]
    assert numbers(store, key) == [i * i for i in range(11)]
    after = Receipt.read(store.receipt_path(key, 0, 1))
    assert before is not None and after is not None
    assert after.digests[:2] == before.digests  # the shard was rewritten, its old rows were not recomputed


def test_a_smaller_run_forgets_nothing(store: FeatureStore) -> None:
    key = run_stage(store, Squares(), rows_of([str(i) for i in range(10)]), InProcess()).key
    assert run_stage(store, Squares(), rows_of([str(i) for i in range(3)]), InProcess()).computed == 0
    assert store.ok(key, 10).all()


def test_a_changed_input_is_stale_and_computed_again(store: FeatureStore) -> None:
    rows = rows_of([str(i) for i in range(10)])
    key = run_stage(store, Squares(), rows, InProcess()).key
    rows[5] = Row(5, "7", digest_of("another mesh"))
    plan = plan_stage(store, Squares(), rows)
    assert (plan.todo, plan.stale, [t.shard.number for t in plan.tasks]) == (1, 1, [1])
    run_stage(store, Squares(), rows, InProcess())
    assert numbers(store, key)[5] == 49


def test_another_recipe_is_another_key(store: FeatureStore) -> None:
    rows = rows_of(["1", "2"])
    one, two = (run_stage(store, Squares(scale=s), rows, InProcess()).key for s in (1, 2))
    assert one != two
    assert numbers(store, one) == [1, 4]
    assert numbers(store, two) == [2, 8]


def test_failed_rows_are_set_aside_with_their_reason(store: FeatureStore) -> None:
    rows = rows_of(["0", "bad-1", "2", "odd-3", "4"])
    result = run_stage(store, Squares(), rows, InProcess())
    assert result.failed["bad-1"].reason == "bad-1 is bad"
    assert result.failed["bad-1"].traceback == ""
    assert result.failed["odd-3"].reason == "RuntimeError: a library's own words"
    assert "raise RuntimeError" in result.failed["odd-3"].traceback
    assert store.ok(result.key, 5).tolist() == [True, False, True, False, True]
    again = run_stage(store, Squares(), rows, InProcess())
    assert again.computed == 0
    assert set(again.failed) == {"bad-1", "odd-3"}  # still said on every later run


def test_equal_inputs_are_computed_once_and_copied(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    compute = Squares.compute

    def spy(self: Squares, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        asked.extend(row.name for row in rows)
        return compute(self, store, key, rows, lane)

    monkeypatch.setattr(Squares, "compute", spy)
    stage = Squares(contents=True)
    names = ["3", "4", "3", "bad-5", "5", "4", "6", "bad-5", "4", "7", "3"]
    rows = [Row(i, name, digest_of(name)) for i, name in enumerate(names)]
    key = run_stage(store, stage, rows[:8], InProcess()).key
    assert asked == ["3", "4", "bad-5", "5", "6", "bad-5"]  # a row whose twin failed fails for itself
    result = run_stage(store, stage, rows, InProcess())
    assert asked[6:] == ["7"]  # the others have a twin from the run before
    assert numbers(store, key) == [9, 16, 9, 0, 25, 16, 36, 0, 16, 49, 9]
    assert set(result.failed) == {"bad-5"}
    assert store.ok(key, 11).tolist() == [name != "bad-5" for name in names]
    assert run_stage(store, stage, rows, InProcess()).computed == 0


def test_a_twin_that_changes_in_the_same_run_is_not_copied(store: FeatureStore) -> None:
    """Two files swapped: each row's new inputs are those the other was done from, and is about to lose."""
    stage = Squares(contents=True)
    key = run_stage(store, stage, [Row(0, "3", "three"), Row(1, "4", "four")], InProcess()).key
    run_stage(store, stage, [Row(0, "4", "four"), Row(1, "3", "three")], InProcess())
    assert numbers(store, key) == [16, 9]
    run_stage(store, stage, [Row(0, "5", "five"), Row(1, "3", "three"), Row(2, "4", "four")], InProcess())
    assert numbers(store, key) == [25, 9, 16]


def test_a_bad_row_is_found_in_a_batch_that_fails(store: FeatureStore) -> None:
    result = run_stage(store, Batched(), rows_of(["1", "2", "odd", "4", "5"]), InProcess())
    assert set(result.failed) == {"odd"}
    assert result.failed["odd"].reason == "RuntimeError: odd among 1 rows"
    assert numbers(store, result.key) == [1, 4, 0, 16, 25]


def test_an_error_that_all_rows_meet_stops_the_run(store: FeatureStore) -> None:
    for names, told in ("123", "failed 3 times: .*nothing works"), ("1234", "all 4 rows fail alike: .*nothing works"):
        with pytest.raises(UserError, match=told):
            run_stage(store, Batched(broken=True), rows_of(names), InProcess())
    assert not store.ok(digest_of(Batched(broken=True).recipe), 3).any()


def test_rows_that_wait_are_done_when_they_become_ready(store: FeatureStore) -> None:
    rows = [Row(0, "3", "", ready=False), Row(1, "4", digest_of("4"))]
    key = run_stage(store, Squares(), rows, InProcess()).key
    assert store.ok(key, 2).tolist() == [False, True]
    assert store.failures(key) == {}
    assert run_stage(store, Squares(), rows, InProcess()).computed == 0
    rows[0] = Row(0, "3", digest_of("3"))
    assert plan_stage(store, Squares(), rows).stale == 0  # it was never done, so it is missing
    assert run_stage(store, Squares(), rows, InProcess()).computed == 1
    assert numbers(store, key) == [9, 16]


def test_more_draws_leave_the_old_ones(store: FeatureStore) -> None:
    rows = rows_of([str(i) for i in range(6)])
    key = run_stage(store, Squares(draws=2), rows, InProcess()).key
    old = {p: p.stat().st_mtime_ns for p in store.path.rglob("*") if p.is_file() and "square/c" in str(p)}
    assert run_stage(store, Squares(draws=3), rows, InProcess()).computed == 6
    square = store.kind_group("points", key)["square"]
    assert [int(v) for v in square[:, 2, 0]] == [4, 5, 6]  # type: ignore[index]
    assert {p: p.stat().st_mtime_ns for p in old} == old


def test_a_shard_without_its_receipt_does_not_count(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> Receipt:
        raise KeyboardInterrupt

    rows = rows_of([str(i) for i in range(4)])
    with monkeypatch.context() as patch:
        patch.setattr(work, "_sign", stop)  # the data is written, the receipt is not
        with pytest.raises(KeyboardInterrupt):
            run_stage(store, Squares(), rows, InProcess())
    key = digest_of(Squares().recipe)
    assert not store.ok(key, 4).any()
    assert run_stage(store, Squares(), rows, InProcess()).computed == 4
    assert store.ok(key, 4).all()


def test_a_rewrite_cut_short_leaves_no_old_receipt_for_new_data(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of([str(i) for i in range(4)])
    key = run_stage(store, Squares(), rows, InProcess()).key
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_flush", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_stage(store, Squares(), rows_of([str(i) for i in range(4)], "v2"), InProcess())
    assert not store.ok(key, 4).any()


@pytest.mark.slow
def test_digests_do_not_depend_on_workers(tmp_path: Path, two: Processes) -> None:
    digests = set()
    for executor in (InProcess(), two):
        store = FeatureStore.create(tmp_path / f"{executor.workers}.zarr")
        names = [str(i) for i in range(18)]
        store.append_registry(dict.fromkeys(("uid", "dataset", "category", "split", "source", "fingerprint"), names))
        key = run_stage(store, Squares(draws=2), rows_of(names), executor).key
        digests.add(store.digest(key))
    assert len(digests) == 1


def test_the_digest_sees_one_changed_value(tmp_path: Path) -> None:
    digests = []
    for names in (["1", "2", "3"], ["1", "2", "3"], ["1", "2", "4"]):
        store = FeatureStore.create(tmp_path / f"{len(digests)}.zarr")
        columns = ("uid", "dataset", "category", "split", "source", "fingerprint")
        store.append_registry({c: ["a", "b", "c"] for c in columns})
        digests.append(store.digest(run_stage(store, Squares(), rows_of(names), InProcess()).key))
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_is_that_of_the_stored_bytes(store: FeatureStore) -> None:
    """A receipt must sign what a reader gets, not what the stage handed over."""
    key = run_stage(store, Squares(), rows_of(["5", "6"]), InProcess()).key
    group = store.kind_group("points", key)
    receipt = Receipt.read(store.receipt_path(key, 0, 0))
    assert receipt is not None
    for row in range(2):
        values = [group["square"][row], group["word"][row]]  # type: ignore[index]
        assert row_digest(values) == receipt.digests[row]


def test_an_unreadable_receipt_is_named(store: FeatureStore) -> None:
    key = run_stage(store, Squares(), rows_of(["1"]), InProcess()).key
    path = store.receipt_path(key, 0, 0)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"000000\.json: unreadable receipt"):
        plan_stage(store, Squares(), rows_of(["1"]))


@pytest.mark.slow
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True), st.data())
@settings(max_examples=15)
def test_any_order_of_partial_runs_ends_in_the_same_store(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], data: st.DataObject
) -> None:
    names = [str(v) for v in values]
    columns = ("uid", "dataset", "category", "split", "source", "fingerprint")
    whole = FeatureStore.create(tmp_path_factory.mktemp("whole") / "s.zarr")
    parts = FeatureStore.create(tmp_path_factory.mktemp("parts") / "s.zarr")
    for store in (whole, parts):
        store.append_registry(dict.fromkeys(columns, names))
    key = run_stage(whole, Squares(), rows_of(names), InProcess()).key
    for limit in data.draw(st.lists(st.integers(1, len(names)), max_size=3)):
        run_stage(parts, Squares(), rows_of(names)[:limit], InProcess())
    run_stage(parts, Squares(), rows_of(names), InProcess())
    assert parts.digest(key) == whole.digest(key)


def test_row_seeds_differ_by_every_part() -> None:
    seeds = {row_seed(k, u, *d) for k in ("k", "l") for u in ("u", "v") for d in ((), (0,), (1,), (0, 1), (1, 0))}
    assert len(seeds) == 20
    assert all(0 <= s < 2**63 for s in seeds)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=10,
    )
)
@settings(max_examples=20)
def test_canonical_json_forgets_order_and_nothing_else(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize(
    ("preset", "pixels", "normals", "rows"),
    [
        ("ring6", 128, False, 32),
        ("openshape12", 224, True, 32),
        ("openshape12", 512, False, 8),
        ("openshape12", 4096, False, 1),
    ],
)
def test_large_pictures_make_short_shards(
    store: FeatureStore, preset: str, pixels: int, normals: bool, rows: int
) -> None:
    """A quarter of a gigabyte uncompressed; those of usual pictures are what they were."""
    origin = origin_of(load_manifest(Path("demo")), None)
    stage = RenderedViews(origin, RenderConfig(preset=preset, resolution=pixels, normals=normals))
    assert rows_a_shard(store, stage, digest_of(stage.recipe)) == rows


def test_a_key_keeps_the_shards_it_has(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = run_stage(store, Squares(), rows_of([str(i) for i in range(6)]), InProcess()).key
    monkeypatch.setattr(planning, "SHARD_BYTES", 1)
    monkeypatch.setattr(Squares, "shard_rows", 64)
    assert rows_a_shard(store, Squares(), key) == 4
    assert rows_a_shard(store, Squares(scale=2), digest_of(Squares(scale=2).recipe)) == 1
    run_stage(store, Squares(), rows_of([str(i) for i in range(9)]), InProcess())
    assert numbers(store, key) == [i * i for i in range(9)]
    assert [number for _, number, _ in store.receipts(key)] == [0, 1, 2]
