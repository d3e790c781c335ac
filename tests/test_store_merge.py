"""Parts that `--shard i/n` filled come together as what one run makes; what does not belong together is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping import merge as merging
from recon.pipeline.keeping.merge import merge
from recon.pipeline.store import FeatureStore, twins
from recon.pipeline.store.receipts import Receipt
from tests.toy_stage import Toy, files_of, fill, register

pytestmark = pytest.mark.slow  # whole stores are made

STAGES = (Toy("meshes", shard_rows=8), Toy("points"), Toy("captions", shard_rows=8))
POINTS = STAGES[1]
TARGETS = Toy("targets", draws=2, shard_rows=5)
TEXT = Toy("text", (("teacher", "t"),), shard_rows=3)


def compute(store: FeatureStore) -> None:
    """Every stage over the store's shapes: all layouts there are, and prompts that several parts share."""
    for stage in STAGES:
        fill(store, stage)
    fill(store, TARGETS, teacher="t")
    fill(store, TEXT, ["a chair", "a lamp", *(f"caption of {name}" for name in store.registry.uid)], teacher="t")


def make(path: Path, names: Sequence[str]) -> FeatureStore:
    store = register(path, names)
    if names:
        compute(store)
    return store


def array(store: FeatureStore, kind: str, key: str, column: str) -> Any:
    return store.kind_group(kind, key)[column]


def assert_equal_contents(found: FeatureStore, expected: FeatureStore) -> None:
    """The same registry, refs, keys, digests, failures, and bit for bit the same arrays and receipts."""
    assert found.registry.uid == expected.registry.uid
    assert found.registry.category.tolist() == expected.registry.category.tolist()
    assert found.ref() == expected.ref()
    assert found.list_keys() == expected.list_keys()
    for kind, key in expected.list_keys():
        assert found.digest(key) == expected.digest(key)
        assert found.failures(key) == expected.failures(key)
        assert found.recipe(kind, key) == expected.recipe(kind, key)
        assert found.kind_group(kind, key).attrs["note"] == "toy"
        if kind == "text":  # the same prompts in another order
            order = [found.prompts(key).index(prompt) for prompt in expected.prompts(key)]
            assert sorted(order) == list(range(len(found.prompts(key))))
            feat = array(found, kind, key, "feat")[:][order]
            np.testing.assert_array_equal(feat, array(expected, kind, key, "feat")[:])
            continue
        for column in expected.columns(kind, key):
            pair = [array(store, kind, key, column.name) for store in (found, expected)]
            assert pair[0].metadata == pair[1].metadata
            np.testing.assert_array_equal(pair[0][:], pair[1][:])
        for path in (expected.path / "receipts" / key).glob("*.json"):
            ours, theirs = Receipt.read(found.path / "receipts" / key / path.name), Receipt.read(path)
            assert ours is not None and theirs is not None
            assert ours == replace(theirs, seconds=ours.seconds)


