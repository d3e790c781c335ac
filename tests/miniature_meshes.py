"""Miniatures of the data sets with meshes, in their genuine layouts; a builder is named like its manifest."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.meshfile import concatenate
from recon.pipeline.sources.layouts import AnySource

AIRPLANE, CHAIR, CAMERA = "02691156", "03001627", "02942699"

# A wedge in ShapeNetCore v2's axes: up +Y, its single tip in front, at -Z, so that any wrong turn shows.
WEDGE = np.array([[-1, 0, 1], [1, 0, 1], [1, 0.5, 1], [-1, 0.5, 1], [0, 0.1, -2]], float)
FACES = ((1, 2, 3), (1, 3, 4), (1, 5, 2), (2, 5, 3), (3, 5, 4), (4, 5, 1))
TURNED = np.array([[1, 0, -1], [-1, 0, -1], [-1, 0.5, -1], [1, 0.5, -1], [0, 0.1, 2]], float)  # the tip at +Z
WEDGE_V1 = np.stack([-WEDGE[:, 2], WEDGE[:, 1], WEDGE[:, 0]], 1)  # the tip at +X

OBJECTS = tuple(f"{i:032x}" for i in range(4))  # uids; the last one's file is not there


def write_obj(path: Path, vertices: np.ndarray = WEDGE, texture: str = "") -> None:
    """texture: as the material names it, seen from the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"mtllib {path.stem}.mtl", *(f"v {x} {y} {z}" for x, y, z in vertices)]
    lines += [f"vt {x / 4 + 0.5} {y}" for x, y, _ in vertices]
    lines += ["usemtl skin", *(f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in FACES)]
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text("newmtl skin\nKd 0.8 0.2 0.1\n" + (f"map_Kd {texture}\n" if texture else ""))
    if texture:
        picture = path.parent / texture
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (200, 30, 30)).save(picture)


def write_glb(path: Path) -> None:
    import trimesh

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(trimesh.Trimesh(TURNED, np.array(FACES) - 1, process=False).export(file_type="glb"))


def build_folder(root: Path) -> None:
    """Four shapes in two classes, and the CSV that names three of them."""
    for name in ("chair/a.obj", "chair/b c-d.obj", "sofa/a.obj"):
        write_obj(root / name, TURNED)
    write_glb(root / "sofa" / "z.glb")
    with (root / "shapes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["caption", "path", "class", "split"],
                ["a wedge, red", "chair/a.obj", "seat", "train"],
                ["another", "chair/a.obj", "seat", "train"],
                ["", "chair/b c-d.obj", "seat", "test"],
                ["a glb", "sofa/z.glb", "sofa", ""],
            ]
        )


def build_shapenet_core_v1(root: Path) -> None:
    for model in (f"{AIRPLANE}/b-1", f"{AIRPLANE}/a", f"{CHAIR}/u6028f63e-4111-4412"):
        write_obj(root / model / "model.obj", WEDGE_V1, "images/texture0.png")
    _shapenet_tables(root)


def build_shapenet_core_v2(root: Path) -> None:
    for model in (f"{AIRPLANE}/b-1", f"{AIRPLANE}/a", f"{CHAIR}/u6028f63e-4111-4412"):
        write_obj(root / model / "models" / "model_normalized.obj", WEDGE, "../images/texture0.png")
    _shapenet_tables(root)


def _shapenet_tables(root: Path) -> None:
    """all.csv, in which one synset has lost its zero to a spreadsheet, and taxonomy.json."""
    (root / "all.csv").write_text(
        "id,synsetId,subSynsetId,modelId,split\n"
        f"000001,{AIRPLANE[1:]},{AIRPLANE[1:]},a,val\n000002,{AIRPLANE},{AIRPLANE},b-1,test\n"
    )
    entries = [
        {"synsetId": AIRPLANE, "name": "airplane,aeroplane, plane,plane", "children": [], "numInstances": 2},
        {"synsetId": "02690373", "name": "airliner", "children": [], "numInstances": 1},
        {"synsetId": CHAIR, "name": "chair", "children": [], "numInstances": 1},
    ]
    (root / "taxonomy.json").write_text(json.dumps(entries))


TRAIN = (f"{CHAIR}-u45c7b89f-d996-4c29", f"{AIRPLANE}-1a04")
TEST = (f"{CAMERA}-c",)


def build_shapenet55(
    root: Path, train: Sequence[str] = TRAIN, test: Sequence[str] = TEST, base: str = "ShapeNet55-34"
) -> None:
    """Clouds whose first points are the wedge's corners, lists, and the meshes."""
    clouds, lists = root / base / "shapenet_pc", root / base / "ShapeNet-55"
    clouds.mkdir(parents=True)
    lists.mkdir()
    inner = WEDGE[np.arange(64) % 5] * np.linspace(1, 0.1, 64)[:, None]
    for split, names in (("train", train), ("test", test)):
        (lists / f"{split}.txt").write_text("".join(f"{name}.npy\n" for name in names))
        for name in names:
            np.save(clouds / f"{name}.npy", np.concatenate([WEDGE, inner]).astype(np.float32))
            synset, model = name.split("-", 1)
            write_obj(root / "ShapeNetCore.v2" / synset / model / "models" / "model_normalized.obj")


def build_objaverse(root: Path) -> None:
    paths = {uid: f"glbs/000-{i:03d}/{uid}.glb" for i, uid in enumerate(OBJECTS)}
    for uid in OBJECTS[:3]:
        write_glb(root / paths[uid])
    for name, content in (
        ("object-paths", paths),
        ("lvis-annotations", {"Band_Aid": [OBJECTS[0]], "bow_(weapon)": [OBJECTS[2]]}),
    ):
        (root / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


def build_cap3d(root: Path) -> None:
    build_objaverse(root)
    with (root / "Cap3D_automated_Objaverse.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[OBJECTS[0], "a red wedge, old"], [OBJECTS[2], 'say "hi"'], ["f" * 32, "of none"]])


# ---- for the tests that read them


def corners(source: AnySource, root: Path, reference: str) -> np.ndarray:
    return concatenate(source.mesh(root, reference))[0]


def message(call: Callable[[], Any]) -> str:
    """The one line that a user gets."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
