"""What is embedded: a store's shapes, or people's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.files import Names, OwnShape, axes_of, find_files, read_shape
from recon.trainer.evaluate.features import Student
from recon.trainer.use.embedding import ROWS_AT_ONCE, Described, describe, describe_rows, telling, together

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """Shapes, embedded."""

    words: dict[str, list[str]]
    """By column, "uid" first: a text a shape"""
    described: Described
    refused: dict[str, str] = field(default_factory=dict)
    """Why files were left out, by their names"""


def own_shape(
    student: Student, path: Path, up: str | None = None, front: str | None = None, columns: Names = ()
) -> OwnShape:
    """Somebody's file as `read_shape` has it: as many points as the student takes, with colours where it takes them."""
    model = student.config.model
    return read_shape(path, student.config.data.num_points, up, front, model.color, model.default_color, columns)


def embed_store(student: Student, path: Path, ref: str | None, tell: Tell) -> Rows:
    """The finished shapes of a store's ref, with category and split. UserError where there is none."""
    probe = student.on(FeatureStore.open(path), ref)
    rows, registry = np.flatnonzero(probe.store.points(probe.ref).ok), probe.store.registry
    if not len(rows):
        raise UserError(f"{path}: no points of ref {probe.ref.name!r} are finished; see `recon-pipeline status`")
    described = together(list(describe_rows(student, probe, rows, telling(tell, "shapes"))))
    words = {
        "uid": [registry.uid[row] for row in rows],
        "category": [registry.categories[number] for number in registry.category[rows]],
        "split": [registry.split[row] for row in rows],
    }
    return Rows(words, described)


def embed_files(
    student: Student, paths: Sequence[Path], up: str | None, front: str | None, columns: Names, tell: Tell
) -> Rows:
    """Meshes and clouds, and all that lie in folders; one of several that cannot be read is told of and left out.

    What is taken for granted of a file is told: of several the axes once for each format, and how many have no colour.
    UserError where none can be read.
    """
    axes_of(".obj", up, front)  # a slip is no file's fault
    found, told = find_files(paths), telling(tell, "files")
    uids: list[str] = []
    clouds: list[torch.Tensor] = []
    parts: list[Described] = []
    refused: dict[str, str] = {}
    said = set()
    lacking = Counter[str]()
    for number, (uid, path) in enumerate(found, 1):
        try:
            shape = own_shape(student, path, up, front, columns)
        except UserError as error:
            if len(found) == 1:
                raise
            refused[uid] = str(error)
            tell(f"left out: {error}")
            continue
        kind = path.suffix.lower()
        if len(found) == 1 or kind not in said:
            tell(f"{uid}: {shape.told()}" if len(found) == 1 else f"{kind} files: {shape.axes.told()}")
        said.add(kind)
        lacking[shape.lacking] += len(found) > 1
        uids.append(uid)
        clouds.append(torch.from_numpy(shape.points))
        if len(clouds) == ROWS_AT_ONCE:
            parts.append(describe(student, torch.stack(clouds)))
            clouds.clear()
        told(number, len(found))
    if clouds:
        parts.append(describe(student, torch.stack(clouds)))
    for why, count in lacking.items():
        if why and count:
            tell(f"{count} of {len(found)} files are {why}")
    if not parts:
        raise UserError(f"none of {len(found)} files can be read; the first: {next(iter(refused.values()))}")
    return Rows({"uid": uids}, together(parts), refused)
