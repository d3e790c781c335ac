"""Colours of vertices and faces that trimesh does not read, or reads in another range than the file's.

Writers differ: shares of 1, bytes, or 16 bits, under several names. What a file means is told by its largest value.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.mesh import Floats, Ints, MeshError
from recon.pipeline.shapes.meshfile.polygons import concave

Bytes = NDArray[np.uint8]
Colours = tuple["NDArray[Any] | None", "NDArray[Any] | None"]
"""Of vertices and of faces, [N, 3]."""

PLY_NAMES = {
    "diffuse_red": "red",
    "diffuse_green": "green",
    "diffuse_blue": "blue",
    "r": "red",
    "g": "green",
    "b": "blue",
}
STL_DEFAULT = re.compile(rb"COLOR=(....)", re.DOTALL)  # how Materialise's programs begin theirs
OWN = 0x8000
MOST = 65535
"""The largest that a colour is written as."""


def as_bytes(colours: NDArray[Any]) -> Bytes:
    """[N, 3] uint8 of colours [N, 3 or 4] in any range; uint8 stays as it is."""
    colours = colours[:, :3]
    if colours.dtype == np.uint8:
        return colours
    values = np.nan_to_num(colours.astype(np.float64), posinf=0.0, neginf=0.0)
    most = values.max(initial=0.0)
    scale = 255.0 if most <= 1 else 1.0 if most <= 255 else 1 / 257
    return np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)


def check_shades(colours: NDArray[Any], where: str, mend: str = "") -> None:
    """MeshError, its words starting with `where`, for colours of points that can be none."""
    if not np.isfinite(colours).all():
        raise MeshError("wrong-color", f"{where}: hold values that are not finite")
    if colours.min(initial=0) < 0 or colours.max(initial=0) > MOST:
        held = f"hold {colours.min():g} to {colours.max():g}"
        raise MeshError("wrong-color", f"{where}: {held}, which are no colours{mend}")


def plain_names(lines: list[list[str]]) -> dict[bytes, bytes]:
    """Lines of a PLY's header, by what they are to be: colours under the names that trimesh knows."""
    names = {words[-1] for words in lines if words and words[0] == "property"}
    if "red" in names:
        return {}
    found = {}
    for words in lines:
        if len(words) == 3 and words[0] == "property" and words[2] in PLY_NAMES:
            found[" ".join(words).encode()] = " ".join([*words[:2], PLY_NAMES[words[2]]]).encode()
    return found if len(found) == 3 else {}


def dress(scene: Any, suffix: str, content: bytes, given: Colours = (None, None)) -> None:
    """Give the geometry of a scene the colours of its file.

    given: of an OFF, whose colours trimesh leaves out; content: of an STL, whose programs disagree.
    """
    for geometry in scene.geometry.values():
        faces = getattr(geometry, "faces", None)
        if faces is None or geometry.visual.kind == "texture":
            continue
        vertex, face = given
        if suffix == ".ply":
            elements = geometry.metadata.get("_ply_raw", {})
            _cut_polygons(geometry, elements.get("face"))
            faces = geometry.faces
            vertex, face = (_of_element(elements.get(name)) for name in ("vertex", "face"))
            vertex, face = (vertex, None) if vertex is not None else (None, face)
        elif suffix == ".stl" and "stl" in geometry.face_attributes:
            face = _of_stl(content[:80], np.asarray(geometry.face_attributes["stl"]).ravel())
        if vertex is not None and len(vertex) == len(geometry.vertices):
            geometry.visual.vertex_colors = as_bytes(vertex)
        elif face is not None and len(face) == len(faces):
            geometry.visual.face_colors = as_bytes(face)


def of_points(cloud: Any) -> Bytes | None:
    """[P, 3] of a scene's point cloud; None where it says none. MeshError for what can be no colours."""
    found = _of_element(cloud.metadata.get("_ply_raw", {}).get("vertex"))
    if found is None:
        found = np.asarray(getattr(cloud, "colors", ()))
    if found.ndim != 2 or not len(found) == len(cloud.vertices) > 0:
        return None
    check_shades(found, "colours of points")
    return as_bytes(found)


