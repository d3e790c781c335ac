"""`ls` and `stats`, compared with plain numpy over arrays that zarr alone has read."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping.copies import Copies
from recon.pipeline.keeping.layout import measure
from recon.pipeline.keeping.stats import KeyLine, describe, list_store, statistics
from recon.pipeline.keeping.stats.features import feature_statistics
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.receipts import Failure, Receipt
from tests import trainer_store

pytestmark = pytest.mark.slow  # whole stores are made


@pytest.fixture
def copy(small_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_store, tmp_path / "copy.zarr"))


def opened(path: Path) -> tuple[Any, dict[str, Any], dict[str, list[str]]]:
    group: Any = zarr.open_group(str(path), mode="r")
    ref = json.loads((path / "refs" / "small.json").read_text())
    return group, ref, {name: array[:].tolist() for name, array in group["registry"].arrays()}


def bytes_below(folder: Path) -> int:
    return sum((Path(top) / name).stat().st_size for top, _, names in os.walk(folder) for name in names)


def edit(path: Path, key: str, name: str, **changes: Any) -> Receipt:
    receipt = Receipt.read(path / "receipts" / key / name)
    assert receipt is not None
    receipt = replace(receipt, **changes)
    receipt.write(path / "receipts" / key / name)
    return receipt


# ---- ls


def test_a_line_a_key(small_store: Path) -> None:
    group, ref, _ = opened(small_store)
    lines = {line.kind: line for line in list_store(FeatureStore.open(small_store))}
    assert list(lines) == ["meshes", "points", "views", "captions", "targets", "text"]
    assert {kind: line.key for kind, line in lines.items()} == {
        **ref["keys"],
        "captions": ref["captions"]["facts"],
        "targets": ref["targets"]["tiny"],
        "text": ref["text"]["tiny"],
    }
    prompts = group[f"text/{lines['text'].key}/prompt"].shape[0]
    assert {kind: line.rows for kind, line in lines.items()} == {
        **dict.fromkeys(ref["keys"], 12),
        "captions": 12,
        "targets": 24,
        "text": prompts,
    }
    for kind, line in lines.items():
        assert (line.refs, line.done, line.failed) == (("small",), line.rows, 0)
        assert line.lanes == (2 if kind == "targets" else 1)
        assert line.bytes == bytes_below(small_store / kind / line.key)
        times = [path.stat().st_mtime for path in (small_store / "receipts" / line.key).iterdir()]
        assert line.oldest is not None
        assert line.newest is not None
        assert (np.datetime64(line.oldest[:19]), np.datetime64(line.newest[:19])) == (
            np.datetime64(int(min(times)), "s"),
            np.datetime64(int(max(times)), "s"),
        )
    assert lines["views"].summary == "ring2 32px"
    assert lines["points"].summary == "256 points, seed 0"
    assert lines["targets"].summary == "tiny open_clip pooled fp32"
    assert lines["text"].summary == "tiny open_clip fp32"
    assert lines["points"].columns == (
        "color [256, 3] uint8",
        "frame [4] float64",
        "normal [256, 3] float16",
        "order [256] uint16",
        "part [256] uint8",
        "xyz [256, 3] float32",
    )
    assert lines["targets"].columns == ("feat [2, 24] float16",)
    assert lines["text"].columns == ("feat [24] float16", "prompt [] str")
    json.dumps([dataclasses.asdict(line) for line in lines.values()], allow_nan=False)


def test_what_no_ref_reaches_and_what_failed_shows(copy: Path) -> None:
    _, ref, _ = opened(copy)
    views = ref["keys"].pop("views")
    (copy / "refs" / "small.json").write_text(json.dumps(ref))
    receipt = Receipt.read(copy / "receipts" / views / "0-000000.json")
    assert receipt is not None
    edit(copy, views, "0-000000.json", ok=(False, *receipt.ok[1:]), failed={0: Failure("black")})
    line: KeyLine = next(line for line in list_store(FeatureStore.open(copy)) if line.kind == "views")
    assert (line.refs, line.rows, line.done, line.failed) == ((), 12, 11, 1)
    shutil.rmtree(copy / "receipts" / views)
    line = next(line for line in list_store(FeatureStore.open(copy)) if line.kind == "views")
    assert (line.done, line.failed, line.oldest, line.newest) == (0, 0, None, None)


def test_an_empty_store_has_no_lines(tmp_path: Path) -> None:
    assert list_store(FeatureStore.create(tmp_path / "empty.zarr")) == []


def test_a_folder_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two").write_bytes(b"123")
    newest = 2e9
    os.utime(tmp_path / "a" / "b" / "two", (newest + 5, newest))
    (tmp_path / "a" / "link").symlink_to("/")
    size, written = measure(tmp_path)
    assert (size, written) == (8 + len("/"), newest)
    assert measure(tmp_path, read=True)[1] == newest + 5
    assert measure(tmp_path / "a" / "one")[0] == 5
    assert measure(tmp_path / "none") == (0, 0.0)


# ---- stats


def test_counts_geometry_and_views(small_store: Path) -> None:
    group, ref, registry = opened(small_store)
    found = statistics(FeatureStore.open(small_store))
    assert (found.ref, found.dataset, found.shapes) == ("small", "small", 12)
    assert found.splits == {name: registry["split"].count(name) for name in ("test", "train")}
    assert found.categories == {name: {"test": 1, "train": 3} for name in ("chair", "mug", "table")}
    faces = group[f"meshes/{ref['keys']['meshes']}/faces"][:]
    assert (found.faces_median, found.faces_max) == (np.median(faces), faces.max())

    points = group[f"points/{ref['keys']['points']}"]
    extents = [max(cloud.max(0) - cloud.min(0)) for cloud in points["xyz"][:]]
    colors = points["color"][:].reshape(-1, 3)
    assert found.points is not None
    assert found.points.sampled == 12
    assert found.points.extent_min == pytest.approx(min(extents))
    assert found.points.extent_median == pytest.approx(np.median(extents))
    assert found.points.extent_max == pytest.approx(max(extents))
    assert found.points.colored == pytest.approx(sum(any(color) for color in colors.tolist()) / len(colors))
    assert found.points.normals == 1.0
    assert found.points.parts == len(set(points["part"][:].ravel().tolist()))

    depth = group[f"views/{ref['keys']['views']}/depth"][:].reshape(24, -1)
    shares = [float(np.count_nonzero(view)) / 32**2 for view in depth]
    assert found.views is not None
    assert found.views.foreground_min == pytest.approx(min(shares))
    assert found.views.foreground_median == pytest.approx(np.median(shares))
    assert found.views.blank == 0
    assert min(shares) > 0
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    lines = describe(found)
    assert lines[0] == "small: 12 shapes (3 test, 9 train) in 3 categories"
    assert any(line.startswith("targets/tiny, 12 sampled: 24 dimensions; mean ") for line in lines)


def test_one_mesh_in_several_splits_and_classes_is_told(copy: Path) -> None:
    _, ref, registry = opened(copy)
    assert statistics(FeatureStore.open(copy)).copies == Copies(0, 0, 0, 0, ())
    digests: Any = zarr.open_group(str(copy), mode="r+")[f"meshes/{ref['keys']['meshes']}/digest"]
    kinds = {(registry["category"][i], registry["split"][i]): i for i in range(12)}
    one, other = kinds["chair", "train"], kinds["mug", "test"]
    values = digests[:]
    values[other] = values[one]
    digests[:] = values
    found = statistics(FeatureStore.open(copy))
    assert found.copies is not None
    assert dataclasses.astuple(found.copies)[:4] == (2, 1, 2, 2)
    pair = " and ".join(f"{registry['uid'][i]} ({registry['category'][i]}, " for i in sorted((one, other)))
    (line,) = [line for line in describe(found) if "copies" in line]
    assert line.startswith("  copies: 2 shapes share 1 meshes, 2 of them across splits, 2 across classes, such as ")
    assert all(part in line for part in pair.split(" and "))


def test_a_caption_that_is_not_embedded_yet_is_told(copy: Path) -> None:
    """It was -1, as if the shape had none."""
    _, ref, _ = opened(copy)
    key = next(iter(ref["captions"].values()))
    captions: Any = zarr.open_group(str(copy), mode="r+")[f"captions/{key}/caption"]
    values = captions[:]
    values[0, 0] = "said since"
    captions[:] = values
    with pytest.raises(
        UserError, match=r"copy\.zarr: 1 captions not embedded by 'tiny'; run `recon-pipeline features`"
    ):
        FeatureStore.open(copy).text()


def test_black_points_and_blank_views_are_seen(copy: Path) -> None:
    _, ref, _ = opened(copy)
    group: Any = zarr.open_group(str(copy), mode="r+")
    color = group[f"points/{ref['keys']['points']}/color"]
    color[:] = np.where(np.arange(256)[None, :, None] < 64, 0, 9).astype(np.uint8).repeat(12, 0).repeat(3, 2)
    depth = group[f"views/{ref['keys']['views']}/depth"]
    values = depth[:]
    values[3, 1] = 0
    depth[:] = values
    found = statistics(FeatureStore.open(copy))
    assert found.points is not None
    assert found.points.colored == 0.75
    assert found.views is not None
    assert (found.views.blank, found.views.foreground_min) == (1, 0.0)


def brute(feat: Any, classes: list[Any]) -> dict[str, float | None]:
    """Every pair of features of [S, V, D], one by one."""
    unit = feat.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=2, keepdims=True)
    index = list(itertools.product(range(unit.shape[0]), range(unit.shape[1])))
    kinds: dict[str, list[float]] = {"random": [], "views": [], "same_class": [], "other_class": []}
    for (a, v), (b, w) in itertools.combinations(index, 2):
        cosine = float(unit[a, v] @ unit[b, w])
        if a == b:
            kinds["views"].append(cosine)
            continue
        kinds["random"].append(cosine)
        kinds["same_class" if classes[a] == classes[b] else "other_class"].append(cosine)
    return {f"cosine_{name}": float(np.mean(values)) if values else None for name, values in kinds.items()}


def check_features(found: Any, feat: Any, classes: list[Any]) -> None:
    flat = feat.reshape(-1, feat.shape[2]).astype(np.float64)
    norms = np.sqrt((flat**2).sum(1))
    assert (found.sampled, found.dim) == (feat.shape[0], feat.shape[2])
    for name in ("mean", "std", "min", "max"):
        assert getattr(found, f"norm_{name}") == pytest.approx(getattr(norms, name)(), rel=1e-5, abs=1e-7)
    assert found.center_mean == pytest.approx(flat.mean(0).mean(), abs=1e-6)
    assert found.center_std == pytest.approx(flat.mean(0).std(), abs=1e-6)
    assert found.constant_dims == sum(len(set(column)) == 1 for column in flat.T.tolist())
    for name, value in brute(feat, classes).items():
        assert getattr(found, name) == (None if value is None else pytest.approx(value, abs=1e-6)), name


def test_features(small_store: Path) -> None:
    group, ref, registry = opened(small_store)
    found = statistics(FeatureStore.open(small_store))
    assert [line.teacher for line in (*found.targets, *found.text)] == ["tiny", "tiny"]
    check_features(found.targets[0], group[f"targets/{ref['targets']['tiny']}/feat"][0], registry["category"])
    text = group[f"text/{ref['text']['tiny']}"]
    prompts = text["prompt"][:].tolist()
    class_of = {prompt: name for name in ("chair", "mug", "table") for prompt in class_prompts(name)}
    captions = group[f"captions/{ref['captions']['facts']}/caption"][:].tolist()
    for category, line in zip(registry["category"], captions, strict=True):
        for caption in filter(None, line):
            class_of.setdefault(caption, category)
    check_features(found.text[0], text["feat"][:][:, None], [class_of[prompt] for prompt in prompts])


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_features_of_any_shape(rows: int, views: int, dim: int, seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    feat = rng.standard_normal((rows, views, dim)).astype(np.float16) + np.float16(0.01)
    feat[..., 0] = 1  # a dimension that says nothing, and no feature of zeros
    names = rng.integers(0, classes, rows)
    check_features(feature_statistics("any", feat, names), feat, names.tolist())


def test_a_feature_of_zeros_is_no_error() -> None:
    found = feature_statistics("any", np.zeros((2, 2, 3), np.float16), np.zeros(2, np.int64))
    assert (found.norm_max, found.cosine_random, found.constant_dims) == (0, 0, 3)


def test_the_sample_is_named_by_its_seed_alone(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    one, again, other = (statistics(store, sample=5, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.points != other.points
    assert one.points is not None
    assert (one.points.sampled, one.targets[0].sampled, one.text[0].sampled) == (5, 5, 5)
    group, ref, registry = opened(small_store)
    digest = lambda row: hashlib.sha256(f"statistics:{registry['uid'][row]}:0".encode()).digest()  # noqa: E731
    chosen = sorted(range(12), key=digest)[:5]
    extents = [max(np.ptp(cloud, axis=0)) for cloud in group[f"points/{ref['keys']['points']}/xyz"][:][chosen]]
    assert (one.points.extent_min, one.points.extent_max) == (min(extents), max(extents))
    assert (one.shapes, one.faces_max) == (12, statistics(store).faces_max)  # counts are over all rows


def test_patch_tokens_count_by_their_mean(tmp_path: Path) -> None:
    store = trainer_store.make_store(tmp_path / "tiny.zarr")
    write = FeatureStore.open(store.path, write=True)
    tokens = np.random.default_rng(0).normal(size=(1, 30, 3, 4, 6)).astype(np.float16)
    trainer_store.write_columns(write, "targets", "tokens-key", {"feat": tokens}, lanes=1)
    write.write_ref("tiny", "targets", "tokens-key", "vit")
    found = statistics(FeatureStore.open(store.path)).targets[1]
    means = tokens[0].astype(np.float32).mean(axis=2)
    assert found == feature_statistics("vit", means, store.registry.category)


def test_how_a_key_came_to_be(copy: Path) -> None:
    _, ref, _ = opened(copy)
    points, targets = ref["keys"]["points"], ref["targets"]["tiny"]
    receipt = edit(copy, points, "0-000000.json", seconds=6.0, nonfinite=2, provenance=({"host": "fast"},))
    edit(
        copy,
        points,
        "0-000000.json",
        ok=(*[False] * 3, *receipt.ok[3:]),
        failed={0: Failure("thin"), 1: Failure("broken"), 2: Failure("broken")},
    )
    edit(copy, targets, "0-000000.json", seconds=12.0, provenance=({"host": "one"},))
    edit(copy, targets, "1-000000.json", seconds=36.0, provenance=({"host": "one"},))
    found = {line.name: line for line in statistics(FeatureStore.open(copy)).keys}
    assert list(found) == ["meshes", "points", "views", "captions/facts", "targets/tiny", "text/tiny"]
    line = found["points"]
    assert (line.key, line.done, line.failed, line.nonfinite) == (points, 9, 3, 2)
    assert list(line.reasons.items()) == [("broken", 2), ("thin", 1)]
    assert line.seconds_per_row == {"fast": 0.5}
    assert line.bytes_per_row == pytest.approx(bytes_below(copy / "points" / points) / 9)
    assert found["targets/tiny"].seconds_per_row == {"one": 2.0}  # the median of 1 and 3
    assert found["targets/tiny"].done == 24
    lines = describe(statistics(FeatureStore.open(copy)))
    assert "  2 set aside: broken" in lines
    assert any(line.startswith(f"points {points}: 9 rows, 3 set aside, 2 values not finite; a row ") for line in lines)


def test_an_unfinished_store_has_statistics(copy: Path) -> None:
    _, ref, _ = opened(copy)
    for key in (ref["keys"]["views"], ref["targets"]["tiny"], ref["text"]["tiny"]):
        shutil.rmtree(copy / "receipts" / key)
    ref["captions"].clear()
    (copy / "refs" / "small.json").write_text(json.dumps(ref))
    found = statistics(FeatureStore.open(copy))
    assert (found.views, found.targets, found.text) == (None, (), ())
    assert found.points is not None
    assert not [line for line in describe(found) if line.startswith(("views of", "targets/tiny,", "text/tiny,"))]
    with pytest.raises(UserError, match="no ref 'other'"):
        statistics(FeatureStore.open(copy), "other")
