"""Small programs' worth of mesh files that ask for far more than they are: one maker a way, each gives the file's path.

`scale` 1 is what was seen to take gigabytes; tests that lower the limits take less.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PLATE = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"
PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
PLY += "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
MB = 2**20


def one_library_often(folder: Path, scale: float = 1.0) -> Path:
    """200 lines that name one material library of 10 MB."""
    (folder / "m.mtl").write_text(
        "newmtl m\nKd 1 0 0\n" + "# nothing to see here, and much of it\n" * int(280_000 * scale)
    )
    path = folder / "a.obj"
    path.write_text("mtllib m.mtl\n" * 200 + PLATE + "usemtl m\n" + FACE)
    return path


def one_picture_often(folder: Path, scale: float = 1.0) -> Path:
    """400 materials with one PNG of 10 MB."""
    _noise(folder / "x.png", scale)
    (folder / "m.mtl").write_text("".join(f"newmtl m{i}\nmap_Kd {'./' * (i % 7)}x.png\n" for i in range(400)))
    path = folder / "a.obj"
    path.write_text("mtllib m.mtl\n" + PLATE + "".join(f"usemtl m{i}\n{FACE}" for i in range(400)))
    return path


def one_image_often(folder: Path, scale: float = 1.0) -> Path:
    """400 images of a glTF that are one PNG of 10 MB, each cut out at another alpha."""
    _noise(folder / "x.png", scale, "RGBA")
    header = _square()
    header["images"] = [{"uri": f"{'./' * (i % 7)}x.png"} for i in range(400)]
    header["textures"] = [{"source": i} for i in range(400)]
    header["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": i}}, "alphaMode": "MASK", "alphaCutoff": 0.2 + i / 1000}
        for i in range(400)
    ]
    (primitive,) = header["meshes"][0]["primitives"]
    header["meshes"][0]["primitives"] = [primitive | {"material": i} for i in range(400)]
    return _gltf(folder / "a.gltf", header)


def one_view_often(folder: Path, scale: float = 1.0) -> Path:
    """400 embedded pictures that lie in one place of the file's buffer."""
    _noise(folder / "x.png", scale)
    content = (folder / "x.png").read_bytes()
    header = _square()
    header["buffers"].append({"uri": "data:;base64," + base64.b64encode(content).decode()})
    first = len(header["bufferViews"])
    header["bufferViews"] += [{"buffer": 1, "byteLength": len(content)}] * 400
    header["images"] = [{"bufferView": first + i, "mimeType": "image/png"} for i in range(400)]
    return _gltf(folder / "a.gltf", header)


def one_buffer_often(folder: Path, scale: float = 1.0) -> Path:
    """400 buffers of a glTF that are one file of 10 MB, with a view into each that leaves out its first byte."""
    (folder / "x.bin").write_bytes(bytes(int(10 * MB * scale)))
    header = _square()
    header["buffers"] += [{"uri": "x.bin"}] * 400
    length = int(10 * MB * scale) - 1
    header["bufferViews"] += [{"buffer": 1 + i, "byteOffset": 1, "byteLength": length} for i in range(400)]
    return _gltf(folder / "a.gltf", header)


def unbacked_array(folder: Path, scale: float = 1.0) -> Path:
    """An array of 3e7 matrices without a byte in the file."""
    header = _square()
    header["accessors"].append({"componentType": 5126, "count": int(3e7 * scale), "type": "MAT4"})
    header["meshes"][0]["primitives"][0]["attributes"]["_MINE"] = len(header["accessors"]) - 1
    return _gltf(folder / "a.gltf", header)


def sparse_array(folder: Path, scale: float = 1.0) -> Path:
    """The same, said to be sparse, and used by nothing."""
    header = _square()
    sparse = {"count": 1, "indices": {"bufferView": 0, "componentType": 5125}, "values": {"bufferView": 0}}
    header["accessors"].append({"componentType": 5126, "count": int(3e7 * scale), "type": "MAT4", "sparse": sparse})
    return _gltf(folder / "a.gltf", header)


def draco_bomb(folder: Path, scale: float = 1.0) -> Path:
    """Some hundred kB of Draco that say they hold 20 million triangles: all of one strip, which packs to nothing."""
    head = b"DRACO\2\2\1\1\0\0\0" + _varint(int(1e7 * scale)) + _varint(int(2e7 * scale))
    return draco(folder, head + bytes(int(263_000 * scale)), 3, 3)


def draco_grid(folder: Path, scale: float = 1.0) -> Path:
    """A whole Draco mesh, a grid of 2 million triangles at scale 1."""
    import DracoPy

    size = max(int(1000 * scale**0.5), 2) + 1
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    corner = (y[:-1, :-1] * size + x[:-1, :-1]).ravel()
    halves = np.stack([corner, corner + 1, corner + size, corner + 1, corner + size + 1, corner + size], 1)
    points = np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(np.float32)
    return draco(folder, DracoPy.encode(points, halves.reshape(-1, 3)), 3, 3)


