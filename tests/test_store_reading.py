"""How rows and receipts are read: any rows of any shards in one call, every receipt in one loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.store.receipts import DamagedReceipt, DamagedStore
from recon.pipeline.store.shards import read_rows, shard_rows
from tests.toy_stage import Toy, fill, register


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Columns [48, 3] and [2, 48, 3] in shards of 16 rows and chunks of 1 or 4; the third shard is not there."""
    group = zarr.create_group(str(tmp_path_factory.mktemp("arrays") / "a.zarr"), zarr_format=3)
    values = np.arange(2 * 48 * 3).reshape(2, 48, 3)
    made: dict[str, Any] = {}
    for chunk in (1, 4):
        for lanes in (0, 2):
            lead = (1,) if lanes else ()
            array = group.create_array(
                f"c{chunk}-{lanes}",
                shape=values.shape if lanes else values.shape[1:],
                chunks=(*lead, chunk, 3),
                shards=(*lead, 16, 3),
                dtype="int64",
            )
            array[..., :32, :] = (values if lanes else values[0])[..., :32, :]
            made[array.basename] = array
    return made


@given(st.sampled_from([1, 4]), st.sampled_from([None, 0, 1]), st.sets(st.integers(0, 31)))
def test_any_rows_are_those_that_plain_zarr_gives(
    arrays: dict[str, Any], chunk: int, lane: int | None, wanted: set[int]
) -> None:
    array = arrays[f"c{chunk}-{0 if lane is None else 2}"]
    rows = sorted(wanted)
    whole = array[:] if lane is None else array[lane]
    found = read_rows(array, rows, lane)
    assert (found.shape, found.dtype) == ((len(rows), 3), array.dtype)
    assert np.array_equal(found, whole[rows])
    assert shard_rows(array, lane) == 16


@pytest.mark.parametrize("lane", [None, 1])
def test_a_missing_shard_is_named_and_one_that_nobody_asked_for_is_not(
    arrays: dict[str, Any], lane: int | None
) -> None:
    array = arrays[f"c4-{0 if lane is None else 2}"]
    file = "c/2/0" if lane is None else f"c/{lane}/2/0"
    with pytest.raises(DamagedStore, match=rf"{array.path}/{file}: missing.*`recon-pipeline retry`"):
        read_rows(array, [30, 31, 32], lane)
    assert len(read_rows(array, np.arange(32), lane)) == 32


def test_of_several_shards_the_damaged_one_is_named(tmp_path: Path) -> None:
    store = register(tmp_path / "a.zarr", [f"s{i}" for i in range(12)])
    key = fill(store, Toy())
    path = store.path / "points" / key / "xyz/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match=r"xyz/c/1/0/0: cannot be read"):
        read_rows(store.kind_group("points", key)["xyz"], range(12))  # type: ignore[arg-type]


def test_a_lost_shard_is_never_read_as_blank(tmp_path: Path) -> None:
    """Zarr would: captions that are none, facts of nothing, features of zeros."""
    store = register(tmp_path / "a.zarr", [f"s{i}" for i in range(6)])
    for kind in ("meshes", "captions"):
        fill(store, Toy(kind))
    fill(store, Toy("text"), ["a bed", "s0 0", "s5 1"], teacher="tiny")
    ref = store.ref()
    assert store.captions()[5] == ["s5 0", "s5 1"]
    lost = {
        f"captions/{ref.captions['facts']}/caption/c/1/0": store.captions,
        f"meshes/{ref.keys['meshes']}/facts/c/0/0": store.facts,
        f"text/{ref.text['tiny']}/feat/c/0/0": lambda: store.text("tiny"),
    }
    for file, read in lost.items():
        (store.path / file).unlink()
        with pytest.raises(DamagedStore, match=rf"{file}: missing"):
            read()
    # What has no receipt is not done, so nobody misses its file.
    store.receipt_path(ref.captions["facts"], 0, 1).unlink()
    assert store.captions() == [[f"s{i} 0", f"s{i} 1"] for i in range(4)] + [["", ""]] * 2
    assert [len(line) for line in store.caption_records()] == [2] * 4 + [0] * 2


def test_every_receipt_once_in_order_and_nothing_else(tmp_path: Path) -> None:
    store = register(tmp_path / "a.zarr", [f"s{i}" for i in range(10)])
    key = fill(store, Toy(draws=3), ref="")
    folder = store.path / "receipts" / key
    for name in (".0-000000.json.7.tmp", "0-0000001.jsonx", "notes.json"):
        (folder / name).write_text("{")
    places = [(lane, shard) for lane in range(3) for shard in range(3)]
    assert store.receipt_places(key) == places
    assert [(lane, shard) for lane, shard, _ in store.receipts(key)] == places
    assert [(lane, shard) for lane, shard, _ in store.receipts(key, 1)] == places[3:6]
    assert [receipt.rows for _, _, receipt in store.receipts(key, 2)] == [(0, 4), (4, 8), (8, 10)]
    assert store.receipt_places("none") == []
    receipts = store.receipts(key)
    next(receipts)
    store.receipt_path(key, 0, 1).unlink()  # withdrawn while it is gone through
    assert next(receipts)[:2] == (0, 2)
    store.receipt_path(key, 1, 0).write_text("{}")
    with pytest.raises(DamagedReceipt, match=r"1-000000\.json"):
        list(store.receipts(key))
