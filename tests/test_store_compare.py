"""What differs between two keys is said in fields, rows and numbers; keys are found by any of their names."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping import compare as comparing
from recon.pipeline.keeping.compare import (
    COSINE_EDGES,
    Side,
    compare,
    describe,
    diff,
    diff_stores,
    explain,
    parse_side,
    recipe_diff,
    recipe_diff_expanded,
    resolve_key,
)
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Failure, Receipt
from recon.pipeline.store.records import Column
from tests.toy_stage import COLUMNS, Toy, files_of, fill, register

pytestmark = pytest.mark.slow  # whole stores are made

NAMES = [f"s{number}" for number in range(9)]
VIEWS = Toy("views", (("render", {"resolution": 96, "preset": "ring2"}),))
LARGER = Toy("views", (("render", {"resolution": 128, "preset": "ring2"}),))
TARGETS = Toy("targets", (("views", digest_of(VIEWS.recipe)),), draws=2)
NOISY = Toy("targets", (("views", digest_of(LARGER.recipe)),), draws=2, noise=0.25)
TEXT = Toy("text", (("teacher", "t"),))


def make(path: Path, names: list[str], views: Toy = VIEWS, targets: Toy = TARGETS) -> FeatureStore:
    store = register(path, names)
    fill(store, Toy("points"))
    fill(store, views)
    fill(store, targets, teacher="demo")
    fill(store, TEXT, ["a chair", *names[:3]], teacher="demo")
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores, for reading only: b lacks one shape, has two others, and saw larger pictures."""
    path = tmp_path_factory.mktemp("made")
    make(path / "a.zarr", [*NAMES, "bad-1"])
    make(path / "b.zarr", [*NAMES[::-1][:8], "bad-1", "t1", "t2"], LARGER, NOISY)
    return path


# ---- recipes


def test_recipes_differ_by_field() -> None:
    a = {"seed": 0, "render": {"resolution": 96, "lights": [1, 2]}, "old": None}
    b = {"seed": 0, "render": {"resolution": 128, "lights": [1, 3], "samples": 4}}
    assert recipe_diff(a, b) == [
        "old: null -> absent",
        "render.lights[1]: 2 -> 3",
        "render.resolution: 96 -> 128",
        "render.samples: absent -> 4",
    ]
    assert recipe_diff({"x": 1}, {"x": 1.0}) == ["x: 1 -> 1.0"]  # another key, so another recipe
    assert recipe_diff({"x": "absent"}, {}) == ['x: "absent" -> absent']


def test_long_values_and_lists_are_cut() -> None:
    a, b = "weights" * 20 + "a" * 90, "weights" * 20 + "b" * 90
    (line,) = recipe_diff({"w": a}, {"w": b})
    assert len(line) < 150 and "aaa" in line and "bbb" in line
    cameras = [[[float(n), offset] for n in range(12)] for offset in (20.0, 30.0)]
    assert recipe_diff({"c": cameras[0]}, {"c": cameras[1]}) == [
        *(f"c[{n}][1]: 20.0 -> 30.0" for n in range(3)),
        "c: 12 of 12 elements differ",
    ]
    (line,) = recipe_diff({"c": cameras[0]}, {"c": cameras[0][:6]})
    assert line.endswith("(12 -> 6 elements)") and len(line) < 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 3) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@given(*[st.dictionaries(st.sampled_from(["meshes", "seed", "render"]), VALUES)] * 2)
def test_every_difference_is_told_and_nothing_else(a: dict[str, Any], b: dict[str, Any]) -> None:
    for lines in (recipe_diff(a, b), recipe_diff_expanded(a, b, lambda kind, key: None)):
        assert bool(lines) == (canonical_json(a) != canonical_json(b))
        assert all("\n" not in line and ": " in line for line in lines)
    assert recipe_diff(a, a) == []


def test_upstream_keys_are_followed(made: Path) -> None:
    a, b = (FeatureStore.open(made / name) for name in ("a.zarr", "b.zarr"))
    keys = [store.ref().targets["demo"] for store in (a, b)]
    assert explain(a, "targets", keys[0], b, keys[1]) == ["views.render.resolution: 96 -> 128"]
    plain = recipe_diff_expanded(TARGETS.recipe, NOISY.recipe, lambda kind, key: None)
    assert plain == [f'views: "{TARGETS.recipe["views"]}" -> "{NOISY.recipe["views"]}"']


# ---- names


