"""ModelNet40 and ModelNet10 in the forms they are handed out in; HDF5 files of them are read by sources.hdf5.

modelnet_off, the meshes:
  root/chair/{train,test}/chair_0001.off

modelnet_text, points with normals as text, 10,000 a shape:
  root/modelnet40_{train,test}.txt            a name a line, such as night_stand_0001
  root/modelnet40_shape_names.txt             the classes (need not be there)
  root/night_stand/night_stand_0001.txt       lines of x,y,z,nx,ny,nz

modelnet_fps, the 8192 farthest of those points, as Point-BERT's family of models takes them:
  root/modelnet40_{train,test}_8192pts_fps.dat    a pickle: [[8192, 6] arrays, [1] labels]

Meshes have +Z up; chairs and toilets among them sit towards -Y. Clouds have +Y up. The trained models of the papers
were fed the clouds as they lie in the files, so those are not turned.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import nearest, some
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.clouds import class_of, cloud_of, folder, read_table, row_of
from recon.pipeline.sources.safe_pickle import load_pickle
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import read_lines

SPLITS = ("train", "test")
NAME = re.compile(r"([A-Za-z0-9_-]+)_(\d+)")


class ModelNetOffSource(Source):
    """OFF meshes in a folder a class and split."""

    layout: Literal["modelnet_off"]
    up: str = "+Z"
    front: str = "-Y"

    @property
    def has_meshes(self) -> bool:
        """Every shape is an OFF file."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """Sorted by class, split and name; the uid is the file's name. UserError for a class without a mesh."""
        expected = "a folder a class with train/ and test/ in it, such as chair/train/chair_0001.off"
        classes = sorted(
            entry.name
            for entry in folder(root, expected).iterdir()
            if not entry.name.startswith(".") and any((entry / split).is_dir() for split in SPLITS)
        )
        if not classes:
            raise UserError(f"no meshes under {root}: it must hold {expected}")
        listed = []
        for category in classes:
            files = [(split, path) for split in SPLITS for path in sorted((root / category / split).glob("*.off"))]
            if not files:
                raise UserError(f"{root / category}: no .off file in train/ or test/; unpack the class again")
            for split, path in files:
                listed.append(Listed(path.stem, category, split, f"{category}/{split}/{path.name}", stamp(path)))
        return listed

    def problems(self, root: Path) -> list[str]:
        """Files that are named after another class, and classes that one split lacks."""
        shapes, lines = self.shapes(root), []
        strays = [item.source for item in shapes if not item.uid.startswith(f"{item.category}_")]
        if strays:
            lines.append(f"{len(strays)} files are not named after their class: {some(strays)}")
        for split in SPLITS:
            lacking = {item.category for item in shapes} - {item.category for item in shapes if item.split == split}
            if lacking:
                lines.append(f"{len(lacking)} classes have nothing in {split}: {some(sorted(lacking))}")
        return lines


class ModelNetTextSource(Source):
    """Points with normals as text, a file a shape, and lists of their names."""

    layout: Literal["modelnet_text"]
    prefix: Literal["modelnet40", "modelnet10"] = "modelnet40"
    """Of the lists' names: the files of both sets lie in one folder."""

    @property
    def has_clouds(self) -> bool:
        """Every shape is a text file of points."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """The train list, then the test list, each in its order. UserError for a name that is malformed or repeated."""
        folder(root, f"{self.prefix}_train.txt and a folder a class")
        classes = self._classes(root)
        listed: list[Listed] = []
        seen: dict[str, str] = {}
        for split in SPLITS:
            path = root / f"{self.prefix}_{split}.txt"
            for number, name in read_lines(path):
                match = NAME.fullmatch(name)
                if match is None:
                    raise UserError(f"{path}:{number}: {name[:80]!r} is not named <class>_<number>")
                if classes and match[1] not in classes:
                    raise UserError(f"{path}:{number}: class {match[1]!r} is unknown{nearest(match[1], classes)}")
                if name in seen:
                    raise UserError(f"{path}:{number}: {name!r} is in {seen[name]} already; remove one")
                seen[name] = f"{path.name}:{number}"
                source = f"{match[1]}/{name}.txt"
                listed.append(Listed(name, match[1], split, source, stamp(root / source)))
        if all(item.fingerprint == "missing" for item in listed):
            raise UserError(f"{root}: has lists and none of the clouds they name, such as {listed[0].source}")
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """xyz and normals of one text file. MeshError names the file and the line."""
        return cloud_of(read_table(root / reference, 6, ","), self.up, self.front, reference)

    def problems(self, root: Path) -> list[str]:
        """Files of listed classes that no list names, and classes without a shape."""
        shapes = self.shapes(root)
        held = {item.category for item in shapes}
        there = {f"{name}/{path.name}" for name in held for path in (root / name).glob("*.txt")}
        extra = sorted(there - {item.source for item in shapes})
        lines = [f"{len(extra)} clouds are in no list: {some(extra)}"] if extra else []
        empty = sorted(set(self._classes(root)) - held)
        return lines + ([f"{len(empty)} classes have no shape: {some(empty)}"] if empty else [])

    def _classes(self, root: Path) -> list[str]:
        path = root / f"{self.prefix}_shape_names.txt"
        return [name for _, name in read_lines(path)] if path.is_file() else []


class ModelNetFpsSource(Source):
    """Farthest points of every shape, a pickle a split."""

    layout: Literal["modelnet_fps"]
    prefix: Literal["modelnet40", "modelnet10"] = "modelnet40"
    points: int = 8192
    """In the files' names, and of every shape."""
    classes: tuple[str, ...]
    """In the order of the labels."""

    @property
    def has_clouds(self) -> bool:
        """Every shape is an entry of a split's pickle."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """The train file, then the test file; the files keep no names, so the uid is the split and the place in it."""
        folder(root, self._file("train"))
        listed = []
        for split in SPLITS:
            path = root / self._file(split)
            mark = stamp(path)
            for row, label in enumerate(_read_fps(path, mark)[1]):
                category = class_of(label, self.classes, f"{path}, shape {row}")
                listed.append(Listed(f"{split}-{row:05d}", category, split, f"{path.name}:{row}", mark))
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """A row of a pickle: xyz and normals. MeshError for another number of points."""
        name, row = row_of(reference)
        points = _read_fps(root / name, stamp(root / name))[0][row]
        if not isinstance(points, np.ndarray) or points.shape[:1] != (self.points,):
            raise MeshError("wrong-shape", f"{reference}: is no array of {self.points} points")
        return cloud_of(points, self.up, self.front, reference)

    def recipe(self) -> dict[str, Any]:
        """The number of points counts: it is in the files' names."""
        return super().recipe() | {"points": self.points}

    def _file(self, split: str) -> str:
        return f"{self.prefix}_{split}_{self.points}pts_fps.dat"


@lru_cache(maxsize=4)
def _read_fps(path: Path, mark: str) -> tuple[list[Any], list[Any]]:
    """Points and labels of a file, once a process and state of the file."""
    held = load_pickle(path)
    if not isinstance(held, list | tuple) or len(held) != 2 or not all(isinstance(part, list) for part in held):
        raise UserError(f"{path}: holds no list of clouds and list of labels; it is no file of this layout")
    if len(held[0]) != len(held[1]):
        raise UserError(f"{path}: {len(held[0])} clouds and {len(held[1])} labels; download it again")
    return held[0], held[1]
