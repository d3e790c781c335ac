"""ShapeNet-55: ready-made clouds and lists of them, joined with ShapeNetCore's meshes, from which the views come.

root/
  ShapeNet55-34/                      or ShapeNet55/, or the root itself
    shapenet_pc/
      02691156-1a04e3eab45ca15dd86060f189eb133.npy     [8192, 3] float, synset and model in its name
    ShapeNet-55/
      train.txt  test.txt             a file name a line; the published lists stand in where there are none
  ShapeNetCore.v2/                    the `meshes`, as sources.shapenet_core has them; may be a link

The clouds were drawn from version 2 without turning: both have +Y up and -Z front.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.cloud import Cloud, nearby
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.sources.shapenet_core import FILES, FRONTS, SYNSETS, ShapeNetCoreSource
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import read_lines

BASES = ("ShapeNet55-34", "ShapeNet55", ".")
PUBLISHED = Path(__file__).parent / "lists"
NAME = re.compile(r"(\d{8})-([^/\\]*)\.npy")  # ids may hold "-", and one published id is empty
MAX_POINTS = 1 << 20


class ShapeNet55Source(Source):
    """The clouds of ShapeNet-55, with meshes where `meshes` names them."""

    layout: Literal["shapenet55"]
    front: str = "-Z"
    """Of the clouds, as is `up`."""
    meshes: str = ""
    """ShapeNetCore's folder, relative to the root or absolute; "": clouds only, from which no views can be rendered."""
    meshes_version: Literal[1, 2] = 2
    """Of ShapeNetCore. Its meshes are turned as their release says, so that they coincide with the clouds."""

    @property
    def has_meshes(self) -> bool:
        """True where the manifest says which folder holds ShapeNetCore."""
        return bool(self.meshes)

    @property
    def has_clouds(self) -> bool:
        """Every shape is an array of points."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """The train list, then the test list, each in its order; the uid is "<synset>-<id>"."""
        base = _base(root)
        if self.meshes and not (root / self.meshes).is_dir():
            raise UserError(
                f'no folder {root / self.meshes}: link ShapeNetCore there, or set `meshes = ""` for clouds alone'
            )
        prefix = "" if base == "." else f"{base}/"
        listed = []
        for name, split in _read_lists(_lists(root) or _published()).items():
            source = f"{prefix}shapenet_pc/{name}"
            fingerprint = stamp(root / source)
            if self.meshes:
                fingerprint += f" {stamp(self._mesh_path(root, name))}"
            listed.append(Listed(name[:-4], SYNSETS[name[:8]], split, source, fingerprint))
        return listed

    def mesh_file(self, root: Path, reference: str) -> tuple[Path, Path] | None:
        """ShapeNetCore's, where the manifest names its folder."""
        return (self._mesh_path(root, reference.rsplit("/", 1)[-1]), root / self.meshes) if self.meshes else None

    def mesh(self, root: Path, reference: str) -> Mesh:
        """ShapeNetCore's mesh of the same model, turned to the project's axes. MeshError where it is missing."""
        from recon.pipeline.shapes.meshfile import (
            load_mesh,  # trimesh takes half a second to import; listing does without
        )

        path = self._mesh_path(root, reference.rsplit("/", 1)[-1])
        return load_mesh(path, root / self.meshes, up="+Y", front=FRONTS[self.meshes_version])

    def cloud(self, root: Path, reference: str) -> Cloud:
        """[P, 3] points of one `.npy` file. MeshError where it holds something else."""
        xyz = read_points(root / reference) @ axes(self.up, self.front).T
        return Cloud(nearby(xyz))

    def recipe(self) -> dict[str, Any]:
        """The version of ShapeNetCore counts: their meshes face different ways."""
        return super().recipe() | {"meshes_version": self.meshes_version}

    def synonyms(self, root: Path) -> dict[str, tuple[str, ...]]:
        """From the taxonomy.json beside the meshes."""
        return ShapeNetCoreSource(layout="shapenet_core").synonyms(root / self.meshes) if self.meshes else {}

    def problems(self, root: Path) -> list[str]:
        """Clouds that no list names, shapes without a mesh, and lists that differ from the published ones."""
        base, lists = _base(root), _lists(root)
        shapes = _read_lists(lists or _published())
        lines = []
        there = {entry.name for entry in os.scandir(root / base / "shapenet_pc") if entry.name.endswith(".npy")}
        if extra := sorted(there - shapes.keys()):
            lines.append(f"{len(extra)} clouds are in no list: {some(extra)}")
        if self.meshes:
            bare = [name for name in shapes if not self._mesh_path(root, name).is_file()]
            if bare:
                lines.append(f"{len(bare)} of {len(shapes)} shapes have no mesh in {root / self.meshes}: {some(bare)}")
        if lists:
            published = _read_lists(_published())
            moved = sorted(name for name, split in shapes.items() if published.get(name, split) != split)
            for names, words in (
                (sorted(shapes.keys() - published.keys()), "are not in the published lists"),
                (sorted(published.keys() - shapes.keys()), "of the published lists are not in them"),
                (moved, "are in the other split than published"),
            ):
                if names:
                    lines.append(f"lists in {lists[0].parent}: {len(names)} names {words}: {some(names)}")
        return lines

    def _mesh_path(self, root: Path, name: str) -> Path:
        synset, model = _parts(name)
        # An empty id must lead neither to a file beside the models' folders nor to another model's.
        return root / self.meshes / synset / (model or "-/-") / FILES[self.meshes_version]