NAMES = [f"s{number}" for number in range(17)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole of 17 shapes and its two shards, for reading only."""
    path = tmp_path_factory.mktemp("made")
    make(path / "whole.zarr", NAMES)
    for number in range(2):
        make(path / f"{number}.zarr", NAMES[number::2])
    return path


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> list[FeatureStore]:
    """Copies of the two shards."""
    for number in range(2):
        shutil.copytree(made / f"{number}.zarr", tmp_path / f"{number}.zarr")
    return [FeatureStore.open(tmp_path / f"{number}.zarr", write=True) for number in range(2)]


@pytest.mark.slow
@given(rows=st.integers(1, 23), parts=st.integers(1, 4), failing=st.integers(0, 30))
@settings(max_examples=4)
def test_the_merge_of_all_shards_is_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: int, parts: int, failing: int
) -> None:
    path = tmp_path_factory.mktemp("merge")
    names = [f"bad-{i}" if i == failing else f"shape-{i}" for i in range(rows)]
    whole = make(path / "whole.zarr", names)
    paths = [make(path / f"{i}.zarr", names[i::parts]).path for i in range(parts)]
    before = files_of(path)
    told: list[tuple[int, int]] = []
    result = merge(path / "out.zarr", paths, lambda done, total: told.append((done, total)))
    assert before == {name: data for name, data in files_of(path).items() if not name.startswith("out.zarr/")}
    out = FeatureStore.open(path / "out.zarr", write=True)
    assert_equal_contents(out, whole)
    assert twins.check(out.path) == []
    assert told[-1] == (len(told), len(told))
    finished = sum(sum(r.ok) for r in all_receipts(out))
    assert (result.shapes, result.keys, result.rows) == (rows, len(whole.list_keys()), finished)
    assert result.failed == sum(len(r.failed) for r in all_receipts(whole))
    assert result.shards == len(all_receipts(whole))
    files = files_of(out.path)
    compute(out)
    assert files_of(out.path) == files  # there is nothing left to do


def all_receipts(store: FeatureStore) -> list[Receipt]:
    found = [Receipt.read(path) for path in (store.path / "receipts").rglob("*.json")]
    return [receipt for receipt in found if receipt is not None]


def test_seconds_and_logs_are_handed_on(tmp_path: Path, parts: list[FeatureStore]) -> None:
    for number, receipt in enumerate((parts[0].path / "receipts").rglob("*.json")):
        known = Receipt.read(receipt)
        assert known is not None
        replace(known, seconds=float(number + 1)).write(receipt)
    merge(tmp_path / "out.zarr", [part.path for part in parts])
    out = FeatureStore.open(tmp_path / "out.zarr")
    # The prompts that both hold are taken from the first, so the second's share in them is not counted.
    spent = [sum(r.seconds for r in all_receipts(store)) for store in (out, *parts)]
    assert spent[0] == pytest.approx(spent[1] + spent[2], abs=0.1)
    assert len(files_of(out.path)["log.jsonl"].splitlines()) == 2 * len((*STAGES, TARGETS, TEXT))


@pytest.mark.parametrize("held_bytes", [merging.HELD_BYTES, 0])
def test_two_shards_make_the_whole(
    made: Path, tmp_path: Path, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the parts' shards are held in memory or read a few rows at a time; an empty folder is filled."""
    monkeypatch.setattr(merging, "HELD_BYTES", held_bytes)
    (tmp_path / "out.zarr").mkdir()
    merge(tmp_path / "out.zarr", [made / "0.zarr", made / "1.zarr"])
    assert_equal_contents(FeatureStore.open(tmp_path / "out.zarr"), FeatureStore.open(made / "whole.zarr"))


def test_data_sets_keep_their_places(tmp_path: Path) -> None:
    """Each data set in turns by itself, as when one run after the other fills a store; a key of the second only."""

    def both(path: Path, first: Sequence[str], second: Sequence[str]) -> FeatureStore:
        register(path, first, "toy")
        store = register(path, second, "other")
        fill(store, POINTS, ref="toy")
        fill(store, Toy("views"), ref="other")
        return store

    first, second = [f"s{n}" for n in range(9)], [f"s{n}" for n in range(7)]
    whole = both(tmp_path / "whole.zarr", first, second)
    parts = [both(tmp_path / f"{i}.zarr", first[i::2], second[i::2]).path for i in range(2)]
    merge(tmp_path / "out.zarr", parts)
    out = FeatureStore.open(tmp_path / "out.zarr")
    assert (out.registry.uid, out.registry.dataset) == (whole.registry.uid, whole.registry.dataset)
    for _, key in whole.list_keys():
        assert out.digest(key) == whole.digest(key)
    assert [out.ref(name) for name in ("toy", "other")] == [whole.ref(name) for name in ("toy", "other")]


def test_unfinished_parts_can_be_finished_after(made: Path, tmp_path: Path, parts: list[FeatureStore]) -> None:
    key, text = parts[0].ref().keys["points"], parts[1].ref().text["t"]
    parts[0].receipt_path(key, 0, 1).unlink()  # a shard cut off, and a stage that one part has not come to
    for folder in ("text", "twins/text", f"receipts/{text}"):
        shutil.rmtree(parts[1].path / folder)
    ref = parts[1].path / "refs/toy.json"
    ref.write_text(ref.read_text().replace(f'"t": "{text}"', ""))
    twins.save(parts[1].path, ["refs/toy.json"])
    merge(tmp_path / "out.zarr", [part.path for part in parts])
    out, whole = FeatureStore.open(tmp_path / "out.zarr", write=True), FeatureStore.open(made / "whole.zarr")
    assert out.ok(key, 17).tolist() == [not (n % 2 == 0 and 4 <= n // 2 < 8) for n in range(17)]
    compute(out)
    assert {pair: out.digest(pair[1]) for pair in out.list_keys()} == {
        pair: whole.digest(pair[1]) for pair in whole.list_keys()
    }


def shared_shape(parts: list[FeatureStore]) -> None:
    register(parts[1].path, ["s0"])


def other_recipe(parts: list[FeatureStore]) -> None:
    fill(parts[1], replace(POINTS, settings=(("num_points", 5),)))


def other_shards(parts: list[FeatureStore]) -> None:
    for part, shard_rows in zip(parts, (4, 8), strict=True):
        fill(part, Toy("views", shard_rows=shard_rows))


def other_words(parts: list[FeatureStore]) -> None:
    for part, noise in zip(parts, (0.0, 1.0), strict=True):
        fill(part, Toy("text", (("teacher", "u"),), noise=noise), ["a bed"], teacher="u")


def flipped_bit(parts: list[FeatureStore]) -> None:
    path = parts[1].path / "points" / fill(parts[1], POINTS) / "xyz/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)


def swapped_shard(parts: list[FeatureStore]) -> None:
    """Sound by its own sums, but not what the receipt signed."""
    folder = parts[1].path / "targets" / parts[1].ref().targets["t"] / "feat/c"
    shutil.copy(folder / "0/1/0/0", folder / "1/1/0/0")


def lost_shard(parts: list[FeatureStore]) -> None:
    (parts[1].path / "meshes" / parts[1].ref().keys["meshes"] / "digest/c/0").unlink()


def damaged_receipt(parts: list[FeatureStore]) -> None:
    path = parts[1].receipt_path(parts[1].ref().keys["points"], 0, 1)
    path.write_text(path.read_text().replace("true", "false", 1))


def damaged_recipe(parts: list[FeatureStore]) -> None:
    path = parts[1].path / "points" / parts[1].ref().keys["points"] / "zarr.json"
    path.write_text(path.read_text()[:50])


def damaged_ref(parts: list[FeatureStore]) -> None:
    (parts[1].path / "refs/toy.json").write_text("{")


REFUSED = [
    (shared_shape, r"0\.zarr and .*1\.zarr both hold the shape 's0' of 'toy'"),
    (other_recipe, r"different recipes of points in ref 'toy': num_points: absent -> 5; run"),
    (other_shards, r"0\.zarr and .*1\.zarr: views/\w+ is laid out differently"),
    (other_words, r"other features of 'a bed'"),
    (flipped_bit, r"1\.zarr/points/\w+/xyz/c/1/0/0: cannot be read .*retry"),
    (swapped_shard, r"1\.zarr: targets shard 1 of draw 1 of \w+: row 5 does not match its receipt; .*verify"),
    (lost_shard, r"1\.zarr/meshes/\w+/digest/c/0: missing.*retry"),
    (damaged_receipt, r"000001\.json: a receipt that does not match"),
    (damaged_recipe, r"zarr\.json: .*second copy"),
    (damaged_ref, r"toy\.json: .*second copy"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, parts: list[FeatureStore], spoil: Callable[[list[FeatureStore]], None], message: str
) -> None:
    spoil(parts)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        merge(tmp_path / "out.zarr", [part.path for part in parts])
    assert "\n" not in str(error.value)
    assert files_of(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.zarr", "1.zarr"]


def test_an_interrupted_merge_leaves_nothing(made: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "out.zarr", [made / "0.zarr"], stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(tmp_path: Path, parts: list[FeatureStore]) -> None:
    part = parts[0].path
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    for out, message in ((part, "exists"), (tmp_path / "file", "exists"), (part / "sub" / "out.zarr", "only read")):
        with pytest.raises(UserError, match=message):
            merge(out, [part])
    with pytest.raises(UserError, match="both hold the shape 's0'"):
        merge(tmp_path / "out.zarr", [part, part])
    with pytest.raises(UserError, match="no feature store at"):
        merge(tmp_path / "out.zarr", [part, tmp_path / "none.zarr"])
    with pytest.raises(UserError, match="name the stores"):
        merge(tmp_path / "out.zarr", [])
    assert files_of(tmp_path) == before


@pytest.mark.slow
def test_shards_of_a_manifest_make_its_store(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow

    paths = []
    for number in range(3):
        store = FeatureStore.create(tmp_path / f"{number}.zarr")
        Flow(load_manifest(small_manifest), None, store, shard=(number, 3)).all()
        paths.append(store.path)
    merge(tmp_path / "out.zarr", paths)
    out, whole = FeatureStore.open(tmp_path / "out.zarr"), FeatureStore.open(small_store)
    assert out.registry.uid == whole.registry.uid
    assert {pair: out.digest(pair[1]) for pair in out.list_keys()} == {
        pair: whole.digest(pair[1]) for pair in whole.list_keys()
    }
    assert all(r.computed == 0 for r in Flow(load_manifest(small_manifest), None, out).all())
    assert out.text().class_prompts.shape == whole.text().class_prompts.shape
