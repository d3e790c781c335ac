"""What files of each format may hold beside a plain mesh: names, materials, glitches, promises they do not keep."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recon.pipeline.procedural.geometry import box
from recon.pipeline.shapes.meshfile import MeshError, budget, load_mesh

SHARED = Path(__file__).resolve().parents[2] / "shared"
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "usemtl m\nf 1/1 2/2 3/3 4/4\n"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> MeshError:
    with pytest.raises(MeshError) as caught:
        load_mesh(path, path.parent)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def area(mesh) -> float:
    corners = np.concatenate([p.vertices[p.faces] for p in mesh.primitives])
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(cross, axis=1).sum() / 2)


# ---- OBJ


def test_obj_negative_indices_count_back_from_where_they_stand(tmp_path):
    # Readers that count from the end of the file take both squares for the second one.
    squares = [f"v {x} 0 0\nv {x + 1} 0 0\nv {x + 1} 1 0\nv {x} 1 0\nf -4 -3 -2 -1\n" for x in (0, 5)]
    mesh = load_mesh(put(tmp_path / "a.obj", "".join(squares)), tmp_path)
    assert np.allclose(mesh.bounds(), [[0, 0, 0], [6, 1, 0]]) and math.isclose(area(mesh), 2.0)


@pytest.mark.parametrize("face", ["f 1 2 9", "f 0 1 2", "f -9 -2 -1"])
def test_obj_indices_that_do_not_exist_are_refused(tmp_path, face):
    assert refusal(put(tmp_path / "a.obj", QUAD + face + "\n")).reason in ("bad-index", "unreadable")


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("o seat\nf 1 2 3\no leg\nf 1 3 4\n", {"seat", "leg"}),
        ("o chair\ng seat\nf 1 2 3\ng leg\nf 1 3 4\n", {"seat", "leg"}),
        ("g chair\nusemtl wood\nf 1 2 3\nusemtl steel\nf 1 3 4\n", {"wood", "steel"}),
        ("o seat\nusemtl wood\nf 1 2 3\no leg\nusemtl steel\nf 1 3 4\n", {"seat_wood", "leg_steel"}),
        ("f 1 2 3\nf 1 3 4\n", {"geometry"}),
    ],
)
def test_obj_a_part_is_what_the_file_tells_apart(tmp_path, lines, parts):
    put(tmp_path / "m.mtl", "newmtl wood\nnewmtl steel\n")
    text = ("mtllib m.mtl\n" if "usemtl" in lines else "") + QUAD + lines
    assert set(load_mesh(put(tmp_path / "a.obj", text), tmp_path).parts) == parts


@pytest.mark.parametrize(
    ("line", "span"),
    [
        ("map_Kd my wood.png", 1),
        ("map_Kd -s 2 2 1 my wood.png", 2),
        ("map_kd -clamp on -s 3 my wood.png", 3),
        ("\tmap_Kd -o 5 5 0 -mm 0 1 -bm 0.4 my wood.png", 1),
    ],
)
def test_obj_options_before_a_picture_name_with_spaces(tmp_path, line, span):
    Image.new("RGB", (2, 2)).save(tmp_path / "my wood.png")
    put(tmp_path / "m.mtl", f"newmtl m\n{line}\n")
    mesh = load_mesh(put(tmp_path / "a.obj", "mtllib m.mtl\n" + QUAD + FACE), tmp_path)
    (item,) = mesh.primitives
    assert mesh.facts == {} and math.isclose(np.ptp(item.uv[:, 0]), span)
    assert math.isclose(item.uv.min(), 5 if "-o" in line else 0)


def test_obj_several_material_files_and_names_with_spaces(tmp_path):
    put(tmp_path / "a.mtl", "newmtl dark oak\nKd 1 0 0\n")
    put(tmp_path / "b.mtl", "newmtl b\nKd 0 1 0\n")
    put(tmp_path / "my c.mtl", "newmtl c\nKd 0 0 1\n")
    faces = "usemtl dark oak\nf 1 2 3\nusemtl b\nf 1 2 4\nusemtl c\nf 2 3 4\n"
    mesh = load_mesh(put(tmp_path / "m.obj", "mtllib a.mtl b.mtl\nmtllib my c.mtl\n" + QUAD + faces), tmp_path)
    colors = {p.material.name: p.material.base_color for p in mesh.primitives}
    assert colors == {"dark oak": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)} and mesh.facts == {}


def test_obj_line_ends_comments_continuations_tabs_and_old_encodings(tmp_path):
    text = "# a\r\nv\t0 0 0\r\nv 1 0 0 # corner\r\nv 1 \\\r\n1 0\r\no b\xe9b\xe9\r\nf 1 2 \\\r\n3\r\n"
    mesh = load_mesh(put(tmp_path / "a.obj", text.encode("latin-1")), tmp_path)
    assert mesh.parts == ("bébé",) and math.isclose(area(mesh), 0.5)


@pytest.mark.parametrize(
    ("mtl", "parts"),
    [
        ("newmtl a\nd 0\nnewmtl b\nd 1\n", {"b"}),
        ("newmtl a\nTr 1\nnewmtl b\nTr 0\n", {"b"}),
        ("newmtl a\nd 1\nTr 1\nnewmtl b\n", {"a", "b"}),  # where both are given, d counts
        ("newmtl a\nd 0.1\nnewmtl b\nTr 0.9\n", {"a", "b"}),
        ("newmtl a\nd 0\nnewmtl b\nd 0\n", {"a", "b"}),  # all hidden: it was meant the other way round
    ],
)
def test_obj_only_what_is_fully_transparent_is_left_out(tmp_path, mtl, parts):
    put(tmp_path / "m.mtl", mtl)
    faces = "usemtl a\nf 1 2 3\nusemtl b\nf 1 3 4\n"
    mesh = load_mesh(put(tmp_path / "m.obj", "mtllib m.mtl\n" + QUAD + faces), tmp_path)
    assert set(mesh.parts) == parts


def test_obj_vertex_colours_are_used_where_there_is_no_material(tmp_path):
    text = "v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0 1 0 0\nf 1 2 3\n"
    (item,) = load_mesh(put(tmp_path / "a.obj", text), tmp_path).primitives
    assert np.allclose(item.colors, [1, 0, 0])


# ---- OFF


SQUARE_OFF = "4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"


@pytest.mark.parametrize(
    "text",
    [
        "OFF\n" + SQUARE_OFF,
        "OFF" + SQUARE_OFF,  # ModelNet's glitch
        "OFF " + SQUARE_OFF,
        "off\r\n" + SQUARE_OFF.replace("\n", "\r\n"),
        "# made by OFF 3\nOFF # yes\n\n" + SQUARE_OFF.replace("\n", " # c\n\n"),
        "OFF\n" + SQUARE_OFF.replace("4 0 1 2 3", "4 0 1 2 3 255 0 0"),  # a face's colour
        "COFF\n" + SQUARE_OFF.replace(" 0\n", " 0 255 0 0 255\n").replace("4 1 0 255 0 0 255", "4 1 0"),
        "\ufeffOFF\n" + SQUARE_OFF,
    ],
)
def test_off_headers_comments_and_line_ends(tmp_path, text):
    mesh = load_mesh(put(tmp_path / "a.off", text), tmp_path)
    assert math.isclose(area(mesh), 1.0) and sum(len(p.faces) for p in mesh.primitives) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("OFF\n353535235358 6 0\n0 0 0\n", "unreadable"),
        ("OFF\n4 353535235358 0\n" + SQUARE_OFF[6:], "unreadable"),
        ("OFF\n" + SQUARE_OFF.replace("4 1 0", "4 2 0"), "unreadable"),  # cut off after its first face
        ("OFF\n" + SQUARE_OFF.replace("4 0 1 2 3", "4 0 1 2"), "unreadable"),
        ("OFF\n" + SQUARE_OFF.replace("4 0 1 2 3", "4 0 1 2 9"), "unreadable"),
        ("OFF\n" + SQUARE_OFF.replace("4 0 1 2 3", "4 0 1 2 -1"), "unreadable"),
        ("OFF\n-4 1 0\n", "unreadable"),
        ("OFF BINARY\n\x01\x02", "unreadable"),
    ],
)
def test_off_files_that_break_their_word_are_refused(tmp_path, text, reason):
    assert refusal(put(tmp_path / "a.off", text)).reason == reason


@pytest.mark.skipif(not (SHARED / "formats" / "modelnet_off").is_dir(), reason="needs the genuine ModelNet files")
def test_genuine_modelnet_files_have_the_counts_of_their_headers():
    paths = sorted((SHARED / "formats" / "modelnet_off").glob("*.off"))
    assert paths
    for path in paths:
        header = path.read_text().split(None, 4)
        (item,) = load_mesh(path, path.parent, up="+Z", front="-Y").primitives
        assert (len(item.vertices), len(item.faces)) == (int(header[1]), int(header[2]))


@pytest.mark.skipif(not (SHARED / "formats" / "shapenet_core_v2").is_dir(), reason="needs genuine ShapeNetCore files")
def test_genuine_shapenet_files_have_all_their_faces_and_name_what_they_lack():
    paths = sorted((SHARED / "formats" / "shapenet_core_v2").rglob("model_normalized.obj"))
    assert paths
    for path in paths:
        lines = path.read_text().splitlines()
        mesh = load_mesh(path, SHARED / "formats", front="-Z")
        assert sum(len(p.faces) for p in mesh.primitives) == sum(line.startswith("f ") for line in lines)
        assert mesh.facts == {"missing_files": ["model_normalized.mtl"]}, "the samples come without materials"
        assert np.ptp(mesh.bounds(), axis=0).max() < 1.01, "ShapeNetCore v2 is normalised"


# ---- PLY and STL


def binary_ply(order: str, faces: list[list[int]]) -> bytes:
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = ["ply", f"format {name} 1.0", "element vertex 5", *(f"property double {c}" for c in "xyz")]
    head += [f"element face {len(faces)}", "property list uchar int vertex_index", "property uchar red", "end_header\n"]
    corners = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0, 0)]
    body = b"".join(struct.pack(order + "3d", *corner) for corner in corners)
    for face in faces:
        body += struct.pack(f"{order}B{len(face)}iB", len(face), *face, 7)
    return "\n".join(head).encode() + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("faces", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]]])
def test_ply_binary_of_either_order(tmp_path, order, faces):
    assert math.isclose(area(load_mesh(put(tmp_path / "a.ply", binary_ply(order, faces)), tmp_path)), 1.0)


def test_ply_binary_with_mixed_polygons_is_refused_and_not_misread(tmp_path):
    assert refusal(put(tmp_path / "a.ply", binary_ply("<", [[0, 1, 2, 3], [1, 4, 2]]))).reason == "unreadable"


@pytest.mark.parametrize("end", [-1, -10, -40])
def test_ply_binary_files_that_are_cut_off_are_refused(tmp_path, end):
    whole = binary_ply("<", [[0, 1, 2], [0, 2, 3]])
    assert refusal(put(tmp_path / "a.ply", whole[:end])).reason == "unreadable"


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize(
    "promise", ["element vertex 4000000000", "element face 4000000000", "element edge 99999999999"]
)
def test_ply_headers_that_promise_billions_are_refused_at_once(tmp_path, encoding, promise):
    head = ["ply", f"format {encoding} 1.0", "element vertex 1", *(f"property float {c}" for c in "xyz")]
    head += ["element face 1", "property list uchar int vertex_indices", "element edge 1", "property int a"]
    kind = promise.rsplit(" ", 1)[0]
    head = [promise if line.startswith(kind) else line for line in head]
    assert refusal(put(tmp_path / "a.ply", "\n".join([*head, "end_header"]) + "\n0 0 0\n3 0 0 0\n"))


def test_ply_a_list_that_promises_billions_is_refused_at_once(tmp_path):
    head = "ply\nformat binary_little_endian 1.0\nelement face 1\nproperty list uint int vertex_indices\nend_header\n"
    assert refusal(put(tmp_path / "a.ply", head.encode() + b"\xff\xff\xff\xff\0\0\0\0"))


@pytest.mark.parametrize("where", ["vertex", "corner"])
def test_ply_its_picture_is_drawn_by_coordinates_of_vertices_or_corners(tmp_path, where):
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "t.png")
    st_names = ["property float s", "property float t"] if where == "vertex" else []
    head = ["ply", "format ascii 1.0", "comment TextureFile t.png", "element vertex 3"]
    head += [*(f"property float {c}" for c in "xyz"), *st_names, "element face 2"]
    head += ["property list uchar int vertex_indices", *(["property list uchar float texcoord"] * (where == "corner"))]
    rows = ["0 0 0 0 0", "1 0 0 1 0", "0 1 0 0 1"] if where == "vertex" else ["0 0 0", "1 0 0", "0 1 0"]
    rows += ["3 0 1 2" if where == "vertex" else "3 0 1 2 6 0 0 1 0 0 1"] * 2
    (item,) = load_mesh(put(tmp_path / "a.ply", "\n".join([*head, "end_header", *rows])), tmp_path).primitives
    assert item.texture[0, 0].tolist() == [9, 8, 7]
    assert np.allclose(item.uv[item.faces[0]], [[0, 0], [1, 0], [0, 1]])


def test_stl_text_and_binary_that_starts_like_text(tmp_path):
    solid = trimesh.Trimesh(box(1, 2, 3).vertices, box(1, 2, 3).faces, process=False)
    text, binary = solid.export(file_type="stl_ascii"), solid.export(file_type="stl")
    for content in (text, text.replace("\n", "\r\n").upper(), b"solid" + binary[5:], binary):
        assert math.isclose(area(load_mesh(put(tmp_path / "a.stl", content), tmp_path)), 22.0, rel_tol=1e-5)
    for content in (binary[:-10], text[: len(text) // 2], b"\0" * 80 + b"\xff\xff\xff\xff"):
        assert "cut off" in str(refusal(put(tmp_path / "a.stl", content)))


# ---- pictures


def test_a_picture_of_too_many_pixels_is_refused_by_its_first_bytes(tmp_path, monkeypatch):
    put(tmp_path / "m.mtl", "newmtl m\nmap_Kd t.png\n")
    path = put(tmp_path / "a.obj", "mtllib m.mtl\n" + QUAD + FACE)
    Image.new("L", (9000, 10)).save(tmp_path / "t.png")
    assert "9000 x 10" in str(refusal(path))
    # a PNG of 900 million pixels in a few bytes: only its header is there
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    put(tmp_path / "t.png", b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert "too large" in str(refusal(path))
    monkeypatch.setitem(budget.LIMITS, "texture pixels", 100)
    Image.new("L", (11, 10)).save(tmp_path / "t.png")
    assert "110 texture pixels together" in str(refusal(path))


def test_a_picture_of_sixteen_bits_is_not_clipped_to_white(tmp_path):
    Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)).save(tmp_path / "t.png")
    put(tmp_path / "m.mtl", "newmtl m\nmap_Kd t.png\n")
    (item,) = load_mesh(put(tmp_path / "a.obj", "mtllib m.mtl\n" + QUAD + FACE), tmp_path).primitives
    assert (item.texture == 128).all()


@settings(max_examples=60)
@given(st.sampled_from(["a.obj", "a.off", "a.ply", "a.stl", "a.dae", "a.glb", "a.gltf"]), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, name, content):
    folder = tmp_path_factory.getbasetemp() / "any"
    path = put(folder / name, content)
    try:
        load_mesh(path, folder)
    except MeshError as error:
        assert "\n" not in str(error)
