"""The files that a mesh file asks for, found without reading the mesh; and fingerprints that change when they do.

Only their names are looked for: materials and textures of an OBJ, buffers and pictures of a glTF or GLB, pictures of a
DAE, the texture of a PLY. Where each is taken from is `ModelFiles`' business, as it is when the mesh is read.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.files import stamp
from recon.pipeline.base.limits import fenced
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import MAX_FILE_BYTES, MAX_MEMORY
from recon.pipeline.shapes.meshfile.files import ModelFiles, decode_text, file_name
from recon.pipeline.shapes.meshfile.gltf_guard import BASE64, KTX2, read_header
from recon.pipeline.shapes.meshfile.ply_guard import MAX_HEADER_BYTES
from recon.pipeline.shapes.meshfile.text_guard import library_lines, tidied

MAX_INDENT = 4096  # bytes before the word `mtllib` on its line


def sidecars(path: Path, root: Path) -> tuple[str, ...]:
    """Where the reader looks for what a mesh file asks for, relative to root, whether a file lies there or not.

    path, root: as `load_mesh` takes them. A name that is not there where the file says so is looked for elsewhere, and
    stands here with every such place: a file that turns up in one of them is then noticed. OSError where the file, or a
    material library of it, cannot be read.
    """
    files = ModelFiles(path.parent, root)
    scan = _SCANS.get(path.suffix.lower())
    if scan is not None and path.stat().st_size > MAX_FILE_BYTES:  # which is not read
        scan = None
    try:
        with fenced(MAX_MEMORY):
            for name in scan(path, files) if scan else ():
                files.find(file_name(name))
    except OSError:
        raise
    except Exception:  # whatever upsets a scan upsets the reader, who tells
        pass
    return tuple(dict.fromkeys(_below(place, root) for place in files.looked_at))


def _below(place: Path, root: Path) -> str:
    """With its "..", which lead elsewhere behind a link."""
    try:
        return place.relative_to(root).as_posix()
    except ValueError:  # a whole path, which may name the root another way
        return os.path.relpath(place, root)


def fingerprint(mark: str, path: Path, root: Path, known: str = "") -> str:
    """What a mesh file is marked by, followed by the stamps of its sidecars as JSON.

    mark: the file's own stamp; known: the fingerprint of an earlier run, which saves a look into the file where neither
    it nor its sidecars changed. A file that can have none, is missing or cannot be read keeps its mark.
    """
    if path.suffix.lower() not in _SCANS:
        return mark
    own, _, beside = known.partition(" {")
    if own == mark and beside:
        held: dict[str, str] = json.loads("{" + beside)
        if _stamps(root, held) == held:
            return known
    if not path.is_file():
        return mark
    try:
        stamps = _stamps(root, sidecars(path, root))
    except OSError:
        return mark
    return f"{mark} {canonical_json(stamps)}"


def _stamps(root: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: stamp(f"{root}/{name}") for name in names}


def counted(fingerprint: str) -> str:
    """The part of a fingerprint that says whether a mesh is another: of a file that asks for no other, its own mark."""
    return fingerprint.removesuffix(" {}")


def without_sidecars(fingerprint: str) -> str:
    """The part of a fingerprint that a ready-made cloud depends on."""
    return fingerprint.partition(" {")[0]


# ---- what each format names


def _of_obj(path: Path, files: ModelFiles) -> Iterator[str]:
    """Textures; the material libraries, whose names take no options, are found on the way."""
    with path.open("rb") as file:
        if not path.stat().st_size:  # which cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            lines = list(_library_lines(content))
    found = [library for line in dict.fromkeys(lines) for library in files.find_libraries(line)]
    for library in dict.fromkeys(path for path in found if path is not None):
        for line in decode_text(files.read(library)).splitlines():
            words = line.split(None, 1)
            if len(words) == 2 and words[0].lower() == "map_kd":  # of other pictures the reader wants none
                yield words[1]


def _library_lines(content: mmap.mmap) -> Iterator[str]:
    at = content.find(b"mtllib")
    while at >= 0:
        start = max(content.rfind(b"\n", max(at - MAX_INDENT, 0), at) + 1, at - MAX_INDENT)
        end = content.find(b"\n", at)
        while end > 0 and content[end - 2 : end].rstrip(b"\r").endswith(b"\\"):
            end = content.find(b"\n", end + 1)
        end = len(content) if end < 0 else end
        yield from library_lines(re.sub(r"(?m)^ +|^#.*$", "", tidied(content[start:end])))
        at = content.find(b"mtllib", end)


def _of_ply(path: Path, _: ModelFiles) -> Iterator[str]:
    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES).partition(b"end_header")[0]
    lines = header.decode("utf-8", "replace").splitlines()
    named = [line for line in lines if not re.match(r"\s*(element|property)", line) and "texturefile" in line.lower()]
    for line in named[-1:]:
        yield line[line.lower().index("texturefile") + len("texturefile") :]


def _of_gltf(path: Path, _: ModelFiles) -> Iterator[str]:
    return _uris(read_header(path.read_bytes()))


def _of_glb(path: Path, _: ModelFiles) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(20)[12:16], "little")
        return _uris(read_header(file.read(length)))


def _uris(header: dict[str, Any]) -> Iterator[str]:
    for entry in (*header.get("images", []), *header.get("buffers", [])):
        if "uri" in entry and BASE64 not in entry["uri"] and entry.get("mimeType") != KTX2:
            yield entry["uri"]


def _of_dae(path: Path, _: ModelFiles) -> Iterator[str]:
    """What `init_from` says within `image`; within `surface` it says which image."""
    above: list[str] = []
    names: list[str] = []

    def enter(tag: str, _: dict[str, str]) -> None:
        above.append(tag.rpartition(":")[2])
        if above[-2:] == ["image", "init_from"]:
            names.append("")

    def text(data: str) -> None:
        if above[-2:] == ["image", "init_from"]:
            names[-1] += data

    def refuse(*_: Any) -> None:
        raise MeshError("unreadable", "it declares a document type")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler = enter, text
    parser.EndElementHandler, parser.StartDoctypeDeclHandler = lambda _: above.pop(), refuse
    with path.open("rb") as file:
        parser.ParseFile(file)
    yield from filter(str.strip, names)


_SCANS: dict[str, Callable[[Path, ModelFiles], Iterator[str]]] = {
    ".obj": _of_obj,
    ".ply": _of_ply,
    ".gltf": _of_gltf,
    ".glb": _of_glb,
    ".dae": _of_dae,
}
