"""Concave polygons are filled, and no more than that, in every format that has polygons."""

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.shapes.meshfile.polygons import concave

DART = [(0, 0, 0), (2, 1, 0), (0, 2, 0), (1, 1, 0)]  # its last corner turns back; the fan of its first covers too much
COMB = [(0, 0, 0), (5, 0, 0), (5, 2, 0), (4, 2, 0), (4, 1, 0), (2, 1, 0), (2, 2, 0), (1, 2, 0), (1, 1, 0), (0, 1, 0)]
AREAS = {"dart": 1.0, "comb": 7.0}
RINGS = {"dart": DART[-1:] + DART[:-1], "comb": COMB}


def cut(ring, *polygons) -> dict[int, np.ndarray]:
    """What `concave` makes of polygons among the corners of a ring; without any, of the ring itself."""
    rings = [list(polygon) for polygon in polygons or [range(len(ring))]]
    return concave(np.array(ring, float), np.concatenate(rings), np.array([len(each) for each in rings]))


def area(vertices, faces) -> float:
    """Sum of the triangles' areas, which is more than the polygon's where they overlap."""
    a, b, c = (np.asarray(vertices, float)[np.asarray(faces)[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def obj(folder: Path, ring, _: bool) -> Path:
    lines = [f"v {x} {y} {z}" for x, y, z in ring] + ["vt 0 0"]
    faces = "f " + " ".join(f"{i + 1}/1" for i in range(len(ring)))
    (folder / "a.obj").write_text("\n".join([*lines, faces, "f 1/1 2/1 3/1", "f -2 -1 1 2"]))
    return folder / "a.obj"


def off(folder: Path, ring, coloured: bool) -> Path:
    lines = [f"{x} {y} {z}" for x, y, z in ring]
    red, green = (" 255 0 0", " 0 255 0") if coloured else ("", "")
    rows = [f"{len(ring)} {' '.join(map(str, range(len(ring))))}{red}", f"3 0 1 2{green}"]
    (folder / "a.off").write_text("\n".join(["OFF", f"{len(ring)} 2 0", *lines, *rows]))
    return folder / "a.off"


def ply(folder: Path, ring, coloured: bool) -> Path:
    header = f"ply\nformat ascii 1.0\nelement vertex {len(ring)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "element face 2\nproperty list uchar int vertex_indices\n"
    header += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue")) if coloured else ""
    lines = [f"{x} {y} {z}" for x, y, z in ring]
    red, green = (" 255 0 0", " 0 255 0") if coloured else ("", "")
    rows = [f"{len(ring)} {' '.join(map(str, range(len(ring))))}{red}", f"3 0 1 2{green}"]
    (folder / "a.ply").write_text(header + "end_header\n" + "\n".join([*lines, *rows]) + "\n")
    return folder / "a.ply"


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("name", ["dart", "comb"])
@pytest.mark.parametrize("write", [off, ply])
def test_a_concave_polygon_has_its_own_area_and_colour(tmp_path, write, name, coloured):
    ring = RINGS[name]
    (item,) = load_mesh(write(tmp_path, ring, coloured), tmp_path).primitives
    extra = area(ring, [[0, 1, 2]])
    assert area(item.vertices, item.faces) == pytest.approx(AREAS[name] + extra)
    assert len(item.faces) == len(ring) - 2 + 1
    if coloured:
        shades = Counter(tuple(item.colors[face[0]].round().astype(int).tolist()) for face in item.faces)
        assert shades == {(1, 0, 0): len(ring) - 2, (0, 1, 0): 1}


@pytest.mark.parametrize("coloured", [False, True])
def test_a_binary_ply_of_quadrilaterals(tmp_path, coloured):
    shades = ((255, 0, 0), (0, 255, 0)) if coloured else ((), ())
    rows = [
        struct.pack(f"<B4i{len(shade)}B", 4, *corners, *shade)
        for corners, shade in zip(((0, 1, 2, 3), (3, 0, 1, 2)), shades, strict=True)
    ]
    text = ply(tmp_path, RINGS["dart"], coloured).read_text()
    header = text[: text.index("end_header\n")].replace("ascii", "binary_little_endian") + "end_header\n"
    vertices = np.array(RINGS["dart"], "<f4").tobytes()
    (tmp_path / "b.ply").write_bytes(header.encode() + vertices + b"".join(rows))
    (item,) = load_mesh(tmp_path / "b.ply", tmp_path).primitives
    assert area(item.vertices, item.faces) == pytest.approx(2)
    if coloured:
        found = [item.colors[face[0]].round().astype(int).tolist() for face in item.faces]
        assert found == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_an_obj_with_a_concave_polygon_keeps_its_other_faces(tmp_path):
    (item,) = load_mesh(obj(tmp_path, RINGS["comb"], False), tmp_path).primitives
    last = COMB[-2:] + COMB[:2]
    assert area(item.vertices, item.faces) == pytest.approx(7 + area(COMB, [[0, 1, 2]]) + _around(last))


def _around(ring) -> float:
    """By the shoelace formula."""
    x, y = np.array(ring, float)[:, :2].T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def test_a_convex_polygon_stays_the_fan_that_it_was():
    ring = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0), (0, 1, 0)]  # one corner on a straight edge
    assert cut(ring, range(5), range(4), [0, 1, 9, 2], [3, 4, 0]) == {}


def test_a_polygon_that_crosses_itself_is_left_to_fans():
    assert cut([(0, 0, 0), (3, 3, 0), (3, 0, 0), (0, 2, 0)]) == {}


@given(
    radii=st.lists(st.floats(0.2, 3), min_size=4, max_size=12),
    turn=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: sum(map(abs, v)) > 0.1),
)
def test_stars_anywhere_in_space_are_filled_and_keep_their_side(radii, turn):
    angle = 2 * np.pi * np.arange(len(radii)) / len(radii)
    flat = np.stack([radii * np.cos(angle), radii * np.sin(angle), 0 * angle], 1)
    away = np.linalg.qr(np.column_stack([turn, np.eye(3)[:, :2] + 0.1]))[0]
    away = away * np.sign(np.linalg.det(away))
    ring = flat @ away.T + 7
    for triangles in cut(ring).values():
        a, b, c = (ring[triangles[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a) @ away[:, 2]
        assert (normals >= -1e-9).all() and normals.sum() / 2 == pytest.approx(_around(flat))
