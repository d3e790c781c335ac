"""COLLADA files: transforms, axes, materials, what is refused before it is read."""

import io
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.shapes.meshfile import load_mesh
from tests.test_formats import area, put, refusal


def dae(faces: str = "3 3", up: str = "", extra: str = "", scene: str = "", diffuse: str = "", head: str = "") -> str:
    """A unit square in the file's xy plane, as two triangles, placed once unless `scene` says otherwise."""
    scene = scene or '<node id="n" name="plate">' + place() + "</node>"
    diffuse = diffuse or "<color>1 0 0 1</color>"
    return f"""<?xml version="1.0"?>{head}
    <COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
    <asset><unit name="inch" meter="0.0254"/>{up}</asset>
    <library_images><image id="i"><init_from>my%20wood.png</init_from></image></library_images>
    <library_effects><effect id="e"><profile_COMMON>
      <newparam sid="s"><surface type="2D"><init_from>i</init_from></surface></newparam>
      <newparam sid="p"><sampler2D><source>s</source></sampler2D></newparam>
      <technique sid="c"><lambert><diffuse>{diffuse}</diffuse>{extra}</lambert></technique>
    </profile_COMMON></effect></library_effects>
    <library_materials><material id="m" name="paint"><instance_effect url="#e"/></material></library_materials>
    <library_geometries><geometry id="g" name="square"><mesh>
      <source id="v"><float_array id="va" count="12">0 0 0 1 0 0 1 1 0 0 1 0</float_array><technique_common>
        <accessor count="4" source="#va" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>
        <param name="Z" type="float"/></accessor></technique_common></source>
      <source id="t"><float_array id="ta" count="8">0 0 1 0 1 1 0 1</float_array><technique_common>
        <accessor count="4" source="#ta" stride="2"><param name="S" type="float"/><param name="T" type="float"/>
        </accessor></technique_common></source>
      <vertices id="vs"><input semantic="POSITION" source="#v"/></vertices>
      <polylist count="{len(faces.split())}" material="M"><input offset="0" semantic="VERTEX" source="#vs"/>
        <input offset="1" semantic="TEXCOORD" source="#t"/><vcount>{faces}</vcount>
        <p>{"0 0 1 1 2 2 3 3" if faces == "4" else "0 0 1 1 2 2 0 0 2 2 3 3"}</p></polylist>
    </mesh></geometry></library_geometries>
    <library_visual_scenes><visual_scene id="vis">{scene}</visual_scene></library_visual_scenes>
    <scene><instance_visual_scene url="#vis"/></scene></COLLADA>"""


def place(material: str = "#m") -> str:
    bound = f'<instance_material symbol="M" target="{material}"/>'
    return (
        '<instance_geometry url="#g"><bind_material><technique_common>'
        f"{bound}</technique_common></bind_material></instance_geometry>"
    )


def test_dae_polygons_transforms_materials_and_names(tmp_path):
    scene = '<node id="a" name="left"><translate>5 0 0</translate><node id="b" name="inner"><scale>2 2 2</scale>'
    scene += place() + '</node></node><node id="c" name="mirror"><scale>-1 1 1</scale>' + place() + "</node>"
    mesh = load_mesh(put(tmp_path / "a.dae", dae("4", scene=scene)), tmp_path)
    assert mesh.parts == ("g", "g_1") and math.isclose(area(mesh), 5.0)
    assert np.allclose(mesh.bounds(), [[-1, 0, 0], [7, 2, 0]]), "its unit is left alone"
    assert mesh.primitives[0].material.base_color == (1, 0, 0)
    for item in mesh.primitives:  # mirrored or not, the square faces +Z
        a, b, c = item.vertices[item.faces[0]]
        assert np.cross(b - a, c - a)[2] > 0


