"""Labelled data sets: each shipped manifest on a miniature tree in the genuine layout, and on the genuine files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import list_shapes
from recon.pipeline.flow.run import Flow
from recon.pipeline.sources.clouds import read_table
from recon.pipeline.sources.shapenetpart import CATEGORIES, PARTS
from recon.pipeline.store import FeatureStore
from tests.cloud_trees import (
    TREES,
    fps_tree,
    manifest,
    off_tree,
    part_tree,
    points,
    put,
    put_pickle,
    put_table,
    scan_tree,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
FORMATS, METADATA = SHARED / "formats", SHARED / "metadata"
genuine = pytest.mark.skipif(not FORMATS.is_dir(), reason="needs the shared genuine files")


@pytest.mark.parametrize("name", TREES)
def test_each_manifest_lists_and_reads_its_layout(name: str, tmp_path: Path) -> None:
    """The shipped file, not a copy of it: splits, classes, and every shape readable in the project's terms."""
    build, changes, splits, classes = TREES[name]
    build(tmp_path)
    found = manifest(name, **changes)
    shapes = list_shapes(found, tmp_path)
    assert Counter(shape.split for shape in shapes) == splits
    assert {shape.category for shape in shapes} == classes
    assert found.source.problems(tmp_path) == []
    assert found.licence and found.obtain and found.units and found.root_variable
    for shape in shapes:
        assert shape.fingerprint != "missing"
        if found.source.has_meshes:
            assert len(found.source.mesh(tmp_path, shape.source).primitives[0].faces) == 4
        else:
            cloud = found.source.cloud(tmp_path, shape.source)
            assert cloud.xyz.shape == (40, 3) and cloud.xyz.dtype == np.float32 and cloud.xyz.flags.c_contiguous


@pytest.mark.parametrize("name", [name for name in TREES if manifest(name).source.has_clouds])
def test_clouds_keep_the_files_orientation(name: str, tmp_path: Path) -> None:
    """Published weights were trained on these numbers as they lie in the files: bit by bit, in order."""
    build, changes, _, _ = TREES[name]
    build(tmp_path)
    found = manifest(name, **changes)
    first = list_shapes(found, tmp_path)[0]
    cloud = found.source.cloud(tmp_path, first.source)
    seed = {"modelnet40_resampled": 1}.get(name, 0)
    expected = points(seed, columns=3 if name.startswith("scan") else 6)
    as_text = name in ("modelnet40_resampled", "shapenetpart")
    assert np.allclose(cloud.xyz, expected[:, :3], atol=1e-6 if as_text else 0, rtol=0)
    if cloud.normal is not None:
        assert np.allclose(cloud.normal, expected[:, 3:], atol=1e-6 if as_text else 0, rtol=0)
    assert (cloud.normal is None) == name.startswith("scan")


def test_off_meshes_are_turned(tmp_path: Path) -> None:
    """+Z of the file is up and -Y is the front, so the tetrahedron's corner at z = 2 comes to y = 2."""
    off_tree(tmp_path)
    source = manifest("modelnet40").source
    vertices = source.mesh(tmp_path, "chair/train/chair_0001.off").primitives[0].vertices
    assert np.allclose(vertices, [[0, 0, 0], [1, 0, 0], [0, 0, -1], [0, 2, 0]])


def test_asked_for_axes_turn_points_and_normals(tmp_path: Path) -> None:
    fps_tree(tmp_path)
    turned = manifest("modelnet40_fps", points=40, up="+Z", front="-Y").source.cloud(
        tmp_path, "modelnet40_train_40pts_fps.dat:0"
    )
    x, y, z, *normal = points(0).T
    assert turned.normal is not None
    assert np.allclose(turned.xyz.T, [x, z, -y]) and np.allclose(turned.normal.T, [normal[0], normal[2], -normal[1]])


def test_masks_become_parts(tmp_path: Path) -> None:
    scan_tree(tmp_path)
    cloud = manifest("scanobjectnn_obj_bg").source.cloud(tmp_path, "main_split/training_objectdataset.h5:1")
    assert cloud.parts == ("background", "object")
    assert cloud.part is not None and cloud.part.tolist() == [0] * 10 + [1] * 30
    assert (
        manifest("scanobjectnn_obj_only").source.cloud(tmp_path, "main_split_nobg/test_objectdataset.h5:0").part is None
    )


# ---- into the store


