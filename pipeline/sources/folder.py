"""Mesh files laid out as one folder a class.

root/
  chair/   a.obj  b.glb ...
  table/   c.ply ...
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.mesh import Mesh
from pipeline.sources.source import Listed, Source, stamp


class FolderSource(Source):
    """Mesh files under `root/<class>/`."""

    layout: Literal["folder"]

    @property
    def has_meshes(self) -> bool:
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """Sorted by path.

        The uid is "<class>/<stem>", or "<class>/<file name>" where files of a class differ in their suffix only.
        Hidden files and folders, other files and deeper folders are left out.
        """
        return [
            Listed(uid, category, None, relative, stamp(root / relative))
            for uid, category, relative in list_folder(root)
        ]

    def mesh(self, root: Path, reference: str) -> Mesh:
        from pipeline.meshfile import load_mesh  # trimesh takes half a second to import; listing does without

        return load_mesh(root / reference, root, up=self.up, front=self.front)

    def recipe(self) -> dict[str, Any]:
        return {"layout": "folder", "up": self.up, "front": self.front}


def list_folder(root: Path) -> list[tuple[str, str, str]]:
    """(uid, category, path relative to root) of every mesh file, sorted by path; UserError when there is none."""
    from pipeline.meshfile import SUFFIXES

    if not root.is_dir():
        raise UserError(f"no folder {root}: the data set's root must hold one folder of mesh files a class")
    paths = sorted(
        (folder.name, file.name)
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not paths:
        raise UserError(f"no mesh files under {root}: expected <class>/<name> with one of {', '.join(SUFFIXES)}")
    stems = Counter((category, Path(name).stem) for category, name in paths)
    listed = []
    for category, name in paths:
        stem = Path(name).stem
        unique = stem if stems[category, stem] == 1 else name
        listed.append((f"{category}/{unique}", category, f"{category}/{name}"))
    return listed
