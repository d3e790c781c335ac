"""What the readers of ready-made clouds share: the project's axes, text tables, and names that stay under the root."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.cloud import Cloud, nearby
from recon.pipeline.shapes.mesh import MeshError

MAX_POINTS = 1 << 20
MAX_TABLE_BYTES = 256 << 20


def cloud_of(
    values: NDArray[Any],
    up: str,
    front: str,
    where: str,
    part: NDArray[np.uint8] | None = None,
    parts: tuple[str, ...] = (),
) -> Cloud:
    """A cloud from columns x y z, or x y z nx ny nz, turned into the project's axes.

    values [P, 3] or [P, 6]; where the axes are the project's already the numbers stay as they are, bit by bit, but
    that a cloud far from the origin is moved there (`nearby`). MeshError, starting with `where`, for any other shape.
    """
    if values.ndim != 2 or values.shape[1] not in (3, 6) or not 1 <= len(values) <= MAX_POINTS:
        raise MeshError("wrong-shape", f"{where}: holds {list(values.shape)}, not [points, 3] or [points, 6]")
    if values.dtype.kind not in "fiu":
        raise MeshError("wrong-shape", f"{where}: holds {values.dtype}, not numbers")
    if values.dtype.kind != "f" or values.dtype.itemsize < 4:
        values = values.astype(np.float64)
    rotation = axes(up, front)
    if not np.array_equal(rotation, np.eye(3)):
        values = np.concatenate([turn @ rotation.T for turn in np.split(values, values.shape[1] // 3, axis=1)], axis=1)
    xyz = nearby(values[:, :3])
    normal = np.ascontiguousarray(values[:, 3:], np.float32) if values.shape[1] == 6 else None
    return Cloud(xyz, normal, part=part, parts=parts)


def read_table(path: Path, columns: int, delimiter: str | None) -> NDArray[np.float64]:
    """[lines, columns] of numbers from text; delimiter None: white space. MeshError names the file and the line."""
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise MeshError("too-large", f"{path}: {size >> 20} MB, more than any cloud has")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which the caller names better
            table = np.loadtxt(path, np.float64, delimiter=delimiter, ndmin=2, comments=None)
    except FileNotFoundError:
        raise MeshError("unreadable", f"{path}: no such file, though a list names it") from None
    except (OSError, ValueError) as error:
        raise MeshError("unreadable", _complaint(path, columns, delimiter) or f"{path}: {error}") from error
    if table.size == 0:
        raise MeshError("no-points", f"{path}: holds no points")
    if table.shape[1] != columns:
        raise MeshError("unreadable", f"{path}:1: {table.shape[1]} columns where {columns} are expected")
    return table


def _complaint(path: Path, columns: int, delimiter: str | None) -> str:
    """Which line of a table is wrong, and why."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.split(delimiter)
            if line.strip() and len(cells) != columns:
                return f"{path}:{number}: {len(cells)} columns where {columns} are expected"
            for cell in cells if line.strip() else ():
                try:
                    float(cell)
                except ValueError:
                    return f"{path}:{number}: {cell.strip()[:40]!r} is no number"
    return ""


def folder(root: Path, expected: str) -> Path:
    """The root; UserError, saying what it should hold, when it is no folder."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: the root must hold {expected}")
    return root


def row_of(reference: str) -> tuple[str, int]:
    """ "a/b.h5:17" -> ("a/b.h5", 17)."""
    name, _, row = reference.rpartition(":")
    return name, int(row)


def class_of(label: object, classes: tuple[str, ...], where: str) -> str:
    """The name of a class number. UserError, starting with `where`, for one that the manifest has no name for."""
    number = np.asarray(label)
    if number.size == 1 and number.dtype.kind in "iu" and 0 <= int(number.reshape(())) < len(classes):
        return classes[int(number.reshape(()))]
    words = repr(number.reshape(-1)[0].item()) if number.size == 1 and number.dtype.kind in "iuf" else "no number"
    raise UserError(
        f"{where}: label {words}, but the manifest names classes 0 to {len(classes) - 1}; mend its `classes`"
    )
