"""Meshes that were read and checked, kept on the disk while the stages of a run work on them.

Reading a file may take most of a stage's time (texts, compressed arrays, textures), and two more stages want the same
mesh. A kept one is all the bits of what was read, arrays as they lie in memory, after a digest of them: what is cut
off, damaged or of another mesh counts as not there. Nothing else is trusted of it than of the store it lies in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from recon.pipeline.base.documents import BadDocument, parse_document
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive, Wrap

MAX_BYTES = 8 << 30  # that one process keeps
FREE_SHARE = 0.1  # of the disk, which is left to others
_DIGEST, _LENGTH, _STEP = 32, 8, 16  # bytes: of the digest, of the header's length, and what arrays begin at


class _Piece(TypedDict):
    part: str
    material: str
    finish: list[float]
    arrays: list[int | None]  # vertices, faces, colours, uv, texture, by their number
    wrap: list[Wrap]


class _Array(TypedDict):
    dtype: str
    shape: list[int]


class _Header(TypedDict):
    digest: str
    pieces: list[_Piece]
    arrays: list[_Array]


_HEADER = TypeAdapter(_Header)


class Shelf:
    """Where one process keeps meshes: a folder, and how much of it is its own. Nothing is kept where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0

    def keep(self, name: str, mesh: Mesh, digest: str) -> None:
        """Keep a mesh of this digest (see `meshfile.mesh_digest`), where there is room; its facts stay behind."""
        if self.bytes > MAX_BYTES or not self.folder.is_dir():
            return
        path = self.folder / name
        half = path.with_suffix(".tmp")
        try:
            content = _packed(mesh, digest)
            room = shutil.disk_usage(self.folder)
            if self.bytes + len(content) > MAX_BYTES or room.free - len(content) < FREE_SHARE * room.total:
                return
            half.write_bytes(content)
            half.replace(path)
            self.bytes += len(content)
        except (OSError, UnicodeEncodeError):  # a full disk, a name that is no text: it is read again
            with suppress(OSError):
                half.unlink(missing_ok=True)

    def take(self, name: str, digest: str) -> Mesh | None:
        """The mesh of this digest; None where it was not kept, or not whole."""
        try:
            content = (self.folder / name).read_bytes()
            return _unpacked(content, digest)
        except (OSError, BadDocument, ValueError, IndexError, TypeError):
            return None


def _packed(mesh: Mesh, digest: str) -> bytes:
    arrays: list[NDArray[Any]] = []
    number: dict[int, int] = {}

    def place(array: NDArray[Any] | None) -> int | None:
        if array is None:
            return None
        if id(array) not in number:  # pieces share pictures
            number[id(array)] = len(arrays)
            arrays.append(np.ascontiguousarray(array))
        return number[id(array)]

    pieces: list[_Piece] = [
        {
            "part": p.part,
            "material": p.material.name,
            "finish": [float(x) for x in (*p.material.base_color, p.material.metallic, p.material.roughness)],
            "arrays": [place(a) for a in (p.vertices, p.faces, p.colors, p.uv, p.texture)],
            "wrap": list(p.wrap),
        }
        for p in mesh.primitives
    ]
    header: _Header = {
        "digest": digest,
        "pieces": pieces,
        "arrays": [{"dtype": a.dtype.str, "shape": list(a.shape)} for a in arrays],
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    parts = [len(text).to_bytes(_LENGTH, "little"), text]
    at = _DIGEST + _LENGTH + len(text)
    for array in arrays:
        gap = -at % _STEP
        parts += [b"\0" * gap, array.tobytes()]
        at += gap + array.nbytes
    body = b"".join(parts)
    return hashlib.sha256(body).digest() + body


def _unpacked(content: bytes, digest: str) -> Mesh:
    """ValueError, or what numpy raises, for anything but what `_packed` made of a mesh of this digest."""
    body = memoryview(content)[_DIGEST:]
    if hashlib.sha256(body).digest() != content[:_DIGEST]:
        raise ValueError("not whole")
    length = int.from_bytes(body[:_LENGTH], "little")
    header = parse_document(bytes(body[_LENGTH : _LENGTH + length]), _HEADER, "a kept mesh", "it is read again")
    if header["digest"] != digest:
        raise ValueError("of another mesh")
    at, arrays = _DIGEST + _LENGTH + length, []
    for entry in header["arrays"]:
        at += -at % _STEP
        dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
        arrays.append(np.frombuffer(content, dtype, int(np.prod(shape, dtype=object)), at).reshape(shape))
        at += arrays[-1].nbytes
    pieces = []
    for piece in header["pieces"]:
        vertices, faces, colors, uv, texture = (None if i is None else arrays[i] for i in piece["arrays"])
        if vertices is None or faces is None:
            raise ValueError("a piece without triangles")
        red, green, blue, metallic, roughness = piece["finish"]
        material = Material(piece["material"], (red, green, blue), metallic, roughness)
        across, up = piece["wrap"]
        pieces.append(Primitive(piece["part"], vertices, faces, material, colors, uv, texture, (across, up)))
    return Mesh(tuple(pieces))
