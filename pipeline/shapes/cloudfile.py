"""Files of points: PLY, OBJ, GLB, NPY, PCD, XYZ and LAS. Nothing in them is run, and what they promise is checked."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.limits import fenced
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.columns import Names, names_in, of_columns
from recon.pipeline.shapes.mesh import Floats, MeshError, srgb_to_linear
from recon.pipeline.shapes.meshfile.budget import MAX_FILE_BYTES, MAX_MEMORY, MAX_VERTICES, check_vertices
from recon.pipeline.shapes.meshfile.colours import as_bytes
from recon.pipeline.shapes.meshfile.files import ModelFiles
from recon.pipeline.shapes.meshfile.scene import import_readers, read_vertices

PCD_TYPES = {"F4": "f4", "F8": "f8"} | {f"{kind}{size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4)}
MAX_HEADER_BYTES = 1 << 16
Read = tuple[Floats, "Floats | None"]
"""Points [P, 3] in the file's axes, and their linear colours [P, 3] where it says such."""


def load_cloud(path: Path, root: Path, up: str = "+Y", front: str = "+Z", names: Names = ()) -> Cloud:
    """Read a file of points into the project's axes (+Y up, +Z front), about the middle of their box.

    path: one of `SUFFIXES`; of a PLY, OBJ, GLB or glTF the vertices that belong to no faces. root, up and front as for
    `load_mesh`. Besides x, y and z colours are kept that a format names: those of a PLY, OBJ, GLB, PCD or LAS, and of
    an NPY, XYZ or TXT where `names` are its columns' or a comment above its numbers names them. Points that a PCD or
    LAS marks as missing, by coordinates that are no numbers, are left out. Raises MeshError, its words starting with
    the file, for what is no such file, and for one without points.
    """
    rotation, suffix = axes(up, front), path.suffix.lower()
    if suffix not in SUFFIXES:
        words = f"{path}: no reader for {path.suffix or 'a name without suffix'}; use {', '.join(SUFFIXES)}"
        raise MeshError("unreadable", words)
    import_readers(suffix)
    with fenced(MAX_MEMORY):
        try:
            if not path.is_file():
                raise MeshError("unreadable", "a link that leads nowhere" if path.is_symlink() else "no such file")
            if path.stat().st_size > MAX_FILE_BYTES:
                raise MeshError("unreadable", f"it is larger than {MAX_FILE_BYTES >> 20} MB")
            xyz, color, unnamed = _table(path, names) if suffix in TABLES else (*READERS[suffix](path, root), 0)
        except MeshError as error:
            raise MeshError(error.reason, f"{path}: {error.words}") from None
        except Exception as error:  # readers raise whatever they stumble over
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
            raise MeshError("unreadable", f"{path}: {said}") from error
    if len(xyz) == 0:
        raise MeshError("no-points", f"{path}: the cloud is empty")
    if not np.isfinite(xyz).all():
        raise MeshError("non-finite", f"{path}: the cloud has values that are not finite")
    # In double precision, as float32 could not tell apart the points of a cloud in a country's coordinates.
    middle = (xyz.min(0) + xyz.max(0)) / 2
    stored = None if color is None else np.rint(255 * np.clip(color, 0, 1)).astype(np.uint8)
    return Cloud(((xyz - middle) @ rotation.T).astype(np.float32), color=stored, unnamed=unnamed)


def _scene(path: Path, root: Path) -> Read:
    return read_vertices(path, ModelFiles(path.parent, root))


def _table(path: Path, names: Names) -> tuple[Floats, Floats | None, int]:
    """Points, their colours, and how many columns nothing names: neither `names` nor the file."""
    values, own = TABLES[path.suffix.lower()](path)
    fitting = own if values.ndim == 2 and len(own) == values.shape[1] else ()  # a comment may speak of anything
    return of_columns(values, names or fitting)


def _npy(path: Path) -> tuple[NDArray[Any], Names]:
    # Mapped: a header may promise more than there is, and no object is ever unpickled.
    return np.load(path, mmap_mode="r", allow_pickle=False), ()


def _text(path: Path) -> tuple[NDArray[Any], Names]:
    first = ""
    names: Names = ()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in map(str.strip, lines):
            if line and not line.startswith(("#", "//")):
                first = line
                break
            names = names_in(line) or names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is told of better
        comma = "," if "," in first else None
        values = np.loadtxt(path, np.float64, comments=("#", "//"), delimiter=comma, ndmin=2, max_rows=MAX_VERTICES + 1)
    return values if values.size else np.empty((0, 3)), names