def test_labels_parts_and_splits_reach_the_store(tmp_path: Path) -> None:
    """The whole way: points as stored, part ids with them, categories and splits, words embedded; no mesh, no view."""
    part_tree(tmp_path / "root")
    put(tmp_path / "root" / "04225987/a1.txt", "0 0 0 0 0 1 44\n0 0 1 0 0 1 49\n")  # a part of another category
    found = manifest("shapenetpart")
    small = found.model_copy(update={"sample": found.sample.model_copy(update={"num_points": 40})})
    store = FeatureStore.create(tmp_path / "s.zarr")
    results = Flow(small, tmp_path / "root", store).all()
    assert [result.kind for result in results] == ["points", "text"]
    (uid, failure), *others = results[0].failed.items()
    assert uid == "04225987-a1" and not others
    assert "point 1: label 49; parts of Skateboard are 44 to 46" in failure.reason

    store = FeatureStore.open(tmp_path / "s.zarr")
    registry, clouds = store.registry, store.points()
    rows = registry.numbers("shapenetpart")
    row = rows["04379243-b2"]
    assert registry.split[row] == "val" and registry.categories[registry.category[row]] == "Table"
    # the store shuffles points: each must have kept its own label
    xyz = np.asarray(clouds.xyz[row])
    place = np.linalg.norm(points(0)[:, None, :3] - xyz, axis=2).argmin(axis=1)
    assert sorted(place) == list(range(40)) and np.allclose(xyz[place], points(0)[:, :3], atol=1e-6)
    assert np.array_equal(np.asarray(clouds.part[row])[place], np.arange(40) % 3 + 47)
    assert np.asarray(clouds.ok)[row] and not np.asarray(clouds.ok)[rows[uid]]
    assert store.recipe("points", clouds.key)["clouds"]["parts"][47:] == ["Table 0", "Table 1", "Table 2"]
    text = store.text("demo")
    assert (text.class_prompts[registry.category[row]] >= 0).all()


def test_a_changed_file_is_done_again(tmp_path: Path) -> None:
    """Pickles and HDF5 files are kept open; another file of the same name must not be taken for the first."""
    fps_tree(tmp_path)
    source = manifest("modelnet40_fps", points=40).source
    path = "modelnet40_train_40pts_fps.dat"
    before = {item.uid: item.fingerprint for item in source.shapes(tmp_path)}
    put_pickle(tmp_path / path, [[points(7)], [np.array([0])]])
    after = {item.uid: item.fingerprint for item in source.shapes(tmp_path)}
    assert len(after) == 2 and after["train-00000"] != before["train-00000"]
    assert np.array_equal(source.cloud(tmp_path, f"{path}:0").xyz, points(7)[:, :3])


# ---- few-shot folds of one's own


def pool_tree(root: Path) -> None:
    """Six classes with five training and four test shapes each."""
    for split, numbers in (("train", range(1, 6)), ("test", range(6, 10))):
        names = [f"class_{letter}_{number:04d}" for letter in "abcdef" for number in numbers]
        put(root / f"modelnet40_{split}.txt", "\n".join(names) + "\n")
        for name in names:
            put_table(root / name.rpartition("_")[0] / f"{name}.txt", points(1, count=8), ",")


def folds(root: Path, **changes: Any) -> dict[str, list[str]]:
    pool = {"layout": "modelnet_text"}
    fields = {"layout": "fewshot", "way": 3, "shot": 2, "tests": 3, "folds": 4, "pool": pool, **changes}
    found: dict[str, list[str]] = {}
    for item in type(manifest("modelnet_fewshot").source).model_validate(fields).shapes(root):
        found.setdefault(str(item.split), []).append(item.uid.split("/")[1])
    return found


def test_drawn_folds(tmp_path: Path) -> None:
    """Same seed, same folds; more folds leave the first as they are; train and test of a fold share classes only."""
    pool_tree(tmp_path)
    drawn = folds(tmp_path)
    assert drawn == folds(tmp_path) and drawn != folds(tmp_path, seed=1)
    assert {split: names for split, names in folds(tmp_path, folds=6).items() if split in drawn} == drawn
    for fold in range(4):
        train, test = drawn[f"fold{fold}-train"], drawn[f"fold{fold}-test"]
        per_class = [Counter(name.rpartition("_")[0] for name in names) for names in (train, test)]
        assert set(per_class[0].values()) == {2} and set(per_class[1].values()) == {3}
        assert len(per_class[0]) == 3 and per_class[0].keys() == per_class[1].keys()
        assert not set(train) & set(test)
    with pytest.raises(UserError, match=r"7 way wants that many classes .* the pool has 6 of 6; lower way"):
        folds(tmp_path, way=7)
    with pytest.raises(UserError, match="the pool has 0 of 6"):
        folds(tmp_path, shot=6)


def test_drawn_folds_read_from_their_pool(tmp_path: Path) -> None:
    pool_tree(tmp_path)
    fields = {"layout": "fewshot", "way": 2, "shot": 1, "tests": 1, "pool": {"layout": "modelnet_text"}}
    source = type(manifest("modelnet_fewshot").source).model_validate(fields)
    first = source.shapes(tmp_path)[0]
    assert np.allclose(source.cloud(tmp_path, first.source).xyz, points(1, count=8)[:, :3], atol=1e-6)


# ---- the genuine files