@pytest.mark.parametrize(
    ("stated", "up", "front", "bounds"),
    [
        ("", "+Y", "+Z", [[0, 0, 0], [1, 1, 0]]),
        ("Y_UP", "+Y", "+Z", [[0, 0, 0], [1, 1, 0]]),
        ("Z_UP", "+Y", "+Z", [[0, 0, -1], [1, 0, 0]]),  # the file is right about itself
        ("Z_UP", "+Z", "+X", [[0, 0, 0], [1, 0, 1]]),  # and where the manifest agrees, its front counts
        ("", "+Z", "-Y", [[0, 0, -1], [1, 0, 0]]),
    ],
)
def test_dae_its_own_up_axis_counts(tmp_path, stated, up, front, bounds):
    text = dae(up=f"<up_axis>{stated}</up_axis>" if stated else "")
    assert np.allclose(load_mesh(put(tmp_path / "a.dae", text), tmp_path, up=up, front=front).bounds(), bounds)


def test_dae_a_texture_is_drawn_and_a_missing_one_named(tmp_path):
    path = put(tmp_path / "a.dae", dae(diffuse='<texture texture="p" texcoord="UV"/>'))
    assert load_mesh(path, tmp_path).facts["missing_files"] == ["my%20wood.png"]
    Image.new("RGB", (2, 2), (9, 8, 7)).save(tmp_path / "my wood.png")
    (item,) = load_mesh(path, tmp_path).primitives
    assert item.texture[0, 0].tolist() == [9, 8, 7]
    assert np.allclose(item.uv[item.faces[0]], [[0, 0], [1, 0], [1, 1]])


def test_dae_entities_and_archives_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "secret").write_text("9")
    outer = f'<!DOCTYPE d [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    laughs = "<!DOCTYPE d [" + "".join(
        f'<!ENTITY l{i} "{("&l" + str(i - 1) + ";") * 10 if i else "ha"}">' for i in range(12)
    )
    for head in (outer, laughs + "]>", "<!DOCTYPE d>"):
        text = dae(head=head, extra="&l11;" if "l11" in head else "")
        assert "document type" in str(refusal(put(tmp_path / "a.dae", text)))
        assert "document type" in str(refusal(put(tmp_path / "a.dae", text.replace("<?xml", "<?xml").encode("utf-16"))))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model.dae", dae())
    assert "archive" in str(refusal(put(tmp_path / "a.dae", archive.getvalue())))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no XML"),
        ("<html>", "no XML"),
        (dae(scene='<node id="n">' + place("#gone") + "</node>"), "gone"),
        (dae(scene='<node id="n"><instance_geometry url="#gone"/></node>'), "gone"),
        (dae().replace("0 0 1 1 2 2 0 0 2 2 3 3", "0 0 1 1 9 9 0 0 2 2 3 3"), ""),
        (dae().replace("0 0 1 1 2 2 0 0 2 2 3 3", "0 0 1 1 -1 2 0 0 2 2 3 3"), ""),
        (dae(scene="<node>" * 250 + place() + "</node>" * 250), "deep"),
    ],
)
def test_dae_broken_files_are_refused(tmp_path, text, words):
    assert words in str(refusal(put(tmp_path / "a.dae", text)))


def test_dae_nodes_that_place_each_other_again_and_again_are_refused_in_time(tmp_path):
    # ten levels of ten are ten thousand million squares
    levels = "".join(
        f'<node id="l{i}">' + f'<instance_node url="#l{i - 1}"/>' * 10 + "</node>"
        if i
        else f'<node id="l0">{place()}</node>'
        for i in range(11)
    )
    text = dae(scene='<node id="n"><instance_node url="#l10"/></node>')
    path = put(
        tmp_path / "a.dae",
        text.replace("<library_visual", f"<library_nodes>{levels}</library_nodes><library_visual", 1),
    )
    assert refusal(path).reason == "too-many-parts"


def test_dae_what_is_fully_transparent_is_left_out(tmp_path):
    scene = '<node id="n" name="plate">' + place() + '<instance_geometry url="#g"/></node>'
    clear = '<transparent opaque="A_ONE"><color>1 1 1 0</color></transparent>'
    faint = '<transparent opaque="A_ONE"><color>1 1 1 0.2</color></transparent>'
    assert math.isclose(area(load_mesh(put(tmp_path / "a.dae", dae(scene=scene, extra=clear)), tmp_path)), 1.0)
    assert math.isclose(area(load_mesh(put(tmp_path / "a.dae", dae(scene=scene, extra=faint)), tmp_path)), 2.0)
