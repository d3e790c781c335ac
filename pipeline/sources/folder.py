"""Mesh files laid out as one folder a class: root/<class>/<file>."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError
from pipeline.meshfile import SUFFIXES


def list_folder(root: Path) -> list[tuple[str, str, str]]:
    """(uid, category, path relative to root) of every mesh file, sorted by path.

    The uid is "<class>/<stem>", or "<class>/<file name>" where files of a class differ in their suffix only. Hidden
    files and folders, other files and deeper folders are left out. Raises UserError when nothing is there to list.
    """
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


def split_of(uid: str, test_fraction: float, seed: int) -> str:
    """ "train" or "test", decided by the uid and seed alone: a shape keeps its split when others come or go."""
    digest = hashlib.sha256(f"split:{seed}:{uid}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_fraction * 2**64 else "train"
