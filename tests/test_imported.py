"""OpenShape's files: what this project exports comes back as it was; their features are taken over, not computed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import Manifest, list_shapes, load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.export import export
from recon.pipeline.sources.stored import StoredImages
from recon.pipeline.store import FeatureStore

pytestmark = pytest.mark.slow  # whole stores are made

SHIPPED = Path(__file__).resolve().parents[1] / "data_manifests" / "openshape.toml"

MANIFEST = """
name = "back"
[source]
layout = "openshape"
group_is_category = true
[source.lists]
train = "split/train.json"
test = "split/test.json"
[sample]
num_points = 256
[features]
[[features.stored]]
name = "clip"
views = {views}
dim = {dim}
{more}
[[features.teachers]]
name = "tiny"
kind = "open_clip"
model = "{model}"
[[captions]]
kind = "stored"
keep = 3
"""


def read_manifest(folder: Path, model: Path | str = "demo", dim: int = 24, views: int = 2, more: str = "") -> Manifest:
    path = folder / "back.toml"
    path.write_text(MANIFEST.format(model=model, dim=dim, views=views, more=more))
    return load_manifest(path)


@pytest.fixture(scope="module")
def exported(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store in OpenShape's form."""
    out = tmp_path_factory.mktemp("openshape") / "out"
    export(FeatureStore.open(small_store), out, "openshape")
    return out


def shape(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What a file of the release holds, as far as it is read."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-1, 1, (30, 3)).astype(np.float32)
    held = {
        "xyz": xyz,
        "rgb": np.tile(np.float32([0.0, 0.5, 1.0]), (30, 1)),
        "image_feat": rng.normal(size=(12, 8)).astype(np.float32),
        "thumbnail_feat": rng.normal(size=8).astype(np.float32),
        "text": ["a chair", "a  chair"],
        "blip_caption": "one chair\nby a wall",
        "msft_caption": "",
        "retrieval_text": ["an office chair"],
    }
    return {name: value for name, value in (held | changes).items() if value is not None}


def release(root: Path, *shapes: dict[str, Any]) -> Path:
    """A root as the release unpacks it; 3D-FUTURE has no groups."""
    entries = []
    for i, held in enumerate(shapes):
        data, group = ("Objaverse", "000-001") if i % 2 == 0 else ("3D-FUTURE", "")
        name = "/".join(filter(None, ("objaverse-processed/merged_for_training_final", data, group, f"id{i}.npy")))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, np.array(held, dtype=object))
        entries.append({"dataset": data, "group": group, "id": f"id{i}", "data_path": f"/mnt/data/{name}"})
    (root / "meta_data/split").mkdir(parents=True, exist_ok=True)
    (root / "meta_data/split/train_all.json").write_text(json.dumps(entries))
    (root / "meta_data/gpt4_filtering.json").write_text("{}")
    return root


def released(**changes: Any) -> Manifest:
    """The shipped manifest with the miniature's sizes, and a teacher of words that needs no download."""
    found = load_manifest(SHIPPED)
    stored = StoredImages.model_validate({"name": "clip-bigg", "dim": 8, "views": 12, **changes})
    teachers = load_manifest(SHIPPED.parent / "demo.toml").features.teachers
    features = found.features.model_copy(update={"stored": (stored,), "teachers": teachers})
    return found.model_copy(update={"features": features, "sample": found.sample.model_copy(update={"num_points": 30})})