def test_a_key_has_many_names(made: Path) -> None:
    store = FeatureStore.open(made / "a.zarr")
    ref = store.ref()
    points, targets = ref.keys["points"], ref.targets["demo"]
    for name in (points, points[:4], "points", f"points/{points}", f"points/{points[:6]}"):
        assert resolve_key(store, name) == ("points", points)
    for name in (targets, "targets", "targets/demo"):
        assert resolve_key(store, name) == ("targets", targets)
    side = parse_side(f"{store.path}:text/demo")
    assert (side.store.path, side.kind, side.key) == (store.path, "text", ref.text["demo"])
    assert parse_side(str(store.path)).key == ""


UNKNOWN = [
    ("targets/dmeo", "did you mean targets/demo, "),
    ("point", "did you mean points?"),
    ("ffffffffffff", "it holds points, views, targets/demo, text/demo"),
    ("../a.zarr", "is no key"),
    ("/etc/passwd", "is no key"),
    ("targets/../../x", "is no key"),
    ("targets/..", "is no key"),
    ("points/", "is no key"),
    ("", "is no key"),
    ("a\\b", "is no key"),
]


@pytest.mark.parametrize(("name", "message"), UNKNOWN)
def test_what_is_no_key_is_refused_with_the_nearest(made: Path, name: str, message: str) -> None:
    before = files_of(made)
    with pytest.raises(UserError) as error:
        resolve_key(FeatureStore.open(made / "a.zarr"), name)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert files_of(made) == before


def test_an_ambiguous_name_offers_its_meanings(tmp_path: Path) -> None:
    store = register(tmp_path / "s.zarr", ["a"])
    keys = [fill(store, Toy("points", (("n", n),)), ref="") for n in range(2)]
    with pytest.raises(UserError, match=f"'points' may be .*points/{keys[0]}"):
        resolve_key(store, "points")
    with pytest.raises(UserError, match="too short"):
        resolve_key(store, keys[0][:3])
    store.write_ref("toy", "points", keys[1])
    assert resolve_key(store, "points") == ("points", keys[1])  # the one in use
    with pytest.raises(UserError, match="of which nothing is there"):
        store.write_ref("toy", "views", "0123456789abcdef")
        resolve_key(store, "views")


def test_sides_that_are_none(made: Path, tmp_path: Path) -> None:
    for text, message in ((str(tmp_path / "none.zarr"), "no feature store"), (":points", "write STORE or STORE:KEY")):
        with pytest.raises(UserError, match=message):
            parse_side(text)
    with pytest.raises(UserError, match="on both sides"):
        compare(str(made / "a.zarr"), f"{made / 'b.zarr'}:points")
    with pytest.raises(UserError, match="points cannot be compared with views"):
        compare(f"{made / 'a.zarr'}:points", f"{made / 'b.zarr'}:views")
    (tmp_path / "odd:name.zarr").mkdir()
    with pytest.raises(UserError, match=r"no feature store at .*odd:name\.zarr"):  # a folder's own colon
        parse_side(str(tmp_path / "odd:name.zarr"))


# ---- diff


def test_a_store_is_the_same_as_itself(made: Path) -> None:
    found = compare(str(made / "a.zarr"), str(made / "a.zarr"))
    assert [pair.name for pair in found] == ["points", "views", "targets/demo", "text/demo"]
    for pair in found:
        assert pair.same and pair.recipe == ()
        assert describe(pair) == [f"{pair.name}: the same, {pair.rows.finished if pair.rows else 0} rows"]
        assert all(column.max_abs == 0 for column in pair.columns)


def test_rows_are_matched_by_shape(made: Path) -> None:
    (found,) = compare(f"{made / 'a.zarr'}:points", f"{made / 'b.zarr'}:points")
    rows = found.rows
    assert rows is not None and not found.same and found.recipe == ()
    assert (rows.only_a, rows.only_b, rows.both, rows.finished, rows.equal) == (1, 2, 9, 8, 8)
    assert rows.names["only_a"] == ["toy/s0"] and rows.names["only_b"] == ["toy/t1", "toy/t2"]
    assert (rows.failed_a, rows.failed_b) == (0, 0)  # bad on both sides
    assert [(c.name, c.measure, c.max_abs, sum(c.counts)) for c in found.columns] == [("xyz", "max abs", 0.0, 8)]