@genuine
def test_genuine_text_clouds(tmp_path: Path) -> None:
    names = ["chair_0391", "cup_0028", "lamp_0043"]
    put(tmp_path / "modelnet40_train.txt", "\n".join(names[:2]))
    put(tmp_path / "modelnet40_test.txt", names[2])
    for name in names:
        (tmp_path / name.split("_")[0]).symlink_to(FORMATS / "modelnet40_normal_resampled" / name.split("_")[0])
    source = manifest("modelnet40_resampled").source
    for item in source.shapes(tmp_path):
        cloud = source.cloud(tmp_path, item.source)
        assert item.category == item.uid.split("_")[0] and len(cloud.xyz) == 10000
        assert cloud.normal is not None and np.allclose(np.linalg.norm(cloud.normal, axis=1), 1, atol=1e-2)
        assert np.allclose(np.linalg.norm(cloud.xyz, axis=1).max(), 1, atol=1e-3)


@genuine
def test_genuine_meshes_face_the_front(tmp_path: Path) -> None:
    """What is highest of a chair or toilet is its back, which is behind: that is how the manifest's axes were found."""
    for name in ("chair_0001", "chair_0002", "toilet_0001"):
        target = tmp_path / name.split("_")[0] / "train" / f"{name}.off"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FORMATS / "modelnet_off" / f"{name}.off", target)
    found = manifest("modelnet40").source
    shapes = found.shapes(tmp_path)
    assert [item.category for item in shapes] == ["chair", "chair", "toilet"]
    for item in shapes:
        mesh = found.mesh(tmp_path, item.source)
        vertices = np.concatenate([p.vertices for p in mesh.primitives])
        top = vertices[vertices[:, 1] > np.quantile(vertices[:, 1], 0.9)]
        assert top[:, 2].mean() < (vertices[:, 2].min() + vertices[:, 2].max()) / 2


@genuine
def test_genuine_hdf5() -> None:
    source = manifest("modelnet40_hdf5", files={"test": "test_model.h5"}).source
    shapes = source.shapes(FORMATS / "modelnet_hdf5")
    assert [item.category for item in shapes] == ["bookshelf", "bed", "airplane", "bench", "bathtub", "bottle"]
    assert source.cloud(FORMATS / "modelnet_hdf5", shapes[5].source).xyz.shape == (2048, 3)


@genuine
def test_genuine_parts() -> None:
    root = FORMATS / "shapenetpart" / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    source = manifest("shapenetpart").source
    shapes = {item.uid: item for item in source.shapes(root)}
    assert sorted(Counter(item.category for item in shapes.values()).items()) == [("Skateboard", 2), ("Table", 1)]
    missing = [uid for uid, item in shapes.items() if item.fingerprint == "missing"]
    assert missing == ["04225987-212e0563473156e255483301a044235"]
    clouds = {name: source.cloud(root, name) for name in ("04225987/1ad8d7573dc57ebc247a956ed3779e34.txt",)}
    clouds |= {uid: source.cloud(root, item.source) for uid, item in shapes.items() if uid not in missing}
    held = {name: sorted(set(cloud.part.tolist())) for name, cloud in clouds.items() if cloud.part is not None}
    assert list(held.values()) == [[45], [45], [47, 48, 49]]
    assert "names 1 shapes twice: 04225987/1c8d5e05c3faa05861be5ced44bc18ac" in source.problems(root)[0]


@pytest.mark.skipif(not METADATA.is_dir(), reason="needs the shared lists")
def test_tables_are_the_official_ones() -> None:
    """Class names and part ids are copied into manifests and code: a slip there renames every label."""
    modelnet = (METADATA / "modelnet40_shape_names.txt").read_text().split()
    for name in ("modelnet40_fps", "modelnet40_hdf5", "modelnet_fewshot"):
        assert list(manifest(name).source.classes) == modelnet  # type: ignore[union-attr]
    scan = (METADATA / "scanobjectnn_classes.txt").read_text().split()
    for name in ("obj_bg", "obj_only", "pb_t50_rs"):
        assert list(manifest(f"scanobjectnn_{name}").source.classes) == scan  # type: ignore[union-attr]
    parts = json.loads((METADATA / "shapenetpart_parts.json").read_text())
    named = {name: (entry["synset"], len(entry["parts"])) for name, entry in parts.items()}
    assert {name: (synset, count) for synset, name, count in CATEGORIES} == named
    for name, entry in parts.items():
        assert [PARTS[i] for i in entry["parts"]] == [f"{name} {i}" for i in range(len(entry["parts"]))]
    for name in ("modelnet40", "modelnet40_resampled", "modelnet40_fps", "modelnet10"):
        prefix = name.split("_")[0]
        lists = {split: len((METADATA / f"{prefix}_{split}.txt").read_text().split()) for split in ("train", "test")}
        assert manifest(name).expected == lists


def test_tables_of_numbers(tmp_path: Path) -> None:
    """Blank lines and comments: the first are passed over, the second are no numbers."""
    path = put(tmp_path / "a.txt", "1 2\n\n3 4\n")
    assert read_table(path, 2, None).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match=r"a\.txt:2: '#' is no number"):
        read_table(put(tmp_path / "a.txt", "1 2\n# 3\n"), 2, None)
