"""Mesh files laid out as one folder a class or without classes, or named by a CSV file.

root/
  chair/   a.obj  b.glb ...
  table/   c.ply ...

With `list = "shapes.csv"` the files may lie anywhere under the root:

path,class,split,caption
scans/17.ply,chair,train,a wooden chair with a broken leg
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Literal

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import spelt, spelt_path
from recon.pipeline.base.wording import nearest, some
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import SPLITS, inside, read_csv

Listing = list[Listed]  # the class below has a field called `list`
Lines = list[str]

UNKNOWN = "object"  # the class of what lies in no folder of a class
# Files of shapes that people have and that have to be converted first.
FOREIGN = (".3ds", ".3mf", ".abc", ".blend", ".fbx", ".igs", ".iges", ".max", ".step", ".stp", ".usd", ".usdz")


class FolderSource(Source):
    """Mesh files under `root/<class>/`, anywhere below the root, or those that a CSV file names."""

    layout: Literal["folder"]
    list: str = ""
    """A CSV file, relative to the root or absolute, with the columns path (relative to the root) and class, and if
    wanted split and caption. A path may stand in several rows that differ in nothing but the caption. "": no such file.
    """

    classes: bool = True
    """Whether the folders below the root are classes. False, and where no file lies in one: every mesh file below the
    root, however deep, is a shape of the one class "object"."""

    @property
    def has_meshes(self) -> bool:
        """Every shape is a mesh file."""
        return True

    def shapes(self, root: Path) -> Listing:
        """Sorted by path, or in the CSV file's order.

        The uid is the path, whatever lies beside the file; bytes of it that are no UTF-8 stand there as "%E9". Without
        a CSV file, hidden files and folders and other files are left out, and beside classes deeper folders.
        """
        if self.list:
            if not root.is_dir():
                raise UserError(f"no folder {root}: the data set's root must hold the files that {self.list} names")
            return _read_list(root / self.list, root)
        return [
            Listed(spelt(path), spelt(category), None, spelt(path), stamp(root / path), earlier=_stem(spelt(path)))
            for category, path in list_folder(root, self.classes)
        ]

    def mesh_file(self, root: Path, reference: str) -> tuple[Path, Path]:
        """The file of that path, whose name may be no UTF-8."""
        return spelt_path(root, reference), root

    def problems(self, root: Path) -> Lines:
        """Classes without a mesh, and files that the listing passes over, links that lead nowhere among them."""
        listed = {shape.source for shape in self.shapes(root)}
        others = [path for path in _walk(root) if spelt(path) not in listed]
        extra = [path for path in others if _is_mesh(path.rsplit("/", 1)[-1])]
        foreign = [path for path in others if path.lower().endswith(FOREIGN)]
        lost = [path for path in others if not (root / path).exists()]
        lines = []
        if not self.list and {shape.category for shape in self.shapes(root)} != {UNKNOWN}:
            held = {shape.split("/")[0] for shape in listed}
            empty = sorted({spelt(entry.name) for entry in _folders(root)} - held)
            lines += [f"class {name!r} holds no mesh file of its own" for name in empty]
        if extra:
            why = f"{self.list} does not name them" if self.list else "they do not lie in <class>/"
            lines.append(f"{len(extra)} mesh files are left out, {why}: {some(extra)}")
        if lost:
            lines.append(f"{len(lost)} links lead nowhere, or in a circle: {some(lost)}")
        if foreign:
            lines.append(f"{len(foreign)} files need converting, no reader takes them: {some(foreign)}")
        return lines


def list_folder(root: Path, classes: bool = True) -> list[tuple[str, str]]:
    """(category, path relative to root) of every mesh file, sorted by path; UserError when there is none.

    Without classes, and where no file lies in a folder of the root's own, all files there are, of class `UNKNOWN`.
    """
    from recon.pipeline.shapes.meshfile import SUFFIXES

    if not root.is_dir():
        raise UserError(f"no folder {root}: the data set's root must hold mesh files, or one folder of them a class")
    found = []
    for folder in _folders(root) if classes else ():
        with os.scandir(folder.path) as entries:
            paths = [entry.name for entry in entries if _is_mesh(entry.name) and _is_file(entry)]
        found += [(folder.name, f"{folder.name}/{name}") for name in paths]
    if not found:
        found = [(UNKNOWN, path) for path in _walk(root) if _is_mesh(path.rsplit("/", 1)[-1])]
    if not found:
        raise UserError(f"no mesh files below {root}: expected <name> or <class>/<name>, one of {', '.join(SUFFIXES)}")
    return sorted(found, key=lambda pair: pair[1])


def _read_list(path: Path, root: Path) -> Listing:
    """The shapes of a CSV file in its order, the captions of one path together."""
    from recon.pipeline.shapes.meshfile import SUFFIXES

    said: dict[str, tuple[int, str, str]] = {}
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for line, row in read_csv(path, ("path", "class"), ("split", "caption")):
        relative = inside(row["path"], f"{path}:{line}: column 'path'", SUFFIXES)
        category, split, caption = row["class"], row.get("split", ""), " ".join(row.get("caption", "").split())
        if not category:
            raise UserError(f"{path}:{line}: column 'class': empty; name the class of {relative}")
        if split not in SPLITS and (hint := nearest(split, SPLITS)):  # other names are allowed, slips are not
            raise UserError(f"{path}:{line}: column 'split': {split!r}{hint}; use {', '.join(SPLITS)} or another name")
        first, *before = said.setdefault(relative, (line, category, split))
        if [category, split] != before:
            column = "class" if category != before[0] else "split"
            raise UserError(f"{path}:{line}: column {column!r}: line {first} says otherwise of {relative}")
        if first != line and (not caption or caption in captions[relative]):
            raise UserError(f"{path}:{line}: {relative} is in line {first} already; a further row needs a new caption")
        if caption:
            captions[relative].append(caption)
    if not said:
        raise UserError(f"{path}: names no file; add a row a shape")
    return [
        Listed(uid, category, split or None, uid, stamp(root / uid), tuple(captions[uid]), _stem(uid))
        for uid, (_, category, split) in said.items()
    ]


def _stem(path: str) -> str:
    """The path without its suffix: what files of one shape in several formats have in common, so their split too."""
    return path.rpartition(".")[0]


def _is_mesh(name: str) -> bool:
    from recon.pipeline.shapes.meshfile import SUFFIXES

    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _folders(root: Path) -> list[os.DirEntry[str]]:
    with os.scandir(root) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and not _is_lost(entry) and entry.is_dir()]


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a shape's file; a link that leads nowhere is one that cannot be read, which a run tells of."""
    return _is_lost(entry) or entry.is_file()


def _is_lost(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads nowhere, or in a circle."""
    return entry.is_symlink() and not Path(entry.path).exists()


def _walk(root: Path) -> Lines:
    """Every file under the root but hidden ones, as paths relative to it, sorted."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = os.path.relpath(folder, root)
        found += [name if base == "." else f"{base}/{name}" for name in names if not name.startswith(".")]
    return sorted(found)
