"""Mesh files: reading them safely, refusing what cannot be drawn, and a mesh's digest.

A texture's v runs upwards (0 = bottom row of the picture), as in OBJ.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.faults import causes
from recon.pipeline.base.limits import fenced
from recon.pipeline.shapes.axes import axes, to_origin
from recon.pipeline.shapes.mesh import Floats, Ints, Mesh, Primitive
from recon.pipeline.shapes.mesh import MeshError as MeshError  # where its users look for it
from recon.pipeline.shapes.meshfile.budget import MAX_FILE_BYTES, MAX_MEMORY, check_count
from recon.pipeline.shapes.meshfile.files import ModelFiles
from recon.pipeline.shapes.meshfile.scene import Reading, import_readers, read_scene

SUFFIXES = (".obj", ".off", ".ply", ".stl", ".glb", ".gltf", ".dae")
MAX_COORDINATE = 1e6
MAX_PARTS = 256  # part labels are stored as bytes
MIN_AREA = 1e-9  # as a share of the squared extent


def load_mesh(path: Path, root: Path, up: str = "+Y", front: str = "+Z") -> Mesh:
    """Read a mesh file into the project's axes (+Y up, +Z front), one primitive a placed piece of its scene.

    path: an OBJ, OFF, PLY, STL, GLB, glTF or DAE file; root: the folder that its textures and buffers must lie in;
    up and front: the file's own axes, such as "+Z" and "-Y"; a DAE that states another up axis is right about it. Units
    stay the file's. Colours become linear: glTF stores them so, the others in sRGB. Materials of no opacity are left
    out, textures' alpha cuts out, and anything else is opaque. `facts["missing_files"]` names what the file asks for
    and lacks; a shape so far from the origin that float32 could not tell its points apart is moved there, by
    `facts["moved"]` [3] in the project's axes. Raises MeshError, its words starting with the file, for whatever cannot
    be read or drawn.
    """
    turned = axes(up, front)
    import_readers(path.suffix.lower())
    with fenced(MAX_MEMORY) as closed:
        try:
            return _load(path, root, up, turned)
        except MeshError as error:
            raise MeshError(error.reason, f"{path}: {error.words}") from None
        except Exception as error:  # trimesh raises whatever its parsers stumble over
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
            if closed and _lacks_memory(error):  # its own fault: so much was there for it
                words = f"{path}: it needs more than {MAX_MEMORY >> 30} GB of memory to be read ({said})"
                raise MeshError("unreadable", words) from None
            raise MeshError("unreadable", f"{path}: {said}") from error


def _load(path: Path, root: Path, up: str, rotation: Floats) -> Mesh:
    files = ModelFiles(path.parent, root)
    with np.errstate(all="ignore"):  # infinite coordinates, which check_mesh names better
        reading = _read(path, files)
        if reading.up not in (None, up.upper()):
            rotation = axes(reading.up, "-Y" if reading.up == "+Z" else "+Z")
        # a file that hides all of itself means opacity the other way round
        primitives = _turned(reading.shown or reading.hidden, rotation)
    primitives, moved = _near(primitives)
    facts: dict[str, Any] = {"missing_files": sorted(files.missing)} if files.missing else {}
    mesh = Mesh(primitives, facts | ({"moved": moved} if moved else {}))
    check_mesh(mesh)
    return mesh


def _lacks_memory(error: BaseException) -> bool:
    """Whether memory was refused, as libraries tell it in C and in Python."""
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and "allocat" in str(cause))
        for cause in causes(error)
    )


def _read(path: Path, files: ModelFiles) -> Reading:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        words = f"no reader for {suffix or 'a name without suffix'}; use {', '.join(SUFFIXES)}"
        raise MeshError("unreadable", words)
    if not path.is_file():
        raise MeshError("unreadable", "a link that leads nowhere" if path.is_symlink() else "no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MeshError("unreadable", f"it is larger than {MAX_FILE_BYTES >> 20} MB")
    return read_scene(path, files)


def _turned(primitives: list[Primitive], rotation: Floats) -> tuple[Primitive, ...]:
    """In the project's axes; from the 256th part on, pieces share the label "other"."""
    names = list(dict.fromkeys(p.part for p in primitives))
    label = {name: name if i < MAX_PARTS - 1 else "other" for i, name in enumerate(names)}
    return tuple(
        replace(p, part=label[p.part], vertices=p.vertices @ rotation.T, faces=np.ascontiguousarray(p.faces))
        for p in primitives
        if len(p.faces)
    )