def _varint(value: int) -> bytes:
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def draco(folder: Path, content: bytes, num_points: int, num_indices: int) -> Path:
    """A glTF of one compressed mesh whose arrays promise so many points and indices."""
    packed = {"bufferView": 0, "attributes": {"POSITION": 0}}
    primitive = {"attributes": {"POSITION": 0}, "indices": 1, "extensions": {"KHR_draco_mesh_compression": packed}}
    header = _square() | {
        "extensionsUsed": ["KHR_draco_mesh_compression"],
        "extensionsRequired": ["KHR_draco_mesh_compression"],
        "accessors": [
            {"componentType": 5126, "count": num_points, "type": "VEC3"},
            {"componentType": 5125, "count": num_indices, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"uri": "data:;base64," + base64.b64encode(content).decode(), "byteLength": len(content)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(content)}],
    }
    return _gltf(folder / "a.gltf", header)


def dae_polygon(folder: Path, scale: float = 1.0) -> Path:
    """A DAE of 1 kB with a polygon that says it has 250 million corners; its `count`s are as wrong."""
    from tests.test_dae import dae

    text = (
        dae(faces="4")
        .replace("<vcount>4<", f"<vcount>{int(250_000_000 * scale)}<")
        .replace('count="1"', 'count="250000000"')
    )
    return _put(folder / "a.dae", text.replace('count="12"', 'count="2000000000"'))


def dae_elements(folder: Path, scale: float = 1.0) -> Path:
    """A DAE of millions of empty elements."""
    from tests.test_dae import dae

    return _put(folder / "a.dae", dae().replace("<asset>", "<extra>" + "<a/>" * int(1e7 * scale) + "</extra><asset>"))


def ply_miscounted(folder: Path, scale: float = 1.0) -> Path:
    """A text of 48 MB with fewer rows than its counts say."""
    rows = int(4 * MB * scale)
    return _put(folder / "a.ply", PLY.format("ascii", rows, 2) + "0.5 0.25 0\n" * rows)


def ply_short_rows(folder: Path, scale: float = 1.0) -> Path:
    """A text of as many lines as it promises, with one word each."""
    rows = int(5_900_000 * scale)
    return _put(folder / "a.ply", PLY.format("ascii", rows, 1) + "0000000\n" * rows + "3 0 1 2\n")


def ply_uncounted(folder: Path, scale: float = 1.0) -> Path:
    """A sound text with 48 MB of lines behind it that its counts leave out."""
    rows = "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    return _put(folder / "a.ply", PLY.format("ascii", 3, 1) + rows + "\x0b".join(["0"] * int(24 * MB * scale)))


def ply_long_header(folder: Path, scale: float = 1.0) -> Path:
    """The miscounted one with a header of more than 64 kB."""
    text = PLY.format("ascii", 4_000_000_000, 2).replace("element v", "comment x\n" * 8000 + "element v")
    return _put(folder / "a.ply", text + "0 0 0\n" * int(8 * MB * scale))


def ply_endless_header(folder: Path, scale: float = 1.0) -> Path:
    """A header that never ends."""
    return _put(folder / "a.ply", "ply\nformat ascii 1.0\n" + "comment x\n" * int(4.8 * MB * scale))


def ply_lists(folder: Path, scale: float = 1.0) -> Path:
    """A binary file of 48 MB: a million faces, each of 44 corners."""
    faces = int(1e6 * scale)
    head = PLY.format("binary_little_endian", 3, faces).replace("uchar int", "uint uchar")
    rows = np.zeros((faces, 48), np.uint8)
    rows[:, 0] = 44
    return _put(folder / "a.ply", head.encode() + bytes(36) + rows.tobytes())


def obj_line(folder: Path, scale: float = 1.0) -> Path:
    """A line of 48 MB: a polygon without end."""
    return _put(folder / "a.obj", PLATE + "f" + " 1 2 3" * int(8 * MB * scale) + "\n")


def obj_numbers(folder: Path, scale: float = 1.0) -> Path:
    """A vertex of 24 million coordinates, over lines that go on."""
    return _put(folder / "a.obj", "v" + (" 0" * 1000 + " \\\n") * int(24_000 * scale) + "\n" + PLATE + FACE)


def obj_fans(folder: Path, scale: float = 1.0) -> Path:
    """Polygons of 300,000 corners each, 48 MB of them."""
    return _put(folder / "a.obj", PLATE + ("f" + " 1 2 3" * 100_000 + "\n") * max(int(80 * scale), 1))