def _parts(name: str) -> tuple[str, str]:
    """Synset and model of "<synset>-<id>.npy"."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is not named <synset>-<id>.npy")
    return match[1], match[2]


def _base(root: Path) -> str:
    """Which of `BASES` holds the clouds."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: the root must hold ShapeNet55-34/shapenet_pc/")
    for base in BASES:
        if (root / base / "shapenet_pc").is_dir():
            return base
    raise UserError(f"no clouds under {root}: expected ShapeNet55-34/shapenet_pc/<synset>-<id>.npy")


def _lists(root: Path) -> list[Path]:
    """The root's own train and test list, or none. UserError when it has only one of them."""
    for base in BASES:
        pair = [root / base / "ShapeNet-55" / f"{split}.txt" for split in ("train", "test")]
        there = [path for path in pair if path.is_file()]
        if there and len(there) < len(pair):
            lacking = next(path for path in pair if path not in there)
            raise UserError(f"no list {lacking} beside {there[0].name}: put it there, or remove both for the published")
        if there:
            return pair
    return []


def _published() -> list[Path]:
    return [PUBLISHED / f"shapenet55_{split}.txt.gz" for split in ("train", "test")]


def _read_lists(pair: list[Path]) -> dict[str, str]:
    """File name -> split, in the lists' order. UserError for a name that is malformed or there twice."""
    names: dict[str, str] = {}
    lines: dict[str, str] = {}
    for path, split in zip(pair, ("train", "test"), strict=True):
        for number, name in read_lines(path):
            match = NAME.fullmatch(name)
            if match is None:
                raise UserError(f"{path}:{number}: {name!r} is not named <synset>-<id>.npy")
            if match[1] not in SYNSETS:
                raise UserError(f"{path}:{number}: {name!r} is of no synset that ShapeNet-55 has")
            if name in names:
                raise UserError(f"{path}:{number}: {name!r} is in {lines[name]} already; remove one")
            names[name], lines[name] = split, f"{path.name}:{number}"
    if not names:
        raise UserError(f"{pair[0]}: empty, as is {pair[1].name}; remove both for the published lists")
    return names


def read_points(path: Path) -> NDArray[np.float64]:
    """[P, 3] from a .npy file, never unpickled. MeshError unless it holds just that, finite and not one point."""
    from recon.pipeline.shapes.meshfile import MAX_COORDINATE, MeshError

    try:
        with path.open("rb") as file:
            points = _read_array(file, path.stat().st_size).astype(np.float64)
    except FileNotFoundError:
        raise MeshError("unreadable", f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise MeshError("unreadable", f"{path}: {' '.join(str(error).split())[:200]}") from error
    with np.errstate(invalid="ignore"):
        if not np.abs(points).max() <= MAX_COORDINATE:
            raise MeshError("non-finite", f"{path}: values that are not finite or beyond {MAX_COORDINATE:g}")
    if not np.ptp(points, axis=0).max() > 0:
        raise MeshError("degenerate", f"{path}: all points lie in one place")
    return points


def _read_array(file: BinaryIO, size: int) -> NDArray[Any]:
    """The array of a .npy file, whose header must agree with the file's size before anything is reserved for it."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a .npy header of a version that arrays of floats do not need")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind != "f" or len(shape) != 2 or shape[1] != 3 or not 1 <= shape[0] <= MAX_POINTS:
        raise ValueError(f"it holds {dtype} {list(shape)}, not floats [P, 3] with P up to {MAX_POINTS}")
    expected = file.tell() + shape[0] * 3 * dtype.itemsize
    if size != expected:
        raise ValueError(f"it has {size} bytes where its header says {expected}: copy it again")
    flat = np.frombuffer(file.read(), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
