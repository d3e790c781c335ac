"""OpenShape's files in miniature and in their genuine layout: the ensemble's four sources and three evaluation sets.

All of one shape lies in one direction of a space of few dimensions, a direction a category: pictures, words and names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM, VIEWS, POINTS = 16, 12, 96
LVIS = ("armchair", "banana", "teddy_bear")
MODELNET = ("airplane", "chair", "night_stand")
SCANS = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)  # fmt: skip
MERGED = "objaverse-processed/merged_for_training_final"
SOURCES = {"Objaverse": "000-001", "ShapeNet": "03001627", "ABO": "0", "3D-FUTURE": ""}

Array = NDArray[Any]


def direction(name: str, seed: int = 0, dim: int = DIM) -> Array:
    """[dim] float32 of a category, with a little of its own for every seed but 0."""
    drawn = np.random.default_rng([*name.encode()]).normal(size=dim)
    own = np.random.default_rng([seed, *name.encode()]).normal(size=dim) if seed else 0.0
    return np.asarray(drawn + 0.2 * own, np.float32)


def cloud(seed: int, count: int = POINTS) -> Array:
    values: Array = np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)
    return values


def colors(seed: int, count: int = POINTS) -> Array:
    values: Array = np.random.default_rng(seed + 1000).uniform(0, 1, (count, 3)).astype(np.float32)
    return values


def shape(name: str, seed: int, thumbnail: bool, dim: int = DIM) -> dict[str, Any]:
    """A file of the ensemble; only Objaverse's have thumbnails."""

    def said(number: int, texts: int, *forms: str) -> list[dict[str, Array]]:
        return [{form: direction(name, 100 * seed + number + i, dim)[None] for form in forms} for i in range(texts)]

    both = ("original", "prompt_avg")
    return {
        "dataset": "", "group": "", "id": "",
        "xyz": cloud(seed), "rgb": colors(seed),
        "image_feat": np.stack([direction(name, 100 * seed + view + 1, dim) for view in range(VIEWS)]),
        "thumbnail_feat": direction(name, 100 * seed + 50, dim) if thumbnail else np.array([]),
        "text": [name, f"a {name}"], "text_feat": said(60, 2, *both),
        "blip_caption": f"there is a {name}", "blip_caption_feat": said(70, 1, *both)[0],
        "msft_caption": f"a close up of a {name}", "msft_caption_feat": said(80, 1, *both)[0],
        "retrieval_text": [f"{name} number {seed}", f"old {name}"], "retrieval_text_feat": said(90, 2, "original"),
    }  # fmt: skip


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        np.save(path, value, allow_pickle=True)


def entry(source: str, uid: str, held: dict[str, Any], root: Path) -> dict[str, str]:
    """Put a shape's file and return its line of a list; 3D-FUTURE has no groups."""
    group = SOURCES[source]
    path = "/".join(filter(None, (MERGED, source, group, f"{uid}.npy")))
    put(root / path, held | {"dataset": source, "group": group, "id": uid})
    return {"dataset": source, "group": group, "id": uid, "data_path": f"/mnt/data/{path}"}


def ensemble(root: Path, each: int = 4, dim: int = DIM) -> Path:
    """`each` shapes a source under train_all.json, and GPT-4's opinion of Objaverse's texts."""
    entries = []
    for source in SOURCES:
        for number in range(each):
            name, uid = LVIS[number % len(LVIS)], f"{source.lower()}{number}"
            entries.append(entry(source, uid, shape(name, len(entries) + 1, source == "Objaverse", dim), root))
    put(root / "meta_data/split/train_all.json", entries)
    flags = {line["id"]: {"flag": "N" if at == 1 else "Y"} for at, line in enumerate(entries) if at < each}
    put(root / "meta_data/gpt4_filtering.json", flags)
    return root


def class_file(names: tuple[str, ...], dim: int = DIM) -> dict[str, dict[str, Array]]:
    """cat_name_pt_feat.npy."""
    return {name: {"open_clip_text_feat": direction(name, dim=dim)[None], "clip_text_feat": np.ones((1, 3))} for name in names}  # noqa: E501  # fmt: skip


def objaverse_lvis(root: Path, each: int = 2, dim: int = DIM) -> Path:
    """Objaverse's files again under LVIS's names, with a list of its own."""
    listed = []
    for number, name in enumerate(name for name in reversed(LVIS) for _ in range(each)):
        uid = f"lvis{number}"
        line = entry("Objaverse", uid, shape(name, 500 + number, True, dim), root)
        listed.append({"uid": uid, "group": line["group"], "category": name, "data_path": line["data_path"]})
    put(root / "meta_data/split/lvis.json", listed)
    put(root / "meta_data/lvis_cat_name_pt_feat.npy", np.stack([direction(name, dim=dim) for name in sorted(LVIS)]))
    return root


def modelnet40(root: Path, each: int = 2, dim: int = DIM) -> Path:
    """One grey, 100 of 255, as published; the list's order is not that of the classes."""
    listed, packed = [], []
    for number in range(each):
        for name in MODELNET:
            listed.append({"name": f"{name}_{number:04d}", "category": name})
            packed.append({"xyz": cloud(len(packed) + 700), "rgb": np.full((POINTS, 3), 100.0)})
    put(root / "meta_data/modelnet40/test_split.json", listed)
    put(root / "meta_data/modelnet40/test_pc.npy", packed)
    put(root / "meta_data/modelnet40/cat_name_pt_feat.npy", class_file(MODELNET[::-1], dim))
    return root


def scanobjectnn(root: Path, each: int = 1, dim: int = DIM) -> Path:
    """Clouds and labels, no colours."""
    labels = np.arange(len(SCANS) * each) % len(SCANS)
    clouds = np.stack([cloud(900 + at, POINTS) for at in range(len(labels))])
    put(root / "meta_data/scanobjectnn/xyz_label.npy", {"xyz": clouds, "label": labels})
    put(root / "meta_data/scanobjectnn/cat_name_pt_feat.npy", class_file(SCANS, dim))
    return root


EVALUATION = {
    "objaverse_lvis": (objaverse_lvis, LVIS),
    "modelnet40_openshape": (modelnet40, MODELNET),
    "scanobjectnn_openshape": (scanobjectnn, SCANS),
}
"""Manifest -> what builds its files, and its categories."""
SMALLER = {"points = 10000": f"points = {POINTS}", "points = 2048": f"points = {POINTS}", "dim = 1280": f"dim = {DIM}"}
"""Settings of the shipped manifests that a miniature is too small for."""
