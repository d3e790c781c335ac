"""Miniature trees of the labelled data sets in their genuine layouts, and the shipped manifests to read them by."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from recon.pipeline.flow.manifest import Manifest, load_manifest

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"

Arrays = NDArray[Any]
OFF = "OFF{}4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 2\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


def manifest(name: str, **source: Any) -> Manifest:
    """A shipped manifest, as it is but for fields of its source and the teacher, which needs no download."""
    shipped = load_manifest(MANIFESTS / f"{name}.toml")
    teachers = load_manifest(MANIFESTS / "demo.toml").features.teachers
    features = shipped.features.model_copy(update={"teachers": teachers})
    return shipped.model_copy(update={"source": shipped.source.model_copy(update=source), "features": features})


def points(seed: int, count: int = 40, columns: int = 6) -> Arrays:
    values = np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)
    values[:, 3:6] /= np.linalg.norm(values[:, 3:6], axis=1, keepdims=True)
    return values


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_table(path: Path, values: Arrays, delimiter: str) -> None:
    put(path, "".join(delimiter.join(f"{value:.6f}" for value in line) + "\n" for line in values))


def put_h5(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def put_pickle(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


# ---- miniature trees


def off_tree(root: Path) -> None:
    for category, header in (("chair", "\n"), ("night_stand", "")):  # the second is the header glitch
        for number, split in enumerate(("train", "train", "test"), 1):
            put(root / category / split / f"{category}_{number:04d}.off", OFF.format(header))
    put(root / "README.txt", "no shape")


def text_tree(root: Path) -> None:
    names = {"train": ["chair_0001", "night_stand_0002"], "test": ["night_stand_0201", "chair_0890"]}
    for split, listed in names.items():
        put(root / f"modelnet40_{split}.txt", "\n".join(listed) + "\n")
        for name in listed:
            put_table(root / name.rpartition("_")[0] / f"{name}.txt", points(int(name[-4:])), ",")
    put(root / "modelnet40_shape_names.txt", "chair\nnight_stand\n")


def fps_tree(root: Path) -> None:
    for split, labels in (("train", [8, 23, 8]), ("test", [23])):
        clouds = [points(i) for i in range(len(labels))]
        values = [clouds, [np.array([label], np.int32) for label in labels]]
        put_pickle(root / f"modelnet40_{split}_40pts_fps.dat", values)


def hdf5_tree(root: Path) -> None:
    for name, labels in (("train0", [[8], [0]]), ("train1", [[39]]), ("test0", [[8]])):
        values = np.stack([points(i) for i in range(len(labels))])
        arrays = {"data": values[:, :, :3], "normal": values[:, :, 3:], "label": np.array(labels, np.uint8)}
        put_h5(root / f"ply_data_{name}.h5", **arrays, faceId=np.zeros((len(labels), 40), np.int32))
    put(root / "train_files.txt", "data/away/ply_data_train0.h5\ndata/away/ply_data_train1.h5\n")
    put(root / "test_files.txt", "C:\\data\\ply_data_test0.h5\n")


def scan_tree(root: Path) -> None:
    mask = np.where(np.arange(40) < 10, -1, 3)
    for folder in ("main_split", "main_split_nobg"):
        for split, labels in (("training", [0, 14, 4]), ("test", [14])):
            data = np.stack([points(i, columns=3) for i in range(len(labels))])
            arrays = {"data": data, "label": np.array(labels, np.int32)}
            if folder == "main_split":
                arrays["mask"] = np.tile(mask, (len(labels), 1))
            for suffix in ("", "_augmentedrot_scale75"):
                put_h5(root / folder / f"{split}_objectdataset{suffix}.h5", **arrays)


def part_tree(root: Path) -> None:
    lists = {"train": ["04225987/a1", "04379243/b1"], "val": ["04379243/b2"], "test": ["04379243/b3", "04225987/a2"]}
    for split, names in lists.items():
        entries = json.dumps([f"shape_data/{name}" for name in names])
        put(root / "train_test_split" / f"shuffled_{split}_file_list.json", entries)
        for seed, name in enumerate(names):
            label = np.arange(40) % 3 + (44 if name.startswith("04225987") else 47)
            put_table(root / f"{name}.txt", np.column_stack([points(seed), label]), " ")


def fold_tree(root: Path) -> None:
    for fold in range(10):
        samples = [(points(10 * fold + i), i % 2, (8, 23)[i % 2]) for i in range(6)]
        put_pickle(root / "2way_2shot" / f"{fold}.pkl", {"train": samples[:4], "test": samples[4:]})


TREES: dict[str, tuple[Callable[[Path], None], dict[str, Any], dict[str, int], set[str]]] = {
    "modelnet40": (off_tree, {}, {"train": 4, "test": 2}, {"chair", "night_stand"}),
    "modelnet10": (off_tree, {}, {"train": 4, "test": 2}, {"chair", "night_stand"}),
    "modelnet40_resampled": (text_tree, {}, {"train": 2, "test": 2}, {"chair", "night_stand"}),
    "modelnet40_fps": (fps_tree, {"points": 40}, {"train": 3, "test": 1}, {"chair", "night_stand"}),
    "modelnet40_hdf5": (hdf5_tree, {}, {"train": 3, "test": 1}, {"chair", "airplane", "xbox"}),
    "scanobjectnn_obj_bg": (scan_tree, {}, {"train": 3, "test": 1}, {"bag", "chair", "toilet"}),
    "scanobjectnn_obj_only": (scan_tree, {}, {"train": 3, "test": 1}, {"bag", "chair", "toilet"}),
    "scanobjectnn_pb_t50_rs": (scan_tree, {}, {"train": 3, "test": 1}, {"bag", "chair", "toilet"}),
    "shapenetpart": (part_tree, {}, {"train": 2, "val": 1, "test": 2}, {"Skateboard", "Table"}),
    "modelnet_fewshot": (
        fold_tree,
        {"way": 2, "shot": 2},
        {f"fold{i}-{part}": count for i in range(10) for part, count in (("train", 4), ("test", 2))},
        {"chair", "night_stand"},
    ),
}
