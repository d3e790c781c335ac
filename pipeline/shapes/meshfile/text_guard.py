"""OBJ, OFF and STL files before trimesh reads them: promises are checked, and what it would misread is mended."""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import Any

import numpy as np

from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import (
    MAX_FACES,
    MAX_VERTICES,
    Budget,
    check_count,
    check_pieces,
    check_vertices,
    count_lines,
)
from recon.pipeline.shapes.meshfile.colours import Colours, of_off
from recon.pipeline.shapes.meshfile.files import decode_text
from recon.pipeline.shapes.meshfile.polygons import concave

MAX_LINES = 2 * (MAX_FACES + MAX_VERTICES)  # of an OFF, blank ones and comments among them
MAX_NAMED = 256  # objects or groups, above which they are no parts: labels are bytes

# The letters before it announce texture coordinates, colours or normals, which follow a vertex's position.
OFF_MAGIC = re.compile(r"\s*(?:ST)?C?N?OFF(?![A-Z])", re.IGNORECASE)
MANY_CORNERS = re.compile(r"(?m)^f +(\S+ +\S+ +\S+ +\S[^\n]*)$")  # an OBJ's face of more than three
STL_HEADER_BYTES, STL_FACE_BYTES = 84, 50


def guard_obj(content: bytes, budget: Budget) -> tuple[bytes, dict[str, Any], list[str]]:
    """An OBJ as trimesh understands it, the options to read it with, and its lines that name material libraries.

    trimesh counts negative indices from the end of the file instead of from where they stand, takes index 0 for the
    first vertex, and knows no indented lines or comments behind numbers. Raises MeshError for more vertices, triangles,
    materials or numbers than a shape may have.
    """
    text = tidied(content)
    budget.spend_text(text.encode())
    # each search of the whole text takes milliseconds, so it is made where a quick look finds a reason
    if text[:1] == " " or "\n " in text or "#" in text:
        text = re.sub(r"(?m)^ +|^#.*$", "", text)
    if "#" in text:
        text = re.sub(r"(?m)^((?:v|vt|vn|f) [^#\n]*)#.*$", r"\1", text)
    _count_obj(text)
    faces = text[text.find("\nf ") :]
    if "-" in faces and re.search(r"(?m)^f [^\n]*[ /]-\d", faces):
        text = _absolute(text)
    if any(zero in faces for zero in (" 0 ", " 0/", " 0\n")) and re.search(r"(?m)^f [^\n]*(?<= )0(?=[/ \n])", faces):
        raise MeshError("bad-index", "a face names vertex 0, which does not exist: they are counted from 1")
    text = _without_concave(_shares(text))
    options: dict[str, Any] = {}
    for letter, option in (("o", "split_objects"), ("g", "split_groups")):
        names = set(re.findall(rf"(?m)^{letter} +(.*)$", text)) if f"\n{letter} " in text else ()
        if 1 < len(names) <= MAX_NAMED:
            options = {option: True}
            break
    return text.encode(), options, library_lines(text)


def _count_obj(text: str) -> None:
    """Raise MeshError for what trimesh would take apart line by line, and is too much of it."""
    check_vertices(max(text.count(f"\n{kind} ") for kind in ("v", "vt", "vn")))
    lines = text.count("\nf ")
    check_count(lines)
    # a text of fewer words has no more triangles, and a closer look takes a second
    if text.count(" ") > MAX_FACES:
        corners = (len(line[1].split()) for line in re.finditer(r"(?m)^f (.*)$", text))
        check_count(sum(max(count - 2, 0) for count in corners))
    check_pieces(len(set(re.findall(r"usemtl (.*)", text))), "materials")


def _shares(text: str) -> str:
    """The text with vertices' colours as shares of 1, as trimesh takes them, where they are bytes."""
    first = re.search(r"(?m)^v +([^\n]*)$", text)
    if first is None or len(first[1].split()) != 6:
        return text
    vertices = [match[1].split() for match in re.finditer(r"(?m)^v +([^\n]*)$", text)]
    try:
        if not 1 < max(float(word) for words in vertices for word in words[3:6]) <= 255:
            return text
    except ValueError:
        return text

    def scaled(match: re.Match[str]) -> str:
        words = match[1].split()
        return " ".join(["v", *words[:3], *(str(float(word) / 255) for word in words[3:6])])

    return re.sub(r"(?m)^v +([^\n]*)$", scaled, text)


def _without_concave(text: str) -> str:
    """The text with triangles in place of the polygons that trimesh's fans would not fill."""
    faces = MANY_CORNERS.findall(text)
    if not faces:
        return text
    words = " ".join(faces)
    corners = re.sub(r"/\S*", "", words).split() if "/" in words else words.split()
    sizes = np.array([len(line.split()) for line in faces])
    places = re.findall(r"(?m)^v +(\S+) +(\S+) +(\S+)", text)
    try:
        rings = np.array(corners, np.int64) - 1
        found = concave(np.array(places, np.float64).reshape(-1, 3), rings, sizes)
    except ValueError:  # no numbers: trimesh tells
        return text
    if not found:
        return text
    starts = (np.cumsum(sizes) - sizes).tolist()
    numbers = iter(range(len(faces)))

    def cut(line: re.Match[str]) -> str:
        number = next(numbers)
        if number not in found:
            return line[0]
        polygon = line[1].split()
        start = starts[number]
        corner = dict(zip(rings[start : start + len(polygon)].tolist(), polygon, strict=True))
        return "\n".join("f " + " ".join(corner[vertex] for vertex in row) for row in found[number].tolist())

    return MANY_CORNERS.sub(cut, text)