def _near(primitives: tuple[Primitive, ...]) -> tuple[tuple[Primitive, ...], list[float]]:
    """Primitives of which float32 keeps what is to be seen, and by how much they were moved for it ([]: not at all)."""
    corners = [p.vertices[p.faces] for p in primitives if p.faces.max(initial=0) < len(p.vertices)]
    if not corners:
        return primitives, []
    low, high = (np.min([c.min((0, 1)) for c in corners], 0), np.max([c.max((0, 1)) for c in corners], 0))
    by = to_origin(low, high)
    if by is None:
        return primitives, []
    return tuple(replace(p, vertices=p.vertices + by) for p in primitives), by.tolist()


def check_mesh(mesh: Mesh) -> None:
    """Raise MeshError unless every stage can work on the mesh.

    Its gates, by reason: no-faces; too-many-faces (2M) and too-many-parts (256); bad-index; non-finite (every vertex,
    colour and texture coordinate lies within +-1e6); degenerate (no extent, or too little area for it). Whether enough
    of it shows is `render.check_visible`'s (blank).
    """
    num_faces = sum(len(p.faces) for p in mesh.primitives)
    if num_faces == 0:
        raise MeshError("no-faces", "it holds no triangles (an empty file, a point cloud or lines only)")
    check_count(num_faces)
    if len(mesh.parts) > MAX_PARTS:
        raise MeshError("too-many-parts", f"it has {len(mesh.parts)} parts; {MAX_PARTS} can be labelled")
    for item in mesh.primitives:
        if len(item.faces) and not 0 <= item.faces.min() <= item.faces.max() < len(item.vertices):
            raise MeshError("bad-index", f"a face of part {item.part!r} names a vertex that does not exist")
        for values in (item.vertices, item.colors, item.uv):
            # written so that NaN fails too
            if values is not None and values.size and not np.abs(values).max() <= MAX_COORDINATE:
                words = f"part {item.part!r} has values that are not finite or beyond {MAX_COORDINATE:g}"
                raise MeshError("non-finite", words)
    vertices, faces = concatenate(mesh)
    corners = vertices[faces]
    extent = np.ptp(corners.reshape(-1, 3), axis=0).max()
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if not np.linalg.norm(cross, axis=1).sum() > MIN_AREA * extent**2:
        raise MeshError("degenerate", "its triangles have no area: they lie on one line or in one place")


def mesh_digest(mesh: Mesh) -> str:
    """SHA-256 (hex) of all that the stages see of a mesh, in order.

    Parts, float32 vertices, faces, materials, colours, uv and textures enter; facts and file names do not. Equal
    meshes have equal digests on any machine.
    """
    digest = hashlib.sha256()
    for item in mesh.primitives:
        finish = [*item.material.base_color, item.material.metallic, item.material.roughness]
        arrays: list[NDArray[Any] | None] = [
            _canonical(item.vertices),
            np.ascontiguousarray(item.faces, "<i8"),
            _canonical(np.array(finish)),
            None if item.colors is None else _canonical(item.colors),
            None if item.uv is None else _canonical(item.uv),
            None if item.texture is None else np.ascontiguousarray(item.texture),
        ]
        shapes = [None if a is None else a.shape for a in arrays]
        # with their shapes, neighbouring arrays cannot be taken for one another
        wrap = [] if item.wrap == ("repeat", "repeat") else [item.wrap]  # as before there was another
        digest.update(json.dumps([item.part, item.material.name, shapes, *wrap]).encode())
        for array in arrays:
            if array is not None:
                digest.update(array.tobytes())
    return digest.hexdigest()


def _canonical(values: Floats) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, "<f4") + np.float32(0)  # -0.0 becomes 0.0


def concatenate(mesh: Mesh) -> tuple[Floats, Ints]:
    """Vertices [V, 3] and faces [F, 3] of all primitives in order."""
    counts = np.cumsum([0, *(len(p.vertices) for p in mesh.primitives)])
    vertices = np.concatenate([p.vertices for p in mesh.primitives])
    faces = np.concatenate([p.faces + offset for p, offset in zip(mesh.primitives, counts[:-1], strict=True)])
    return vertices, faces