def test_features_are_compared_by_their_angle(made: Path) -> None:
    sides = [parse_side(f"{made / name}:targets/demo") for name in ("a.zarr", "b.zarr")]
    found = diff(sides[0], sides[1])
    (column,) = found.columns
    feats = [s.store.kind_group("targets", s.key)["feat"][0].astype(float) for s in sides]  # type: ignore[index]
    pairs = [(feats[0][n], feats[1][8 - n]) for n in range(1, 9)]  # b holds them in reverse order
    expected = [
        float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for a, b in pairs for x, y in zip(a, b, strict=True)
    ]
    assert column.measure == "cosine" and column.rows == 8
    assert column.minimum == pytest.approx(min(expected))
    assert column.median == pytest.approx(float(np.median(expected)))
    assert column.counts == tuple(np.histogram(expected, COSINE_EDGES)[0])
    assert column.max_abs == pytest.approx(0.25, abs=1e-3)
    assert found.recipe == ("views.render.resolution: 96 -> 128",)
    assert found.rows is not None and (found.rows.equal, len(found.rows.names["unequal"])) == (0, 8)
    text = "\n".join(describe(found))
    assert "views.render.resolution" in text and "8 differ" in text and "cosine over 8 rows" in text
    json.dumps(asdict(found), allow_nan=False)


def test_a_sample_is_drawn_by_its_seed(made: Path) -> None:
    sides = [parse_side(f"{made / name}:targets") for name in ("a.zarr", "b.zarr")]
    drawn = [diff(sides[0], sides[1], sample=3, seed=seed).columns[0] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and drawn[0].rows == 3
    assert len({column.minimum for column in drawn}) > 1


def test_prompts_are_matched_by_their_words(made: Path) -> None:
    (found,) = compare(f"{made / 'a.zarr'}:text", f"{made / 'b.zarr'}:text")
    assert found.rows is not None
    assert found.rows.names["only_a"] == ["s0", "s1", "s2"] and found.rows.both == found.rows.equal == 1


def test_failed_rows_other_shapes_and_lone_keys_are_told(tmp_path: Path) -> None:
    a, b = (register(tmp_path / name, ["s0", "s1"]) for name in ("a.zarr", "b.zarr"))
    fill(a, Toy("points"))
    fill(b, Toy("points"))
    fill(a, Toy("views"))
    fill(a, Toy("targets", draws=1), teacher="t")
    fill(b, replace(Toy("targets"), draws=2), teacher="t")
    key = a.ref().keys["points"]
    path = b.receipt_path(key, 0, 0)
    known = Receipt.read(path)
    assert known is not None
    failed = {1: Failure("too thin")}
    replace(known, ok=(True, False), digests=(known.digests[0], ""), failed=failed).write(path)
    found = {pair.name: pair for pair in diff_stores(a, b)}
    points = found["points"].rows
    assert points is not None and (points.failed_a, points.failed_b, points.finished) == (0, 1, 1)
    assert points.names["failed_b"] == ["toy/s1"]
    assert found["views"].recipe == (f"only in {a.path}",) and not found["views"].same
    draws = found["targets/t"]
    assert draws.rows is not None and draws.rows.equal == 2 and not draws.same
    assert "  draws: 1 -> 2" in describe(draws)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    store = register(tmp_path / "a.zarr", ["s0"])
    key = fill(store, Toy("points"))
    path = store.path / "points" / key / "xyz/c/0/0/0"
    side = Side(store, "points", key)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"xyz/c/0/0/0: cannot be read .*retry"):
        diff(side, side)
    path.unlink()
    with pytest.raises(UserError, match=r"xyz/c/0/0/0: missing.*retry"):
        diff(side, side)


def test_pictures_are_compared_row_by_row(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows large enough to lie in chunks of their own, and too many for one batch."""
    monkeypatch.setitem(COLUMNS, "views", (Column("rgb", (1, 300, 300, 3), "uint8"),))
    monkeypatch.setattr(comparing, "_BATCH_BYTES", 1 << 22)
    stores = [register(tmp_path / f"{n}.zarr", ["s0", "s1", "s2"][::step]) for n, step in enumerate((1, -1))]
    keys = [fill(store, Toy("views", noise=noise)) for store, noise in zip(stores, (0.0, 3.0), strict=True)]
    rgb = [store.kind_group("views", key)["rgb"] for store, key in zip(stores, keys, strict=True)]
    assert rgb[0].chunks[0] == 1  # type: ignore[union-attr]
    (column,) = diff(*(Side(store, "views", key) for store, key in zip(stores, keys, strict=True))).columns
    errors = np.abs(rgb[0][:].astype(float) - rgb[1][:][::-1]).reshape(3, -1)  # type: ignore[index, union-attr]
    assert (column.measure, column.rows) == ("mean abs", 3)
    assert column.minimum == pytest.approx(errors.mean(1).min()) and column.max_abs == errors.max() == 3