def tidied(content: bytes) -> str:
    """An OBJ's text with plain ends of lines, none continued on the next, and no tabs."""
    return decode_text(content).replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ").replace("\t", " ")


def library_lines(text: str) -> list[str]:
    """What follows `mtllib` on the lines of a tidied OBJ: a name of a material library, or several."""
    return [name.strip() for name in re.findall(r"(?m)^mtllib +(.*)$", text)]


def _absolute(text: str) -> str:
    """The text with plain indices instead of those that count back from the last vertex read."""
    counts = {"v": 0, "vt": 0, "vn": 0}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        key, _, rest = line.partition(" ")
        if key in counts:
            counts[key] += 1
        elif key == "f" and "-" in rest:
            corners = [corner.split("/") for corner in rest.split()]
            for corner in corners:
                for place, total in enumerate(list(counts.values())[: len(corner)]):
                    if corner[place].startswith("-"):
                        index = total + 1 + int(corner[place])
                        if index < 1:
                            raise MeshError("bad-index", "a face counts back to before the first vertex")
                        corner[place] = str(index)
            lines[number] = "f " + " ".join("/".join(corner) for corner in corners)
    return "\n".join(lines)


def guard_off(content: bytes, budget: Budget) -> tuple[bytes, Colours]:
    """An OFF with a magic word on a line of its own, to which ModelNet glues the counts, and its colours.

    Raises MeshError when it holds less than it promises, which trimesh takes for a smaller mesh, or too much.
    """
    budget.spend_text(content)
    num_lines = count_lines(content)
    if num_lines > MAX_LINES:
        raise MeshError("unreadable", f"it has {num_lines} lines; at most {MAX_LINES} are read")
    text = re.sub(r"#[^\n]*", "", decode_text(content))
    magic = OFF_MAGIC.match(text)
    lines = [line for line in (text[magic.end() :] if magic else text).splitlines() if line and not line.isspace()]
    try:
        num_vertices, num_faces = (int(word) for word in lines[0].split()[:2])
    except (IndexError, ValueError):
        words = "it is no OFF file: no numbers of vertices and faces at its start"
        raise MeshError("unreadable", words) from None
    if num_vertices < 0 or num_faces < 0 or len(lines) - 1 < num_vertices + num_faces:
        words = f"it promises {num_vertices} vertices and {num_faces} faces and has {len(lines) - 1} lines: cut off?"
        raise MeshError("unreadable", words)
    check_vertices(num_vertices)
    check_count(num_faces)
    del lines[1 + num_vertices + num_faces :]
    num_triangles, coloured = 0, True
    for line in islice(lines, 1 + num_vertices, None):
        count, corners = int(line.split(None, 1)[0]), len(line.split()) - 1
        if corners < count:
            raise MeshError("unreadable", "a face has fewer corners than its line says")
        num_triangles += max(count - 2, 0)
        coloured = coloured and corners >= count + 3
    check_count(num_triangles)
    letters = magic[0].upper().replace("OFF", "") if magic else ""
    faces = [line.split() for line in lines[1 + num_vertices :]] if coloured else []
    of_vertices, of_faces = of_off(lines[1 : 1 + num_vertices], faces, letters)
    cut = _concave_off(lines, num_vertices) if num_triangles > num_faces else {}
    if of_faces is not None or cut:  # trimesh would sort polygons by their size
        faces = [line.split() for line in lines[1 + num_vertices :]]
        triangles = [cut[number] if number in cut else _fan(face) for number, face in enumerate(faces)]
        if of_faces is not None:
            of_faces = np.repeat(of_faces, [len(rows) for rows in triangles], axis=0)
        texts = (f"3 {a} {b} {c}" for rows in triangles for a, b, c in rows)
        lines = [f"{num_vertices} {num_triangles} 0", *lines[1 : 1 + num_vertices], *texts]
    return "\n".join(["OFF", *lines]).encode(), (of_vertices, of_faces)


def _fan(face: list[str]) -> list[tuple[str, str, str]]:
    """The triangles of a face's line."""
    return [(face[1], face[i], face[i + 1]) for i in range(2, int(face[0]))]


def _concave_off(lines: list[str], num_vertices: int) -> dict[int, Any]:
    """See `concave`; of an OFF's lines."""
    try:
        vertices = np.array([line.split()[:3] for line in lines[1 : 1 + num_vertices]], np.float64).reshape(-1, 3)
        faces = [[int(word) for word in line.split()] for line in lines[1 + num_vertices :]]
    except ValueError:  # no numbers: trimesh tells
        return {}
    rings = [face[1 : 1 + face[0]] for face in faces]
    return concave(vertices, np.array(list(chain(*rings)), np.int64), np.array([len(ring) for ring in rings]))


def guard_stl(content: bytes, budget: Budget) -> None:
    """Raise MeshError for an STL that is neither text nor as long as its header says, or holds too much."""
    promised = int.from_bytes(content[80:84], "little")
    whole = len(content) >= STL_HEADER_BYTES and len(content) == STL_HEADER_BYTES + promised * STL_FACE_BYTES
    if whole:
        check_count(promised)
        return
    if content.lstrip()[:5].lower() != b"solid" or b"endsolid" not in content[-4096:].lower():
        raise MeshError("unreadable", f"it is no whole STL file of {promised} triangles, nor a text one: cut off?")
    budget.spend_text(content)
    text = content.lower()
    check_count(text.count(b"vertex") // 3)
    check_pieces(text.count(b"endsolid"), "solids")