def test_what_was_exported_comes_back(exported: Path, small_store: Path, clip_config: Path, tmp_path: Path) -> None:
    """Features bit by bit, captions, classes, splits, points (as the export scales them) and colours to a rounding."""
    store = FeatureStore.create(tmp_path / "s.zarr")
    flow = Flow(read_manifest(tmp_path, clip_config), exported, store)
    results = flow.all()
    assert [r.kind for r in results] == ["points", "targets", "captions", "text"]
    assert not any(r.failed for r in results)
    assert not any(line.todo for line in report(Flow(flow.manifest, exported, store), 1))
    assert all(r.computed == 0 for r in Flow(flow.manifest, exported, store).all())

    first, second = FeatureStore.open(small_store), FeatureStore.open(tmp_path / "s.zarr")
    before, after = first.registry, second.registry
    rows = {uid.removeprefix("small/").split("/", 1)[1]: row for row, uid in enumerate(after.uid)}
    targets, own = second.targets("clip"), first.targets("tiny")
    assert targets.feat.shape == (1, 12, 2, 24) and targets.ok.all()
    assert targets.recipe["teacher"]["kind"] == "stored" and targets.recipe["teacher"]["field"] == "image_feat"
    captions, own_captions = second.captions(), first.captions()
    for row, uid in enumerate(before.uid):
        there = rows[uid]
        assert after.split[there] == before.split[row]
        assert after.categories[after.category[there]] == before.categories[before.category[row]]
        assert np.array_equal(targets.feat[0, there], own.feat[0, row])
        assert captions[there][1:] == own_captions[row][:2]  # the first text is a class prompt
        raw = np.asarray(first.points().xyz[row], np.float64)
        raw -= raw.mean(axis=0)
        raw /= np.linalg.norm(raw, axis=1).max()
        xyz = np.asarray(second.points().xyz[there])
        place = np.linalg.norm(raw[:, None] - xyz, axis=2).argmin(axis=1)
        assert np.allclose(xyz[place], raw, atol=1e-6)
        colors = np.asarray(second.points().color[there])[place].astype(int)
        assert np.abs(colors - np.asarray(first.points().color[row])).max() == 0
    assert second.text("tiny").captions.shape == (12, 3)


def test_the_shipped_manifest_reads_the_release(tmp_path: Path) -> None:
    """The lists' paths are another machine's; groups are no categories; what one shape lacks sets that shape aside."""
    short = shape(1, image_feat=np.zeros((11, 8), np.float32))
    infinite = shape(2, image_feat=np.full((12, 8), 1e9, np.float32))
    bare = shape(3, image_feat=None)
    wide = shape(4, image_feat=np.zeros((12, 9), np.float32))
    root = release(tmp_path / "root", shape(), short, infinite, bare, wide)
    store = FeatureStore.create(tmp_path / "s.zarr")
    found = released()
    results = {r.kind: r for r in Flow(found, root, store).all()}
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.registry.uid[:2] == ["Objaverse/000-001/id0", "3D-FUTURE/id1"]
    assert store.registry.categories == ["object"] and set(store.registry.split) == {"train"}
    assert not results["points"].failed
    failed = {uid[-3:]: failure.reason for uid, failure in results["targets"].failed.items()}
    assert "has 11 views of 12" in failed["id1"] and "not finite in float16" in failed["id2"]
    assert "no array of numbers 'image_feat'" in failed["id3"]
    assert "image_feat is 9 wide, the store's is 8" in failed["id4"] and len(failed) == 4
    assert store.captions()[0] == ["a chair", "one chair by a wall", "an office chair"]
    assert np.asarray(store.points().color[0])[0].tolist() == [0, 55, 255]
    assert store.targets().teacher == "clip-bigg" and store.targets().ok[0].tolist() == [True] + [False] * 4


def test_thumbnails_are_one_view(tmp_path: Path) -> None:
    root = release(tmp_path / "root", shape())
    store = FeatureStore.create(tmp_path / "s.zarr")
    Flow(released(field="thumbnail_feat", views=1), root, store).features()
    feat = FeatureStore.open(tmp_path / "s.zarr").targets().feat
    assert feat.shape == (1, 1, 1, 8)
    assert np.array_equal(feat[0, 0, 0], shape()["thumbnail_feat"].astype(np.float16))


def test_another_width_stops_the_run(exported: Path, tmp_path: Path) -> None:
    """A wrong dim would set aside every row of a data set of a million."""
    store = FeatureStore.create(tmp_path / "s.zarr")
    with pytest.raises(UserError, match=r"'clip' has dim = 512, image_feat in .* is 24 wide; set dim = 24"):
        Flow(read_manifest(tmp_path, dim=512), exported, store).features()


