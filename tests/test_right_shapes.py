"""What docs/rendering.md's table of formats says is right or approximated; glTF in `test_right_gltf`. A file a cell."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.shapes.meshfile import load_mesh, mesh_digest
from recon.pipeline.shapes.meshfile.colours import as_bytes
from recon.pipeline.shapes.sample import sample_points

RED, GREEN = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def loaded(path: Path):
    return load_mesh(path, path.parent)


def colour(mesh) -> list[float]:
    """The one linear colour of a mesh, of its material or its corners."""
    (item,) = mesh.primitives
    if item.colors is not None:
        assert np.allclose(item.colors, item.colors[0])
        return (item.colors[0] * item.material.base_color).round(2).tolist()
    return np.round(item.material.base_color, 2).tolist()


# ---- places


@pytest.mark.parametrize("size", [1.0, 0.02])
def test_a_shape_far_from_the_origin_is_the_one_near_it(tmp_path, size):
    at = np.array([448262.25, 535123.5, 923456.75])
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * size
    faces = "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n"
    meshes = []
    for name, place in (("near", -size / 2 * np.ones(3)), ("far", at)):
        lines = "".join("v {:.6f} {:.6f} {:.6f}\n".format(*corner) for corner in corners + place)
        meshes.append(loaded(put(tmp_path / f"{name}.obj", lines + faces)))
    near, far = meshes
    assert near.facts == {}
    assert np.allclose(far.facts["moved"], -(at + size / 2), rtol=0, atol=1e-6)
    assert np.allclose(far.bounds(), near.bounds(), rtol=0, atol=1e-6)
    assert len(np.unique(sample_points(far, 512, 0).xyz, axis=0)) == 512


def test_small_shapes_far_away_keep_digests_of_their_own(tmp_path):
    digests = set()
    for height in (0.01, 0.02):
        corners = np.array([[0, 0, 0], [0.01, 0, 0], [0.01, height, 0], [0, height, 0]]) + 500_000
        lines = "".join("v {:.4f} {:.4f} {:.4f}\n".format(*corner) for corner in corners)
        digests.add(mesh_digest(loaded(put(tmp_path / "a.obj", lines + "f 1 2 3 4\n"))))
    assert len(digests) == 2


# ---- OBJ


def test_obj_what_only_shines_has_the_colour_of_its_light(tmp_path):
    put(tmp_path / "a.mtl", "newmtl a\nKd 0 0 0\nKe 0 1 0\n")
    assert colour(loaded(put(tmp_path / "a.obj", "mtllib a.mtl\nusemtl a\n" + QUAD + "f 1 2 3 4\n"))) == GREEN
    put(tmp_path / "a.mtl", "newmtl a\nKd 1 0 0\nKe 0 1 0\n")
    assert colour(loaded(tmp_path / "a.obj")) == RED


@pytest.mark.parametrize("scale", [1, 255])
def test_obj_colours_of_vertices_as_shares_or_bytes(tmp_path, scale):
    lines = "".join(f"v {x} {y} 0 {scale} 0 0\n" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    assert colour(loaded(put(tmp_path / "a.obj", lines + "f 1 2 3 4\n"))) == RED


@pytest.mark.parametrize("name", ["wood.png", '"Wood.PNG"', "WOOD.png", "textures\\Wood.PNG", "sub/../wOOD.png"])
def test_obj_names_in_another_case_or_in_quotes(tmp_path, name):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "Wood.PNG", "PNG")
    put(tmp_path / "Box.MTL", f"newmtl a\nKd 1 1 1\nmap_Kd {name}\n")
    text = "mtllib box.mtl\nusemtl a\n" + QUAD + "vt 0 0\nf 1/1 2/1 3/1 4/1\n"
    mesh = loaded(put(tmp_path / "a.obj", text))
    assert mesh.facts == {} and mesh.primitives[0].texture is not None


def test_obj_the_exact_name_comes_before_another_case(tmp_path):
    for name, pixel in (("A.png", (255, 0, 0)), ("a.png", (0, 255, 0))):
        Image.new("RGB", (2, 2), pixel).save(tmp_path / name)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("a file system without case")
    put(tmp_path / "m.mtl", "newmtl a\nmap_Kd a.png\n")
    mesh = loaded(put(tmp_path / "a.obj", "mtllib m.mtl\nusemtl a\n" + QUAD + "vt 0 0\nf 1/1 2/1 3/1 4/1\n"))
    assert mesh.primitives[0].texture[0, 0].tolist() == [0, 255, 0]


def test_a_name_in_another_case_outside_the_root_stays_outside(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "Secret.png")
    put(root / "m.mtl", "newmtl a\nmap_Kd ../SECRET.png\n")
    path = put(root / "a.obj", "mtllib m.mtl\nusemtl a\n" + QUAD + "vt 0 0\nf 1/1 2/1 3/1 4/1\n")
    with pytest.raises(Exception, match="outside"):
        load_mesh(path, root)


def test_a_tiff_of_floats_is_not_black(tmp_path):
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "half.tiff")
    put(tmp_path / "m.mtl", "newmtl a\nmap_Kd half.tiff\n")
    mesh = loaded(put(tmp_path / "a.obj", "mtllib m.mtl\nusemtl a\n" + QUAD + "vt 0 0\nf 1/1 2/1 3/1 4/1\n"))
    assert mesh.primitives[0].texture[0, 0].tolist() == [128, 128, 128]


# ---- PLY, OFF, STL


@pytest.mark.parametrize(
    "names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
)
@pytest.mark.parametrize(
    ("kind", "most"), [("uchar", 255), ("ushort", 65535), ("float", 1), ("double", 255), ("int", 255)]
)
def test_ply_colours_under_every_name_and_in_every_range(tmp_path, names, kind, most):
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "".join(f"property {kind} {name}\n" for name in names)
    header += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    rows = "".join(f"{x} {y} 0 {most} 0 0\n" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    assert colour(loaded(put(tmp_path / "a.ply", header + rows + "3 0 1 2\n3 0 2 3\n"))) == RED


def test_ply_colours_of_faces(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 2\nproperty list uchar int vertex_indices\n"
    header += "".join(f"property ushort {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    rows = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2 0 65535 0\n3 0 2 3 0 65535 0\n"
    assert colour(loaded(put(tmp_path / "a.ply", header + rows))) == GREEN


@pytest.mark.parametrize("shade", ["1.0 0 0 1.0", "255 0 0 255", "1.0 0.0 0.0"])
@pytest.mark.parametrize("magic", ["COFF", "CNOFF"])
def test_off_colours_of_vertices(tmp_path, shade, magic):
    normal = "0 0 1 " if "N" in magic else ""
    rows = "".join(f"{x} {y} 0 {normal}{shade}\n" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    assert colour(loaded(put(tmp_path / "a.off", f"{magic}\n4 1 0\n{rows}4 0 1 2 3\n"))) == RED


def test_off_colours_of_faces_follow_their_polygons(tmp_path):
    corners = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n2 0 0\n"
    (item,) = loaded(put(tmp_path / "a.off", f"OFF\n5 2 0\n{corners}4 0 1 2 3 0 255 0\n3 1 4 2 255 0 0\n")).primitives
    middles = item.vertices[item.faces].mean(1)
    assert np.allclose(item.colors[item.faces[:, 0]], np.where(middles[:, :1] > 1, RED, GREEN))
    plain = loaded(put(tmp_path / "b.off", f"OFF\n5 2 0\n{corners}4 0 1 2 3 7\n3 1 4 2 7\n"))  # a place in no table
    assert plain.primitives[0].colors is None


def stl(header: bytes, words: list[int]) -> bytes:
    corners = [[(0, 0, 0), (1, 0, 0), (1, 1, 0)], [(0, 0, 0), (1, 1, 0), (0, 1, 0)]]
    rows = b"".join(struct.pack("<12fH", 0, 0, 1, *np.ravel(c), word) for c, word in zip(corners, words, strict=True))
    return header.ljust(80, b" ") + struct.pack("<I", 2) + rows


@pytest.mark.parametrize(
    ("header", "word", "expected"),
    [
        (b"viscam", 0x8000 | 31 << 10, RED),
        (b"viscam", 0x8000 | 31 << 5, GREEN),
        (b"COLOR=\x00\xff\x00\xff,MATERIAL=", 31, RED),
        (b"COLOR=\x00\xff\x00\xff,MATERIAL=", 0x8000, GREEN),
    ],
)
def test_stl_colours_of_either_kind_of_program(tmp_path, header, word, expected):
    assert colour(loaded(put(tmp_path / "a.stl", stl(header, [word, word])))) == expected


def test_stl_other_words_are_no_colours(tmp_path):
    for words in ([0, 0], [7, 7], [0x8000, 7]):
        assert loaded(put(tmp_path / "a.stl", stl(b"x", words))).primitives[0].colors is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_black_stays_black_and_bytes_stay_bytes(dtype):
    assert not as_bytes(np.zeros((3, 3), dtype)).any()
    assert as_bytes(np.array([[1, 0, 0]], np.uint8)).tolist() == [[1, 0, 0]]


# ---- COLLADA

DAE = """<?xml version="1.0"?><COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><up_axis>Y_UP</up_axis></asset><library_effects><effect id="e"><profile_COMMON><technique sid="t"><lambert>
{look}</lambert></technique></profile_COMMON></effect></library_effects>
<library_materials><material id="m" name="m"><instance_effect url="#e"/></material></library_materials>
<library_geometries><geometry id="g" name="g"><mesh><source id="p"><float_array id="a" count="12">
0 0 0 1 0 0 1 1 0 0 1 0
</float_array><technique_common><accessor source="#a" count="4" stride="3"><param name="X" type="float"/><param name="Y"
type="float"/><param name="Z" type="float"/></accessor></technique_common></source><vertices id="v"><input
semantic="POSITION" source="#p"/></vertices><triangles count="2" material="m"><input semantic="VERTEX" source="#v"
offset="0"/><p>0 1 2 0 2 3</p></triangles></mesh></geometry></library_geometries>
<library_controllers>{controllers}</library_controllers>
<library_visual_scenes><visual_scene id="s"><node id="n"><translate>{at}</translate>{placed}</node></visual_scene>
</library_visual_scenes><scene><instance_visual_scene url="#s"/></scene></COLLADA>"""
BIND = '<bind_material><technique_common><instance_material symbol="m" target="#m"/></technique_common></bind_material>'
SKIN = """<controller id="skin"><skin source="#{of}"><bind_shape_matrix>2 0 0 3 0 2 0 0 0 0 2 0 0 0 0 1
</bind_shape_matrix></skin></controller>"""
MORPH = '<controller id="morph"><morph source="#g" method="NORMALIZED"/></controller>'
WHITE = "<diffuse><color>1 1 1 1</color></diffuse>"


def dae(folder: Path, placed: str, controllers: str = "", look: str = WHITE, at: str = "0 0 0"):
    text = DAE.format(look=look, controllers=controllers, placed=placed, at=at)
    return loaded(put(folder / "a.dae", text))


def controller(url: str) -> str:
    return f'<instance_controller url="#{url}"><skeleton>#n</skeleton>{BIND}</instance_controller>'


def test_dae_a_skin_stands_as_it_is_bound(tmp_path):
    mesh = dae(tmp_path, controller("skin"), SKIN.format(of="g"), at="100 0 0")
    assert mesh.bounds().tolist() == [[3, 0, 0], [5, 2, 0]]


def test_dae_a_morph_stands_where_its_node_is_and_a_skin_may_bend_a_morph(tmp_path):
    assert dae(tmp_path, controller("morph"), MORPH, at="5 0 0").bounds().tolist() == [[5, 0, 0], [6, 1, 0]]
    both = dae(tmp_path, controller("skin"), SKIN.format(of="morph") + MORPH)
    assert both.bounds().tolist() == [[3, 0, 0], [5, 2, 0]]


def test_dae_an_animated_skin_has_no_one_pose(tmp_path):
    moving = '</library_controllers><library_animations><animation><channel source="#x" target="n/t"/></animation>'
    with pytest.raises(Exception, match="animated"):
        dae(tmp_path, controller("skin"), SKIN.format(of="g") + moving + "</library_animations><library_controllers>")


def test_dae_a_controller_that_bends_itself_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"a\.dae: .*") as caught:
        dae(tmp_path, controller("skin"), SKIN.format(of="skin"))
    assert "\n" not in str(caught.value)


def test_dae_what_only_shines_has_the_colour_of_its_light(tmp_path):
    placed = f'<instance_geometry url="#g">{BIND}</instance_geometry>'
    light = "<emission><color>0 1 0 1</color></emission>"
    assert colour(dae(tmp_path, placed, look=light + "<diffuse><color>0 0 0 1</color></diffuse>")) == GREEN
    assert colour(dae(tmp_path, placed, look=light + "<diffuse><color>1 0 0 1</color></diffuse>")) == RED


def test_facts_are_json(tmp_path):
    lines = "".join(f"v {x + 1e5} {y} 0\n" for x, y in ((0, 0), (1, 0), (1, 1)))
    assert json.loads(json.dumps(loaded(put(tmp_path / "a.obj", lines + "f 1 2 3\n")).facts))["moved"][0] == -100000.5


# ---- what is approximated


def test_off_and_ply_are_opaque_whatever_their_alpha(tmp_path):
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    rows = "".join(f"{x} {y} 0 255 0 0 0\n" for x, y in corners)
    assert colour(loaded(put(tmp_path / "a.off", f"COFF\n4 1 0\n{rows}4 0 1 2 3\n"))) == RED
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue", "alpha"))
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    mesh = loaded(put(tmp_path / "a.ply", header + rows + "4 0 1 2 3\n"))
    assert colour(mesh) == RED and len(sample_points(mesh, 64, 0).xyz) == 64


def test_ply_textures_repeat(tmp_path):
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "t.png")
    header = "ply\nformat ascii 1.0\ncomment TextureFile t.png\nelement vertex 4\n"
    header += "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    header += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    rows = "0 0 0 0 0\n1 0 0 3 0\n1 1 0 3 1\n0 1 0 0 1\n3 0 1 2\n3 0 2 3\n"
    (item,) = loaded(put(tmp_path / "a.ply", header + rows)).primitives
    assert item.texture is not None and item.wrap == ("repeat", "repeat") and item.uv.max() == 3


def test_dae_polygons_are_fans_and_textures_repeat(tmp_path):
    dart = DAE.replace("0 0 0 1 0 0 1 1 0 0 1 0", "0 0 0 2 1 0 0 2 0 1 1 0")
    polygon = '<polylist count="1" material="m"><input semantic="VERTEX" source="#v" offset="0"/><vcount>4</vcount>'
    start = dart.index("<triangles")
    dart = dart[:start] + polygon + "<p>0 1 2 3</p></polylist>" + dart[dart.index("</mesh>") :]
    placed = f'<instance_geometry url="#g">{BIND}</instance_geometry>'
    mesh = loaded(put(tmp_path / "a.dae", dart.format(look=WHITE, controllers="", placed=placed, at="0 0 0")))
    (item,) = mesh.primitives
    assert sorted(map(sorted, item.faces.tolist())) == [[0, 1, 2], [0, 2, 3]] and item.wrap == ("repeat", "repeat")