def obj_materials(folder: Path, scale: float = 1.0) -> Path:
    """A material a face, and as many in the library."""
    count = int(1e6 * scale)
    (folder / "m.mtl").write_text("".join(f"newmtl {i}\n" for i in range(count)))
    return _put(folder / "a.obj", "mtllib m.mtl\n" + PLATE + "".join(f"usemtl {i}\n{FACE}" for i in range(count)))


def off_polygon(folder: Path, scale: float = 1.0) -> Path:
    """A face of ten million corners."""
    corners = int(1e7 * scale)
    return _put(folder / "a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n" + f"{corners}" + " 0 1" * (corners // 2) + "\n")


def off_lines(folder: Path, scale: float = 1.0) -> Path:
    """Millions of lines, of which few are counted."""
    return _put(folder / "a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n" + "0\n" * int(24 * MB * scale))


def stl_solids(folder: Path, scale: float = 1.0) -> Path:
    """A text of a million solids."""
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    return _put(folder / "a.stl", f"solid a\n{facet}endsolid a\n" * int(4e5 * scale))


def stl_facets(folder: Path, scale: float = 1.0) -> Path:
    """A text of more corners than are drawn."""
    return _put(
        folder / "a.stl", "solid a\n" + "vertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\n" * int(2.1e6 * scale) + "endsolid a"
    )


def gltf_values(folder: Path, scale: float = 1.0) -> Path:
    """JSON of tens of millions of empty lists."""
    text = json.dumps(_square() | {"extras": [[]]})
    return _put(folder / "a.gltf", text.replace("[[]]", "[" + ",".join(["[]"] * int(1.6e7 * scale)) + "]"))


def gltf_deep(folder: Path, scale: float = 1.0) -> Path:
    """JSON of lists in lists in lists."""
    depth = int(9e5 * scale)
    return _put(folder / "a.gltf", json.dumps(_square() | {"extras": [7]}).replace("[7]", "[" * depth + "]" * depth))


def packed_list(folder: Path, scale: float = 1.0) -> Path:
    """A list of 100 kB that unpacks to more than 2 GB: lines of commas."""
    path = folder / "list.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"path,class\n")
        for _ in range(max(int(100 * scale), 1)):
            file.write(b"," * MB)
    return path


# What each is refused with: its reason, and words that tell why.
HOSTILE: dict[Callable[[Path, float], Path], tuple[str, str]] = {
    one_library_often: ("", ""),
    one_picture_often: ("", ""),
    one_image_often: ("unreadable", "texture pixels together"),
    one_view_often: ("unreadable", "MB of buffer views together"),
    one_buffer_often: ("unreadable", "MB of buffer views together"),
    unbacked_array: ("unreadable", "numbers together"),
    sparse_array: ("unreadable", "numbers together"),
    draco_bomb: ("too-many-faces", "20000000 triangles"),
    dae_polygon: ("unreadable", "promise 250000000 corners and have 4"),
    dae_elements: ("unreadable", "elements and attributes"),
    ply_miscounted: ("unreadable", "4194306 rows and has 4194304 lines"),
    ply_short_rows: ("unreadable", "with 3 values each"),
    ply_uncounted: ("", ""),
    ply_long_header: ("unreadable", "vertices"),
    ply_endless_header: ("unreadable", "end_header"),
    ply_lists: ("too-many-faces", "42000000 triangles"),
    obj_line: ("unreadable", "line of more than 1024 kB"),
    obj_numbers: ("unreadable", "line of more than 1024 kB"),
    obj_fans: ("too-many-faces", "triangles"),
    obj_materials: ("too-many-parts", "materials"),
    off_polygon: ("unreadable", "line of more than 1024 kB"),
    off_lines: ("unreadable", "lines"),
    stl_solids: ("too-many-parts", "solids"),
    stl_facets: ("too-many-faces", "triangles"),
    gltf_values: ("unreadable", "values"),
    gltf_deep: ("unreadable", "deep"),
}


def _put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _noise(path: Path, scale: float, mode: str = "RGB") -> None:
    """A PNG of some 10 MB, which is noise and so as large in memory."""
    side = max(int(1870 * scale**0.5), 2)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise, mode).save(file, "PNG", compress_level=1)
    path.write_bytes(file.getvalue())


def _square() -> dict[str, Any]:
    """A glTF of one square in two triangles, with texture coordinates."""
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
    data = points.tobytes() + points[:, :2].tobytes() + struct.pack("<6H", 0, 1, 2, 0, 2, 3)
    return {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 32},
            {"buffer": 0, "byteOffset": 80, "byteLength": 12},
        ],
        "buffers": [{"uri": "data:;base64," + base64.b64encode(data).decode(), "byteLength": len(data)}],
    }


def _gltf(path: Path, header: dict[str, Any]) -> Path:
    path.write_text(json.dumps(header))
    return path