def test_fields_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two teachers share a name"):
        read_manifest(tmp_path, more='[[features.stored]]\nname = "tiny"\ndim = 3')
    with pytest.raises(UserError, match=r"features\.stored\.1\.field"):
        read_manifest(tmp_path, more='[[features.stored]]\nname = "x"\ndim = 3\nfield = "msft_caption"')
    path = tmp_path / "back.toml"
    other = MANIFEST.format(model="demo", dim=3, views=1, more="").split("[source]")[0] + (
        '[source]\nlayout = "shapenetpart"\n[features]\n{}[[features.teachers]]\nname = "demo"\nkind = "open_clip"\n'
        'model = "demo"\n[[captions]]\nkind = "stored"\n'
    )
    path.write_text(other.format('[[features.stored]]\nname = "x"\ndim = 3\n'))
    with pytest.raises(UserError, match=r"'features\.stored': files of layout 'shapenetpart' hold no features"):
        load_manifest(path)
    path.write_text(other.format(""))
    (tmp_path / "train_test_split").mkdir()
    for split in ("train", "val", "test"):
        entries = json.dumps([f"shape_data/04379243/{split}"])
        (tmp_path / f"train_test_split/shuffled_{split}_file_list.json").write_text(entries)
    (tmp_path / "04379243").mkdir()
    (tmp_path / "04379243/test.txt").touch()
    with pytest.raises(UserError, match="captions 'stored': files of layout 'shapenetpart' hold no texts"):
        Flow(load_manifest(path), tmp_path, FeatureStore.create(tmp_path / "s.zarr")).caption()


LISTS: dict[str, tuple[Any, str]] = {
    "no list": ({"a": 1}, "train.json: holds no list of shapes"),
    "no words": ([{"id": 1, "data_path": "a.npy"}], "train.json: entry 0: must have the words dataset, group, id"),
    "no id": ([{"data_path": "a.npy"}], "entry 0: must have the words"),
    "leaves the root": ([{"id": "a", "data_path": "../../a.npy"}], "entry 0: data_path: '../../a.npy' leaves the root"),
    "other machine": ([{"id": "a", "data_path": "/mnt/data/a.npy"}], "leaves the root"),
    "no npy": ([{"id": "a", "data_path": "a.pkl"}], "no reader for 'a.pkl'"),
    "nothing there": ([{"id": "a", "data_path": "a.npy"}], r"none of the listed files, such as a\.npy; mend --root"),
    "twice": ([{"id": "a", "data_path": "here.npy"}] * 2, "two shapes share the uid 'a'"),
}


@pytest.mark.parametrize("case", LISTS)
def test_bad_lists(case: str, tmp_path: Path) -> None:
    entries, words = LISTS[case]
    (tmp_path / "split").mkdir()
    (tmp_path / "here.npy").touch()
    for split in ("train", "test"):
        (tmp_path / f"split/{split}.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=words) as caught:
        list_shapes(read_manifest(tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


CLOUDS: dict[str, tuple[Any, str]] = {
    "attack": ({"xyz": Attack()}, "names 'posix.system'; only numpy arrays"),
    "no dict": ([1], "holds no dict"),
    "no points": (shape(xyz=None), "no array of numbers 'xyz'"),
    "words": (shape(xyz=np.array(["x"])), "no array of numbers 'xyz'"),
    "flat": (shape(xyz=np.zeros(3, np.float32), rgb=np.zeros(3, np.float32)), r"holds \[3\], not"),
    "colours of others": (shape(rgb=np.zeros((3, 3), np.float32)), r"rgb \[3, 3\] beside xyz \[30, 3\]; every"),
    "bytes as colours": (shape(rgb=np.full((30, 3), 100.0)), r"outside 0 to 1, up to 100: divide them by 255"),
    "whole bytes as colours": (shape(rgb=np.full((30, 3), 255, np.uint8)), r"outside 0 to 1, up to 255: divide them"),
    "negative colours": (shape(rgb=np.full((30, 3), -1.0)), r"rgb has values outside 0 to 1$"),
    "no number as colour": (shape(rgb=np.full((30, 3), np.nan)), "rgb holds values that are not finite$"),
}


@pytest.mark.parametrize("case", CLOUDS)
def test_bad_files_are_set_aside_with_a_line(case: str, tmp_path: Path) -> None:
    held, words = CLOUDS[case]
    boxed = np.empty((), dtype=object)
    boxed[()] = held
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(boxed, file)
    with pytest.raises(UserError, match=words) as caught:
        released().source.cloud(tmp_path, "a.npy")
    assert "a.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_stored_and_rendered_features_share_a_store(
    exported: Path, small_manifest: Path, clip_config: Path, tmp_path: Path
) -> None:
    """A teacher that looks for features to reuse meets keys that were computed from no views."""
    store = FeatureStore.create(tmp_path / "s.zarr")
    Flow(read_manifest(tmp_path, clip_config), exported, store).features()
    results = Flow(load_manifest(small_manifest), None, store, limit=2).all()
    assert not any(result.failed for result in results)
    assert sorted(FeatureStore.open(store.path).ref("small").targets) == ["tiny"]
