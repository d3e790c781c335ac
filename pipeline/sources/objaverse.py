"""GLB files that a list names by uid, as the objaverse package leaves them.

root/
  object-paths.json.gz            {"<uid>": "glbs/000-023/<uid>.glb", ...}; or a .txt with a path a line
  glbs/000-023/<uid>.glb
  lvis-annotations.json.gz        {"<category>": ["<uid>", ...], ...}, of some objects

Captions such as Cap3D's come in through the manifest's `[[captions]]`, a table of kind "file".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import inside, read_json, read_lines

UNKNOWN = "object"  # the category of what no annotation names


class ObjaverseSource(Source):
    """Mesh files that a list names by uid. All paths here are relative to the root or absolute."""

    layout: Literal["objaverse"]
    objects: str = "object-paths.json.gz"
    """uid -> path as JSON (.json or .json.gz), or a .txt with a path a line, whose file name gives the uid."""
    categories: str = ""
    """JSON of category -> uids; "" or a uid it lacks: the category "object"."""
    only_present: bool = False
    """Leave out listed objects whose file is not there, instead of setting them aside."""

    @property
    def has_meshes(self) -> bool:
        """Every shape is a GLB file."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """In the list's order; the uid is the list's."""
        objects, categories = self._objects(root), self._categories(root)[0]
        there, listed = _present(root, objects), []
        for uid, path in objects.items():
            if path in there or not self.only_present:
                fingerprint = stamp(root / path) if path in there else "missing"
                listed.append(Listed(uid, categories.get(uid, UNKNOWN), None, path, fingerprint))
        if not listed:
            raise UserError(f"{root / self.objects}: none of its {len(objects)} objects is under {root}; download some")
        return listed

    def problems(self, root: Path) -> list[str]:
        """Files that the list does not name, and annotations of no object."""
        objects = self._objects(root)
        suffixes = tuple({path[path.rindex(".") :] for path in objects.values()})
        lines = []
        strange = _present(root, objects) - set(objects.values())
        if extra := sorted(path for path in strange if path.endswith(suffixes)):
            lines.append(f"{len(extra)} files are not in {self.objects}: {some(extra)}")
        categories, twice = self._categories(root)
        if twice:
            lines.append(f"{len(twice)} uids have two categories in {self.categories}, the first counts: {some(twice)}")
        if stranger := sorted(categories.keys() - objects.keys()):
            lines.append(f"{len(stranger)} uids of {self.categories} are not in {self.objects}: {some(stranger)}")
        return lines

    def _objects(self, root: Path) -> dict[str, str]:
        """uid -> path relative to the root."""
        from recon.pipeline.shapes.meshfile import SUFFIXES

        path = root / self.objects
        if not root.is_dir():
            raise UserError(f"no folder {root}: the root must hold {self.objects}")
        if not path.name.endswith((".json", ".json.gz")):
            return _from_lines(path, SUFFIXES)
        data = read_json(path)
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise UserError(f"{path}: not an object of uid -> path")
        return {uid: inside(value, f"{path}: uid {uid!r}", SUFFIXES) for uid, value in data.items()}

    def _categories(self, root: Path) -> tuple[dict[str, str], list[str]]:
        """uid -> category, and the uids that have two."""
        found: dict[str, str] = {}
        twice = []
        if self.categories:
            path = root / self.categories
            data = read_json(path)
            if not isinstance(data, dict) or not all(isinstance(value, list) for value in data.values()):
                raise UserError(f"{path}: not an object of category -> list of uids")
            for category, uids in data.items():
                for uid in uids:
                    if not isinstance(uid, str):
                        raise UserError(f"{path}: category {category!r}: {uid!r} is no uid")
                    if found.setdefault(uid, category) != category:
                        twice.append(uid)
        return found, twice


def _present(root: Path, objects: dict[str, str]) -> set[str]:
    """What lies in the folders that the list names: far sooner known than asking for each of a million files."""
    found = set()
    for folder in {path.rpartition("/")[0] for path in objects.values()}:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                found |= {f"{folder}/{entry.name}" if folder else entry.name for entry in entries}
    return found


def _from_lines(path: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """uid -> path of a list of paths."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, text in read_lines(path):
        relative = inside(text, f"{path}:{line}", suffixes)
        uid = Path(relative).stem
        if uid in found:
            raise UserError(f"{path}:{line}: uid {uid!r} is in line {lines[uid]} already; rename one of the files")
        found[uid], lines[uid] = relative, line
    return found
