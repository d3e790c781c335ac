"""Mesh files: reading them safely, refusing what cannot be drawn, a mesh's digest, and normals with creases.

A texture's v runs upwards (0 = bottom row of the picture), as in OBJ and trimesh.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.mesh import Floats, Ints, Material, Mesh, Primitive, srgb_to_linear

SUFFIXES = (".obj", ".off", ".ply", ".stl", ".glb", ".gltf")
MAX_COORDINATE = 1e6
MAX_FACES = 2_000_000
MAX_FILE_BYTES = 512 * 2**20
MAX_PARTS = 256  # part labels are stored as bytes
MAX_TEXTURE_SIDE = 8192
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tga", ".gif", ".tif", ".tiff", ".webp")
# glTF compressions and the package that lets trimesh read them
COMPRESSIONS = {"KHR_draco_mesh_compression": "DracoPy", "EXT_meshopt_compression": None}
PLAIN_GREY = Material("", (0.5, 0.5, 0.5))  # of files that say nothing of colour
PLAIN_WHITE = Material("", (1.0, 1.0, 1.0))  # of vertex and face colours, which it multiplies

WELD = 1e-5  # positions closer than this share of the extent are one vertex for shading
MAX_FAN = 128  # corners at one position; in larger fans faces keep their own normals, as pairs grow squared
PAIRS_A_BLOCK = 2_000_000  # bounds the memory of meshes with millions of faces


class MeshError(UserError):
    """A shape that cannot be used. `reason` is a short code for counting: unreadable, no-faces, non-finite,
    degenerate, too-many-faces, too-many-parts, bad-index, blank.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(f"{reason}: {words}")
        self.reason = reason
        self.words = words

    def __reduce__(self) -> tuple[type[MeshError], tuple[str, str]]:
        return type(self), (self.reason, self.words)  # it must survive the way back from a worker process


def load_mesh(path: Path, root: Path, up: str = "+Y", front: str = "+Z") -> Mesh:
    """Read a mesh file into the project's axes (+Y up, +Z front), one primitive a placed piece of its scene.

    path: an OBJ, OFF, PLY, STL, GLB or glTF file; root: the folder that its textures and buffers must lie in;
    up and front: the file's own axes, such as "+Z" and "-Y". Colours become linear: glTF stores them so, the
    others in sRGB. Opacity is ignored but for textures' alpha, which cuts out. `facts["missing_files"]`
    names what the file asks for and lacks. Raises MeshError, its words starting with the file, for whatever
    cannot be read or drawn.
    """
    rotation = _axes(up, front)
    try:
        scene, missing = _read_scene(path, root)
        with np.errstate(all="ignore"):  # infinite coordinates, which check_mesh names better
            primitives = _primitives(scene, rotation, path.suffix.lower() in (".glb", ".gltf"), bool(missing))
        mesh = Mesh(tuple(primitives), {"missing_files": missing} if missing else {})
        check_mesh(mesh)
    except MeshError as error:
        raise MeshError(error.reason, f"{path}: {error.words}") from None
    except Exception as error:  # trimesh raises whatever its parsers stumble over
        words = " ".join(str(error).split())[:200]
        raise MeshError("unreadable", f"{path}: {type(error).__name__}: {words}") from error
    return mesh


def check_mesh(mesh: Mesh) -> None:
    """Raise MeshError unless every stage can work on the mesh.

    It needs faces (at most 2M) whose indices exist, finite values within +-1e6, some area, at most 256 parts.
    """
    num_faces = sum(len(p.faces) for p in mesh.primitives)
    if num_faces == 0:
        raise MeshError("no-faces", "it holds no triangles (an empty file, a point cloud or lines only)")
    if num_faces > MAX_FACES:
        raise MeshError("too-many-faces", f"it has {num_faces} triangles; simplify it to at most {MAX_FACES}")
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
    if not np.linalg.norm(cross, axis=1).sum() > 1e-9 * extent**2:
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
        digest.update(json.dumps([item.part, item.material.name, shapes]).encode())
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


