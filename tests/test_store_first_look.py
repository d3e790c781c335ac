"""What a notebook meets first: a store's and its registry's words for themselves, and features without gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.feature_store import WritableStore
from tests import trainer_store as tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.open(tiny.make_store(tmp_path_factory.mktemp("store") / "s.zarr").path)


def test_a_store_tells_of_itself_in_a_line(store: FeatureStore) -> None:
    # Draw 1 of one row is not there.
    assert repr(store) == f"<FeatureStore {store.path}: 30 shapes; ref 'tiny' of 30, features of toy 29>"
    assert repr(store.registry) == (
        "<Registry: 30 shapes of 3 categories; data sets: tiny 30; splits: test 6, train 24>"
    )
    assert (len(store), store.refs, store.teachers) == (30, ["tiny"], ["toy"])
    for record in (store.points(), store.targets(), store.text(), store.ref()):
        assert len(repr(record)) < 2000


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    made = FeatureStore.create(tmp_path / "s.zarr")
    assert bool(made) and len(made) == 0 and made.refs == made.teachers == []
    assert repr(made) == f"<WritableStore {tmp_path / 's.zarr'}: 0 shapes; no finished stage>"


def test_a_damaged_store_tells_of_that_in_its_line(tmp_path: Path) -> None:
    made = tiny.make_store(tmp_path / "s.zarr")
    (made.path / "refs" / "tiny.json").write_text("{")
    assert "refs/tiny.json" in repr(made) and "Traceback" not in repr(made)


def test_columns_answer_as_arrays_do(store: FeatureStore) -> None:
    split, uid = store.registry.split, store.registry.uid
    assert np.flatnonzero(split == "test").tolist() == [4, 9, 14, 19, 24, 29]
    assert ((split == "test") == ~(split != "test")).all()
    assert uid[split == "test"] == ["shape-4", "shape-9", "shape-14", "shape-19", "shape-24", "shape-29"]
    assert uid[np.array([2, 1])] == ["shape-2", "shape-1"] and uid[:1] == ["shape-0"] and uid[np.int64(3)] == "shape-3"
    assert uid == [f"shape-{row}" for row in range(30)] and uid != ["shape-0"]
    assert repr(uid) == "['shape-0', 'shape-1', 'shape-2', ...] (30)"


def test_rows_by_uid(store: FeatureStore) -> None:
    assert store.rows_of("shape-7", "shape-2").tolist() == [7, 2]
    with pytest.raises(UserError, match=r"ref 'tiny' has no shape 'shape_7' \(did you mean 'shape-7'\?\)"):
        store.rows_of("shape_7")


def test_features_leave_out_what_is_not_finished(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.pipeline.store.reader.FEATURE_ROWS", 7)
    clean, drawn = dict(store.features()), dict(store.features("toy", draw=1))
    assert list(clean) == store.registry.uid
    assert set(clean) - set(drawn) == {f"shape-{tiny.BROKEN_TARGETS}"}
    for row in (0, 8, 29):
        found = drawn[f"shape-{row}"][:, 0].tolist()
        assert found == [tiny.value_of(row, 1, view) for view in range(tiny.NUM_VIEWS)]
    with pytest.raises(UserError, match="draw 2: 'toy' has draws 0 to 1"):
        next(store.features(draw=2))


def test_a_store_opened_for_reading_has_no_way_to_write(store: FeatureStore) -> None:
    writes = {name for name in vars(WritableStore) if not name.startswith("_")}
    assert writes >= {"append_registry", "write_ref", "log", "update_registry", "require_key"}
    assert not writes & set(dir(store))
    assert not writes - set(dir(FeatureStore.open(store.path, write=True)))