def _pcd(path: Path, _: Path) -> Read:
    """Point Cloud Library's format, version 0.7: ascii, binary and binary_compressed."""
    content = path.read_bytes()
    header, start = _pcd_header(content)
    sizes, kinds = [int(word) for word in header["SIZE"]], header["TYPE"]
    counts = [int(word) for word in header.get("COUNT", ["1"] * len(sizes))]
    names, num_points, data = header["FIELDS"], int(header["POINTS"][0]), header["DATA"][0].lower()
    if num_points < 1:
        return np.empty((0, 3)), None
    check_vertices(num_points)
    if not len(names) == len(sizes) == len(kinds) == len(counts) or not {"x", "y", "z"} <= {*names}:
        raise MeshError("unreadable", "its header does not say where x, y and z lie")
    types = [f"<{PCD_TYPES[f'{kind}{size}']}" for kind, size in zip(kinds, sizes, strict=True)]
    wanted = ["x", "y", "z", *[name for name in ("rgb", "rgba") if name in names and sizes[names.index(name)] == 4][:1]]
    if data == "ascii":
        first = np.cumsum([0, *counts])[[names.index(axis) for axis in wanted]].tolist()
        lines = content[start:].decode("ascii").split("\n")
        found = np.loadtxt(lines, np.float64, usecols=first, ndmin=2, max_rows=num_points)
        with np.errstate(invalid="ignore"):  # of a colour that is no number
            packed = [found[:, 3].astype(types[names.index(name)]) for name in wanted[3:]]
        return _present(found[:, :3], num_points, packed)
    fields = [(f"{number}", each, (count,)) for number, (each, count) in enumerate(zip(types, counts, strict=True))]
    each = np.dtype(fields)
    body = content[start:] if data == "binary" else _unpacked(content[start:], num_points * each.itemsize)
    if len(body) < num_points * each.itemsize:
        raise MeshError("unreadable", f"it promises {num_points} points and holds fewer: cut off?")
    if data == "binary":
        rows = np.frombuffer(body, each, num_points)
        columns = [rows[f"{names.index(axis)}"][:, 0] for axis in wanted]
    else:  # one field after another
        ends = np.cumsum(
            [0, *(np.dtype(kind).itemsize * count * num_points for kind, count in zip(types, counts, strict=True))]
        )
        places = [names.index(axis) for axis in wanted]
        columns = [np.frombuffer(body, types[i], num_points * counts[i], ends[i])[:: counts[i]] for i in places]
    return _present(np.stack(columns[:3], axis=1).astype(np.float64), num_points, columns[3:])


def _pcd_header(content: bytes) -> tuple[dict[str, list[str]], int]:
    """The words behind each name of a header, and where what follows it begins."""
    found: dict[str, list[str]] = {}
    start = 0
    for line in content[:MAX_HEADER_BYTES].split(b"\n"):
        start += len(line) + 1
        name, *words = line.decode("ascii", "replace").partition("#")[0].split() or [""]
        if name:
            found[name] = words
        if name == "DATA":
            break
    if lacking := {"FIELDS", "SIZE", "TYPE", "POINTS", "DATA"} - {name for name, words in found.items() if words}:
        raise MeshError("unreadable", f"it is no PCD file: its header lacks {', '.join(sorted(lacking))}")
    if found["DATA"][0].lower() not in ("ascii", "binary", "binary_compressed"):
        raise MeshError("unreadable", f"its DATA is {found['DATA'][0]!r}; read are ascii, binary and binary_compressed")
    return found, start


def _unpacked(body: bytes, size: int) -> bytes:
    """`size` bytes out of LZF's form (Lehmann's liblzf): literals, and copies of what was already written."""
    packed, promised = struct.unpack_from("<II", body)
    if promised != size or packed > len(body) - 8:
        raise MeshError("unreadable", f"it promises {size} bytes of points and packs {promised}: cut off?")
    source, out, at = body[8 : 8 + packed], bytearray(), 0
    while at < packed:
        control = source[at]
        at += 1
        if control < 32:
            out += source[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += source[at]
            at += 1
        back = ((control & 31) << 8 | source[at]) + 1
        at += 1
        if back > len(out) or len(out) > size:
            raise MeshError("unreadable", "its packed points are damaged")
        piece = out[len(out) - back : len(out) - back + length + 2]  # shorter where the copy runs into itself
        out += (piece * (-(-(length + 2) // len(piece))))[: length + 2]
    return bytes(out[:size])


def _present(xyz: Floats, promised: int, packed: Sequence[NDArray[Any]] = ()) -> Read:
    """Those points that are there, and their colours if `packed` holds them: four bytes each, blue first."""
    if len(xyz) < promised:
        raise MeshError("unreadable", f"it promises {promised} points and holds {len(xyz)}: cut off?")
    there = np.isfinite(xyz).all(axis=1)
    for column in packed:
        shares = np.ascontiguousarray(column).view(np.uint8).reshape(-1, 4)[there, 2::-1] / 255
        return xyz[there], srgb_to_linear(shares)
    return xyz[there], None


def _las(path: Path, _: Path) -> Read:
    try:
        import laspy
    except ImportError:
        raise MeshError("unreadable", "LAS files need laspy: pip install 'recon-pointcloud[las]'") from None
    with laspy.open(path) as file:
        check_vertices(file.header.point_count)
        read = file.read()
    found = _present(np.asarray(read.xyz, np.float64), file.header.point_count)[0]
    if not {"red", "green", "blue"} <= {*read.point_format.dimension_names} or len(found) < len(read.xyz):
        return found, None
    shades = np.stack([np.asarray(read[name]) for name in ("red", "green", "blue")], axis=1)
    # Writers that have no colours leave them at 0.
    return found, srgb_to_linear(as_bytes(shades) / 255) if shades.any() else None


READERS: dict[str, Callable[[Path, Path], Read]] = {
    **dict.fromkeys((".ply", ".obj", ".glb", ".gltf"), _scene),
    ".pcd": _pcd,
    ".las": _las,
}
TABLES: dict[str, Callable[[Path], tuple[NDArray[Any], Names]]] = {".npy": _npy, ".xyz": _text, ".txt": _text}
"""Of columns of numbers [P, columns], and the names that a file gives them; () of one that gives none."""
SUFFIXES = (*READERS, *TABLES)