def corner_normals(vertices: Floats, faces: Ints, crease_degrees: float = 35.0) -> Floats:
    """Unit normals of every face corner: vertices [V, 3], faces [F, 3] -> [F, 3, 3].

    A corner averages, weighted by area, the normals of the faces that touch its position and lie within the
    crease angle of its own face. Equal positions count as one vertex, so seams stay smooth; faces of opposite
    winding never mix. Faces without area get an arbitrary unit normal.
    """
    corners = vertices[faces]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = np.divide(weighted, length, out=np.zeros_like(weighted), where=length > 0)

    order, start, count = _groups_by_position(vertices, faces)
    group_start, group_count = np.repeat(start, count), np.repeat(count, count)  # of each sorted corner
    shared = np.flatnonzero((group_count > 1) & (group_count <= MAX_FAN))
    num_pairs = np.cumsum(group_count[shared])
    face_of = order // 3

    normals = np.repeat(unit, 3, axis=0)
    cosine = np.cos(np.radians(crease_degrees))
    for block in np.split(shared, np.flatnonzero(np.diff(num_pairs // PAIRS_A_BLOCK)) + 1):
        if len(block) == 0:
            continue
        sizes = group_count[block]
        firsts = np.cumsum(sizes) - sizes
        partner = np.arange(sizes.sum()) + np.repeat(group_start[block] - firsts, sizes)
        mine, other = np.repeat(face_of[block], sizes), face_of[partner]
        near = np.einsum("ij,ij->i", unit[mine], unit[other]) >= cosine
        normals[order[block]] = np.add.reduceat(weighted[other] * near[:, None], firsts, axis=0)
    norm = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(norm > 0, normals / np.where(norm > 0, norm, 1.0), [0.0, 1.0, 0.0])
    return normals.reshape(-1, 3, 3)


def _groups_by_position(vertices: Floats, faces: Ints) -> tuple[Ints, Ints, Ints]:
    """Corners sorted by welded position: order [3 F] into the flat corners, each group's start and size."""
    low = vertices.min(0)
    step = max(float((vertices.max(0) - low).max()) * WELD, np.finfo(np.float64).tiny)
    cell = np.rint((vertices - low) / step).astype(np.int64)
    key = (cell[:, 0] << 40) + (cell[:, 1] << 20) + cell[:, 2]  # a cell index is at most 1e5 < 2^20
    corner_key = key[faces.ravel()]
    order = np.argsort(corner_key, kind="stable")
    ordered = corner_key[order]
    start = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return order, start, np.diff(np.append(start, len(order)))


def _axes(up: str, front: str) -> Floats:
    """[3, 3] rotation that takes the named axes to +Y and +Z."""
    rows = {}
    for name, value in (("up", up), ("front", front)):
        if len(value) != 2 or value[0] not in "+-" or value[1].upper() not in "XYZ":
            raise UserError(f"{name} axis {value!r} must be one of +X -X +Y -Y +Z -Z")
        rows[name] = np.eye(3)["XYZ".index(value[1].upper())] * (1.0 if value[0] == "+" else -1.0)
    if rows["up"] @ rows["front"] != 0:
        raise UserError(f"up axis {up!r} and front axis {front!r} must be different axes")
    return np.stack([np.cross(rows["up"], rows["front"]), rows["up"], rows["front"]])


def _read_scene(path: Path, root: Path) -> tuple[Any, list[str]]:
    """trimesh's scene and the sorted names of the files that it asks for but that are not there."""
    if path.suffix.lower() not in SUFFIXES:
        suffix = path.suffix or "a name without suffix"
        raise MeshError("unreadable", f"no reader for {suffix}; use {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MeshError("unreadable", "no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MeshError("unreadable", f"it is larger than {MAX_FILE_BYTES // 2**20} MB")
    import trimesh  # half a second that only mesh files pay for

    resolver: Any = _RootedFiles(path.parent, root)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever a broken file upsets is judged by check_mesh
        _refuse_compressed(path, file.read(1 << 20))
        file.seek(0)
        try:
            scene = trimesh.load_scene(file, file_type=path.suffix[1:].lower(), resolver=resolver, process=False)
        except FileNotFoundError as error:
            raise MeshError("unreadable", f"it needs {str(error)!r}, which is not there") from None
        finally:
            if resolver.outside:
                name = min(resolver.outside)
                words = f"it names {name!r}, which lies outside {root}; choose a root above it"
                raise MeshError("unreadable", words)
    return scene, sorted(resolver.missing)


def _refuse_compressed(path: Path, head: bytes) -> None:
    """trimesh fills what it cannot decompress with zeros, which would look like a degenerate mesh."""
    if path.suffix.lower() not in (".glb", ".gltf"):
        return
    for extension, decoder in COMPRESSIONS.items():
        if extension.encode() in head and (decoder is None or importlib.util.find_spec(decoder) is None):
            mend = f"install {decoder}, or export it uncompressed" if decoder else "export it uncompressed"
            raise MeshError("unreadable", f"it is compressed with {extension}: {mend}")


class _RootedFiles:
    """trimesh's resolver: files beside the mesh or elsewhere under the root (ShapeNetCore v2 has ../images/x.jpg).

    Remembers the names that were not found, or found to be no picture, and those that lead out of the root.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root.resolve()
        self.missing: set[str] = set()
        self.outside: set[str] = set()

    def get(self, name: str) -> bytes:
        relative = name.strip().replace("\\", "/")
        if relative.startswith("-"):
            relative = relative.split()[-1]  # MTL options stand before the file's name
        for candidate in (relative, relative.rsplit("/", 1)[-1]):
            target = (self.folder / candidate).resolve()
            if not target.is_relative_to(self.root):
                if not Path(candidate).is_absolute():  # paths of the author's disk are merely missing
                    self.outside.add(name)
                    break
            elif target.is_file() and target.stat().st_size <= MAX_FILE_BYTES:
                content = target.read_bytes()
                if target.suffix.lower() not in PICTURES or _is_picture(content):
                    return content
        self.missing.add(name)
        raise FileNotFoundError(name)

    __getitem__ = get


def _is_picture(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).verify()
    except Exception:  # Pillow's readers raise many kinds; a broken picture is a missing one
        return False
    return True


def _primitives(scene: Any, rotation: Floats, linear: bool, incomplete: bool) -> list[Primitive]:
    placed = [(node, *scene.graph[node]) for node in scene.graph.nodes_geometry]
    placed = [(n, t, g) for n, t, g in placed if getattr(scene.geometry[g], "faces", None) is not None]
    num_faces = sum(len(scene.geometry[g].faces) for _, _, g in placed)
    if num_faces > MAX_FACES:  # before the instances are copied out
        raise MeshError("too-many-faces", f"it has {num_faces} triangles; simplify it to at most {MAX_FACES}")
    primitives: list[Primitive] = []
    names: dict[str, None] = {}
    for _, transform, name in placed:
        names.setdefault(name)
        part = name if len(names) < MAX_PARTS else "other"
        geometry = scene.geometry[name]
        if len(geometry.faces) == 0:
            continue
        matrix = rotation @ transform[:3, :3]
        faces = np.asarray(geometry.faces, np.int64)
        if np.linalg.det(matrix) < 0:
            faces = faces[:, ::-1]  # a mirrored instance would be inside out
        vertices = np.asarray(geometry.vertices, np.float64) @ matrix.T + rotation @ transform[:3, 3]
        primitives.append(_dress(part, vertices, faces, geometry, linear, incomplete))
    return primitives


def _dress(part: str, vertices: Floats, faces: Ints, geometry: Any, linear: bool, incomplete: bool) -> Primitive:
    """The primitive with its colours: texture, vertex or face colours, else the material's."""
    visual = geometry.visual
    decode = (lambda c: c) if linear else srgb_to_linear
    if visual.kind == "face":
        # each face needs corners of its own to have a colour of its own
        colors = np.repeat(decode(visual.face_colors[:, :3] / 255), 3, axis=0)
        apart = np.arange(faces.size).reshape(-1, 3)
        return Primitive(part, vertices[faces].reshape(-1, 3), apart, PLAIN_WHITE, colors)
    if visual.kind == "vertex":
        colors = decode(np.asarray(visual.vertex_colors)[:, :3] / 255)
        return Primitive(part, vertices, faces, PLAIN_WHITE, colors)
    if visual.kind != "texture":
        return Primitive(part, vertices, faces, PLAIN_GREY)
    material, texture = _material(visual.material, incomplete)
    uv = None if visual.uv is None else np.asarray(visual.uv, np.float64)[:, :2]
    if uv is None or len(uv) != len(vertices):
        uv = texture = None
    colors = visual.vertex_attributes.get("color")
    if colors is not None:
        scale = 255 if np.issubdtype(np.asarray(colors).dtype, np.integer) else 1
        colors = np.asarray(colors, np.float64)[:, :3] / scale
    return Primitive(part, vertices, faces, material, colors, uv if texture is not None else None, texture)


def _material(source: Any, incomplete: bool) -> tuple[Material, NDArray[np.uint8] | None]:
    """Our material and base colour texture for trimesh's SimpleMaterial (OBJ, PLY) or PBRMaterial (glTF)."""
    name = str(source.name or "")
    if hasattr(source, "baseColorTexture"):
        factor = source.baseColorFactor
        base = np.ones(3) if factor is None else np.asarray(factor, np.float64)[:3] / 255
        metallic = 0.0 if source.metallicFactor is None else float(source.metallicFactor)
        roughness = PLAIN_GREY.roughness if source.roughnessFactor is None else float(source.roughnessFactor)
        texture = _texture(source.baseColorTexture, keep_alpha=source.alphaMode in ("MASK", "BLEND"))
        red, green, blue = (float(c) for c in base)
        return Material(name, (red, green, blue), metallic, roughness), texture
    if source.image is not None and source.image.size == (2, 2) and "file_path" not in source.image.info:
        return PLAIN_GREY, None  # trimesh's stand-in for a material that the file does not have
    texture = _texture(source.image, keep_alpha=True)
    base = srgb_to_linear(np.asarray(source.main_color, np.float64)[:3] / 255)
    if texture is not None:
        base = np.ones(3)  # exporters write any Kd, even black, beside a texture
    elif incomplete and base.max() < 0.01:
        base = np.array(PLAIN_GREY.base_color)  # black because its texture, which is missing, gave the colour
    red, green, blue = (float(c) for c in base)
    return Material(name, (red, green, blue)), texture


def _texture(image: Any, keep_alpha: bool) -> NDArray[np.uint8] | None:
    """A Pillow picture as [H, W, 3 or 4] uint8; palettes, grey and grey-with-alpha pictures become RGB(A)."""
    if image is None:
        return None
    if max(image.size) > MAX_TEXTURE_SIDE:
        width, height = image.size
        raise MeshError("unreadable", f"a texture is {width} x {height} px; at most {MAX_TEXTURE_SIDE} a side")
    return np.array(image.convert("RGBA" if keep_alpha and image.has_transparency_data else "RGB"), np.uint8)
