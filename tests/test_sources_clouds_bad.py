"""Labelled data sets that are damaged, incomplete or hostile: every fault is named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import list_shapes
from tests.cloud_trees import (
    OFF,
    TREES,
    fold_tree,
    fps_tree,
    hdf5_tree,
    manifest,
    off_tree,
    part_tree,
    points,
    put,
    put_h5,
    put_pickle,
    scan_tree,
    text_tree,
)


def spoil_text(root: Path, **files: str) -> None:
    text_tree(root)
    for name, text in files.items():
        put(root / f"modelnet40_{name}.txt", text)


def spoil_h5(name: str, **arrays: Any) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        hdf5_tree(root)
        base = {"data": np.zeros((2, 40, 3), np.float32), "label": np.zeros(2, np.int64)}
        put_h5(root / name, **{key: value for key, value in (base | arrays).items() if value is not None})

    return build


def cut_h5(root: Path) -> None:
    hdf5_tree(root)
    path = root / "ply_data_train1.h5"
    path.write_bytes(path.read_bytes()[:-200])


def linked_h5(root: Path) -> None:
    hdf5_tree(root)
    with h5py.File(root / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file["data"] = h5py.ExternalLink("/etc/passwd", "/data")


def raw_h5(root: Path) -> None:
    hdf5_tree(root)
    with h5py.File(root / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file.create_dataset("data", (1, 4, 3), "u1", external=[("/etc/hostname", 0, 12)])


def virtual_h5(root: Path) -> None:
    hdf5_tree(root)
    layout = h5py.VirtualLayout((1, 4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(root / "ply_data_train0.h5"), "data", (1, 4, 3))
    with h5py.File(root / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file.create_virtual_dataset("data", layout)


def huge_h5(root: Path) -> None:
    """Declares a petabyte of labels, and holds none."""
    hdf5_tree(root)
    with h5py.File(root / "ply_data_train1.h5", "w") as file:
        file.create_dataset("data", (1 << 45, 40, 3), "f4", chunks=(1, 40, 3))
        file.create_dataset("label", (1 << 45,), "i8", chunks=(1024,))


def fps_of(value: Any) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        fps_tree(root)
        put_pickle(root / "modelnet40_test_40pts_fps.dat", value)

    return build


def without(build: Callable[[Path], None], *names: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        build(root)
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return spoil


def part_list(entries: Any) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        part_tree(root)
        put(root / "train_test_split/shuffled_val_file_list.json", json.dumps(entries))

    return build


BAD_LISTINGS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any], str]] = {
    "no mesh folders": ("modelnet40", {}, lambda r: put(r / "x/a.off", "OFF"), "it must hold a folder a class"),
    "empty class": ("modelnet40", {}, without(off_tree, "chair/train", "chair/test/chair_0003.off"), "chair: no .off"),
    "uid twice": (
        "modelnet40",
        {},
        lambda r: (off_tree(r), put(r / "chair/test/chair_0001.off", OFF)),
        "share the uid 'chair_0001'",
    ),
    "no list": ("modelnet40_resampled", {}, without(text_tree, "modelnet40_test.txt"), "no list .*modelnet40_test.txt"),
    "name twice": (
        "modelnet40_resampled",
        {},
        lambda r: spoil_text(r, test="chair_0890\nchair_0001\n"),
        r"modelnet40_test.txt:2: 'chair_0001' is in modelnet40_train.txt:1 already",
    ),
    "odd name": (
        "modelnet40_resampled",
        {},
        lambda r: spoil_text(r, test="../a_1\n"),
        "test.txt:1: .* is not named <class>",
    ),
    "unknown class": (
        "modelnet40_resampled",
        {},
        lambda r: spoil_text(r, train="chiar_0001\n"),
        r"train.txt:1: class 'chiar' is unknown \(did you mean 'chair'",
    ),
    "lists without files": (
        "modelnet40_resampled",
        {},
        without(text_tree, "chair", "night_stand"),
        "none of the clouds",
    ),
    "no pickle": ("modelnet40_fps", {"points": 40}, without(fps_tree, "modelnet40_test_40pts_fps.dat"), "no such file"),
    "pickle of others": ("modelnet40_fps", {"points": 40}, fps_of({"a": 1}), "no file of this layout"),
    "clouds without labels": ("modelnet40_fps", {"points": 40}, fps_of([[points(0)], []]), "1 clouds and 0 labels"),
    "unknown label": (
        "modelnet40_fps",
        {"points": 40},
        fps_of([[points(0)], [np.array([40])]]),
        r"fps.dat, shape 0: label 40, but the manifest names classes 0 to 39; mend its `classes`",
    ),
    "no file list": ("modelnet40_hdf5", {}, without(hdf5_tree, "train_files.txt"), "no list .*train_files.txt"),
    "empty file list": (
        "modelnet40_hdf5",
        {},
        lambda r: (hdf5_tree(r), put(r / "test_files.txt", "\n")),
        "test_files.txt: empty",
    ),
    "listed file not there": (
        "modelnet40_hdf5",
        {},
        without(hdf5_tree, "ply_data_train1.h5"),
        "no file .*ply_data_train1.h5, which train_files.txt names",
    ),
    "path out of the root": (
        "modelnet40_hdf5",
        {"files": {"train": "../a.h5"}},
        hdf5_tree,
        r"'source.files.train': '../a.h5' leaves the root",
    ),
    "no h5": ("scanobjectnn_obj_bg", {}, without(scan_tree, "main_split/test_objectdataset.h5"), "names it for 'test'"),
    "h5 cut off": ("modelnet40_hdf5", {}, cut_h5, "ply_data_train1.h5: no readable HDF5 file .*truncated"),
    "h5 that is text": (
        "modelnet40_hdf5",
        {},
        lambda r: (hdf5_tree(r), put(r / "ply_data_test0.h5", "x")),
        "no readable HDF5",
    ),
    "no data": ("modelnet40_hdf5", {}, spoil_h5("ply_data_test0.h5", data=None), "no array 'data'; it holds label"),
    "no mask": (
        "scanobjectnn_obj_bg",
        {"files": {"test": "main_split_nobg/test_objectdataset.h5"}},
        scan_tree,
        "no array 'mask'; it holds data, label",
    ),
    "flat data": (
        "modelnet40_hdf5",
        {},
        spoil_h5("ply_data_test0.h5", data=np.zeros((2, 40))),
        r"'data' is \[2, 40\], not \[shapes, points, 3\]",
    ),
    "other labels": (
        "modelnet40_hdf5",
        {},
        spoil_h5("ply_data_test0.h5", label=np.zeros(3, np.int64)),
        r"'label' is \[3\] beside data \[2, 40, 3\]",
    ),
    "words": (
        "modelnet40_hdf5",
        {},
        spoil_h5("ply_data_test0.h5", label=np.array([b"a", b"b"])),
        "'label' is no array of numbers",
    ),
    "negative label": (
        "modelnet40_hdf5",
        {},
        spoil_h5("ply_data_test0.h5", label=np.array([0, -1])),
        "ply_data_test0.h5, row 1: label -1",
    ),
    "linked data": ("modelnet40_hdf5", {}, linked_h5, "'data' is a link to elsewhere|no array 'data'"),
    "raw data of another file": ("modelnet40_hdf5", {}, raw_h5, "'data' lies in other files"),
    "virtual data": ("modelnet40_hdf5", {}, virtual_h5, "'data' lies in other files"),
    "a petabyte": ("modelnet40_hdf5", {}, huge_h5, r"'data' is \[35184372088832, 40, 3\]"),
    "no part list": (
        "shapenetpart",
        {},
        without(part_tree, "train_test_split/shuffled_val_file_list.json"),
        "no list .*shuffled_val_file_list.json",
    ),
    "part list of numbers": ("shapenetpart", {}, part_list([1]), "entry 0 is '1', not shape_data"),
    "part list that climbs": (
        "shapenetpart",
        {},
        part_list(["shape_data/04379243/.."]),
        "not shape_data/<synset>/<id>",
    ),
    "unknown synset": ("shapenetpart", {}, part_list(["shape_data/00000001/a"]), "00000001 is the synset of none"),
    "part lists without files": ("shapenetpart", {}, without(part_tree, "04225987", "04379243"), "none of the clouds"),
    "no fold": (
        "modelnet_fewshot",
        {"way": 2, "shot": 2},
        without(fold_tree, "2way_2shot/9.pkl"),
        "2way_2shot/9.pkl: no such file",
    ),
    "fold of others": (
        "modelnet_fewshot",
        {"way": 2, "shot": 2},
        lambda r: (fold_tree(r), put_pickle(r / "2way_2shot/3.pkl", {"train": []})),
        "3.pkl: holds no dict with the lists train and test",
    ),
    "pairs in a fold": (
        "modelnet_fewshot",
        {"way": 2, "shot": 2},
        lambda r: (fold_tree(r), put_pickle(r / "2way_2shot/3.pkl", {"train": [(1, 2)], "test": []})),
        "3.pkl: train 0 is no triple",
    ),
}


@pytest.mark.parametrize("case", BAD_LISTINGS)
def test_bad_listings_say_what_is_wrong_in_one_line(case: str, tmp_path: Path) -> None:
    name, changes, build, words = BAD_LISTINGS[case]
    build(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        list_shapes(manifest(name, **changes), tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", TREES)
def test_a_wrong_root_is_named(name: str, tmp_path: Path) -> None:
    for root in (tmp_path / "gone", tmp_path):
        with pytest.raises(UserError, match=str(root)) as caught:
            list_shapes(manifest(name), root)
        assert "\n" not in str(caught.value)


BAD_CLOUDS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any], str, str]] = {
    "missing": ("modelnet40_resampled", {}, text_tree, "chair/chair_0002.txt", "no such file"),
    "columns": (
        "modelnet40_resampled",
        {},
        lambda r: put(r / "chair/chair_0001.txt", "1,2,3,0,0,1\n1,2,3\n"),
        "chair/chair_0001.txt",
        "chair_0001.txt:2: 3 columns where 6 are expected",
    ),
    "all columns": (
        "modelnet40_resampled",
        {},
        lambda r: put(r / "chair/chair_0001.txt", "1,2,3\n1,2,3\n"),
        "chair/chair_0001.txt",
        "chair_0001.txt:1: 3 columns where 6",
    ),
    "words": (
        "shapenetpart",
        {},
        lambda r: put(r / "04379243/a.txt", "1 2 3 0 0 1 47\n\n1 2 3 0 zero 1 47\n"),
        "04379243/a.txt",
        "a.txt:3: 'zero' is no number",
    ),
    "nothing": ("shapenetpart", {}, lambda r: put(r / "04379243/a.txt", "\n"), "04379243/a.txt", "holds no points"),
    "half a label": (
        "shapenetpart",
        {},
        lambda r: put(r / "04379243/a.txt", "1 2 3 0 0 1 47.5\n"),
        "04379243/a.txt",
        "point 0: label 47.5; parts of Table are 47 to 49",
    ),
    "other number of points": (
        "modelnet40_fps",
        {"points": 40},
        fps_of([[points(0, 39)], [np.array([0])]]),
        "modelnet40_test_40pts_fps.dat:0",
        "no array of 40 points",
    ),
    "columns in a pickle": (
        "modelnet40_fps",
        {"points": 40},
        fps_of([[np.zeros((40, 5))], [np.array([0])]]),
        "modelnet40_test_40pts_fps.dat:0",
        r"holds \[40, 5\], not",
    ),
    "words in a pickle": (
        "modelnet40_fps",
        {"points": 40},
        fps_of([[np.full((40, 3), "x")], [np.array([0])]]),
        "modelnet40_test_40pts_fps.dat:0",
        "not numbers",
    ),
    "list in a fold": (
        "modelnet_fewshot",
        {"way": 2, "shot": 2},
        lambda r: put_pickle(r / "2way_2shot/0.pkl", {"train": [([1], 0, 0)], "test": []}),
        "2way_2shot/0.pkl:train:0",
        "is no array",
    ),
}


@pytest.mark.parametrize("case", BAD_CLOUDS)
def test_bad_clouds_are_named(case: str, tmp_path: Path) -> None:
    """A MeshError is a UserError: the row is set aside with these words, the others go on."""
    name, changes, build, reference, words = BAD_CLOUDS[case]
    build(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        manifest(name, **changes).source.cloud(tmp_path, reference)
    assert "\n" not in str(caught.value)


def test_problems_that_do_not_stop_a_run(tmp_path: Path) -> None:
    """What `check` reports beside counts: shapes in two lists, files in none, classes without shapes."""
    root = tmp_path / "part"
    part_list(["shape_data/04379243/b2", "shape_data/04379243/b2", "shape_data/04379243/b3"])(root)
    put(root / "04225987/extra.txt", "")
    source = manifest("shapenetpart").source
    assert {item.uid: item.split for item in source.shapes(root)}["04379243-b3"] == "test"
    assert source.problems(root) == [
        "the val list names 1 shapes twice: 04379243/b2",
        "1 shapes of the val list are in test too, and taken there: 04379243/b3",
        "1 clouds are in no list: 04225987/extra",
    ]
    root = tmp_path / "text"
    spoil_text(root, train="chair_0001\n", shape_names="chair\nnight_stand\nxbox\n")
    assert manifest("modelnet40_resampled").source.problems(root) == [
        "1 clouds are in no list: night_stand/night_stand_0002.txt",
        "1 classes have no shape: xbox",
    ]
    root = tmp_path / "off"
    off_tree(root)
    put(root / "chair/train/sofa_0001.off", OFF)
    (root / "night_stand/test/night_stand_0003.off").unlink()
    assert manifest("modelnet40").source.problems(root) == [
        "1 files are not named after their class: chair/train/sofa_0001.off",
        "1 classes have nothing in test: night_stand",
    ]
    fold_tree(tmp_path / "folds")
    (tmp_path / "folds/2way_2shot").rename(tmp_path / "folds/2way_1shot")
    assert (
        "0.pkl: 4 training shapes of 2 classes"
        in manifest("modelnet_fewshot", way=2, shot=1).source.problems(tmp_path / "folds")[0]
    )