def _cut_polygons(geometry: Any, element: dict[str, Any] | None) -> None:
    """Give a PLY's geometry its polygons in the file's order, concave ones without what a fan would add; and each of
    their triangles a row of its own in the element, so that it has its polygon's colour.

    A geometry of triangles, or of convex polygons without colours, stays as trimesh made it.
    """
    data: Any = None if element is None else element.get("data")
    names = () if data is None else data.keys() if isinstance(data, dict) else data.dtype.names or ()
    lists = next((data[name] for name in ("vertex_index", "vertex_indices") if name in names), None)
    if element is None or lists is None:
        return
    rings = lists if isinstance(data, dict) else lists["f1"]  # of a binary file all are of one size
    sizes = np.array([len(ring) for ring in rings], np.int64)
    if not (sizes > 3).any():
        return
    corners = np.concatenate(list(rings)).astype(np.int64)
    found = concave(np.asarray(geometry.vertices), corners, sizes)
    if not found and "red" not in names:
        return
    ends = np.cumsum(sizes).tolist()
    triangles = [
        found[number] if number in found else _fan(corners[end - size : end])
        for number, (end, size) in enumerate(zip(ends, sizes.tolist(), strict=True))
    ]
    geometry.faces = np.concatenate(triangles)
    counts = np.maximum(sizes - 2, 0)
    shades = {"red", "green", "blue"} & set(names)
    element["data"] = {name: np.repeat(np.ravel(data[name]), counts) for name in shades}


def _fan(ring: Ints) -> Ints:
    """[corners - 2, 3] of a polygon's vertices."""
    return np.stack([np.repeat(ring[:1], max(len(ring) - 2, 0)), ring[1:-1], ring[2:]], 1)


def _of_element(element: dict[str, Any] | None) -> NDArray[Any] | None:
    """[N, 3] of a PLY's element, with the type that the file has."""
    data = None if element is None else element.get("data")
    try:
        return None if data is None else np.column_stack([np.ravel(data[name]) for name in ("red", "green", "blue")])
    except (KeyError, ValueError, TypeError):
        return None


def _of_stl(header: bytes, words: NDArray[Any]) -> Bytes | None:
    """[F, 3] of the two bytes behind each triangle; None where they are no colours.

    VisCAM and SolidView set the highest bit of a triangle with a colour, blue in the lowest bits. Materialise says a
    colour in the header and clears that bit where a triangle has its own, red in the lowest bits.
    """
    words = words.astype(np.uint16)
    colours = np.rint(np.stack([(words >> shift) & 31 for shift in (10, 5, 0)], 1) * (255 / 31)).astype(np.uint8)
    marked, common = (words & OWN) != 0, STL_DEFAULT.search(header)
    if common is not None:
        return np.where(marked[:, None], np.frombuffer(common[1][:3], np.uint8), colours[:, ::-1])
    return colours if marked.all() else None  # some write other things there


def of_off(vertex_lines: list[str], face_lines: list[list[str]], letters: str) -> Colours:
    """What an OFF says behind its positions, if its letters hold a C, and behind its corners."""
    vertex = face = None
    at = 6 if "N" in letters else 3
    if "C" in letters and vertex_lines and len(vertex_lines[0].split()) >= at + 3:
        vertex = _numbers([line.split()[at : at + 3] for line in vertex_lines])
    rests = [words[1 + int(words[0]) :] for words in face_lines]
    if rests and all(len(rest) >= 3 for rest in rests):  # one number alone is a place in a table that files do not have
        face = _numbers([rest[:3] for rest in rests])
    return vertex, face


def _numbers(rows: list[list[str]]) -> Floats | None:
    try:
        return np.array(rows, np.float64)
    except ValueError:
        return None
