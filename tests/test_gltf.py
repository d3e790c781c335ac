"""glTF files as other programs write them, and what a small one may promise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from tests.gltf_files import SQUARE, Builder

SHARED = Path(__file__).resolve().parents[2] / "shared"


def area(mesh: Any) -> float:
    corners = np.concatenate([p.vertices[p.faces] for p in mesh.primitives])
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(cross, axis=1).sum() / 2)


@pytest.mark.parametrize("name", ["a.glb", "a.gltf"])
def test_embedded_buffers_are_read(tmp_path, name):
    assert math.isclose(area(Builder().square().load(tmp_path, name)), 1.0)


@pytest.mark.parametrize(("mode", "index"), [(4, [0, 1, 2, 0, 2, 3]), (5, [0, 1, 3, 2])])
def test_lists_and_strips_face_the_same_way(tmp_path, mode, index):
    builder = Builder().square()
    builder.primitive.update(mode=mode, indices=builder.array(np.array(index, np.uint8)))
    (item,) = builder.load(tmp_path).primitives
    a, b, c = (item.vertices[item.faces[:, i]] for i in range(3))
    assert np.allclose(np.cross(b - a, c - a), [[0, 0, 1], [0, 0, 1]])


def test_colours_of_sixteen_bits_are_shares_of_their_largest(tmp_path):
    builder = Builder()
    builder.square(COLOR_0=builder.array(np.full((4, 4), 32768, np.uint16), normalized=True)).material(name="m")
    (item,) = builder.load(tmp_path).primitives
    assert np.allclose(item.colors, 0.5, atol=1e-4) and item.material.name == "m"


def test_rows_that_lie_apart(tmp_path):
    builder = Builder().square()
    apart = np.zeros((4, 5), np.float32)
    apart[:, :3] = SQUARE
    view = builder.view(apart.tobytes())
    builder.header["bufferViews"][view]["byteStride"] = 20
    builder.header["accessors"][0]["bufferView"] = view
    assert math.isclose(area(builder.load(tmp_path)), 1.0)


def test_transforms_of_texture_coordinates_and_a_second_layout(tmp_path):
    builder = Builder()
    zero = builder.array(np.zeros((4, 2), np.float32))
    second = builder.array(SQUARE[:, :2].copy())
    moved = {"scale": [2, 3], "offset": [0.5, 0], "rotation": math.pi / 2}
    texture = {"index": 0, "texCoord": 1, "extensions": {"KHR_texture_transform": moved}}
    builder.square(TEXCOORD_0=zero, TEXCOORD_1=second)
    builder.material((10, 20, 30), pbrMetallicRoughness={"baseColorTexture": texture})
    builder.header["extensionsRequired"] = ["KHR_texture_transform"]
    (item,) = builder.load(tmp_path).primitives
    # (1, 0) is scaled to (2, 0), turned to (0, -2), moved to (0.5, -2); v runs upwards here
    assert np.allclose(item.uv[1], [0.5, 3.0]) and np.allclose(item.uv[0], [0.5, 1.0])


@pytest.mark.parametrize(
    ("look", "hidden"),
    [
        ({"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0]}}, True),
        ({"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.1]}}, False),
        ({"alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.4]}}, True),
        ({"alphaMode": "MASK", "alphaCutoff": 0.3, "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.4]}}, False),
        ({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0]}}, False),  # opaque unless it says otherwise
    ],
)
def test_only_what_is_fully_transparent_is_left_out(tmp_path, look, hidden):
    builder = Builder().square().material(**look)
    primitives = builder.header["meshes"][0]["primitives"]
    primitives.append({k: v for k, v in primitives[0].items() if k != "material"})
    assert len(builder.load(tmp_path).primitives) == 2 - hidden


@pytest.mark.parametrize(("cutoff", "kept"), [(0.2, True), (0.5, False), (0.9, False)])
def test_a_pictures_alpha_cuts_where_the_file_says(tmp_path, cutoff, kept):
    builder = Builder()
    builder.square(TEXCOORD_0=builder.array(SQUARE[:, :2].copy()))
    texture = {"baseColorTexture": {"index": 0}}
    builder.material((10, 20, 30, 100), alphaMode="MASK", alphaCutoff=cutoff, pbrMetallicRoughness=texture)
    (item,) = builder.load(tmp_path).primitives
    assert (item.texture[0, 0, 3] >= 128) == kept


def test_older_glossy_materials_keep_their_colour(tmp_path):
    gloss = {"diffuseFactor": [0.1, 0.2, 0.3, 1], "glossinessFactor": 0.25}
    builder = Builder().square().material(extensions={"KHR_materials_pbrSpecularGlossiness": gloss})
    (item,) = builder.load(tmp_path).primitives
    assert np.allclose(item.material.base_color, (0.1, 0.2, 0.3), atol=1 / 255) and item.material.roughness == 0.75


def test_draco_meshes_are_read(tmp_path):
    solid = trimesh.creation.box([1, 2, 3])
    content = trimesh.exchange.gltf.export_glb(trimesh.Scene(solid), extension_draco=True)
    assert b"KHR_draco_mesh_compression" in content
    (tmp_path / "a.glb").write_bytes(content)
    mesh = load_mesh(tmp_path / "a.glb", tmp_path)
    assert np.allclose(mesh.bounds(), solid.bounds, atol=1e-3) and math.isclose(area(mesh), 22.0, rel_tol=1e-2)


def test_files_beside_it_may_have_escaped_names(tmp_path):
    builder = Builder().square(TEXCOORD_0=0).material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    builder.primitive["attributes"]["TEXCOORD_0"] = builder.array(SQUARE[:, :2].copy())
    builder.header |= {"images": [{"uri": "my%20wood.png"}], "textures": [{"source": 0}]}
    assert builder.load(tmp_path).facts == {"missing_files": ["my%20wood.png"]}
    Image.new("RGB", (2, 2), (9, 8, 7)).save(tmp_path / "my wood.png")
    assert builder.load(tmp_path).primitives[0].texture[0, 0].tolist() == [9, 8, 7]


def many(builder: Builder, count: int) -> None:
    builder.header["nodes"] = [{"mesh": 0}] * count
    builder.header["scenes"][0]["nodes"] = list(range(count))


def chain(builder: Builder, count: int) -> None:
    builder.header["nodes"] = [{"children": [i + 1]} for i in range(count)] + [{"mesh": 0}]


def promise(builder: Builder, index: int, **change: Any) -> None:
    builder.header["accessors"][index] |= change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda b: many(b, 30_000), "too-many-parts"),
        (lambda b: chain(b, 5000), "unreadable"),
        (lambda b: b.header.update(nodes=[{"children": [0], "mesh": 0}]), "unreadable"),
        (lambda b: b.header.update(nodes=[{"children": [1, 1]}, {"mesh": 0}]), "unreadable"),
        (lambda b: promise(b, 0, count=4_000_000_000), "too-many-faces"),
        (lambda b: promise(b, 1, count=10**30), "too-many-faces"),
        (lambda b: promise(b, 0, count=-1), "too-many-faces"),
        (lambda b: promise(b, 0, count=10**7), "unreadable"),
        (lambda b: promise(b, 0, sparse={}), "unreadable"),
        (lambda b: promise(b, 0, sparse={"count": 1}), "unreadable"),
        (lambda b: (b.header["accessors"][0].pop("bufferView"), promise(b, 0, count=4 * 10**9)), "too-many-faces"),
        (lambda b: promise(b, 0, byteOffset=40), "unreadable"),
        (lambda b: promise(b, 1, bufferView=9), "unreadable"),
        (lambda b: b.header["bufferViews"][0].update(byteLength=10**6), "unreadable"),
        (lambda b: b.header["bufferViews"][0].update(byteStride=-4), "unreadable"),
        (lambda b: b.primitive.update(indices=b.array(np.array([0, 1, 9], np.uint8))), "bad-index"),
        (lambda b: b.header.update(extensionsUsed=["EXT_mesh_gpu_instancing"]), "unreadable"),
        (lambda b: b.header.update(extensionsRequired=["EXT_meshopt_compression"]), "unreadable"),
        (lambda b: b.header.update(scene="0"), "unreadable"),
        (lambda b: b.header.update(nodes="x"), "unreadable"),
        (lambda b: b.header["nodes"][0].update(scale=[0, 0, 0]), "degenerate"),
        (lambda b: b.header["nodes"][0].update(translation=[1e39, 0, 0]), "non-finite"),
        (lambda b: b.primitive.update(mode=1), "no-faces"),
    ],
)
def test_promises_it_does_not_keep_and_scenes_that_never_end(tmp_path, spoil, reason):
    builder = Builder().square()
    spoil(builder)
    assert builder.refusal(tmp_path).reason == reason


def test_a_cut_off_file_is_refused(tmp_path):
    path = Builder().square().write(tmp_path / "a.glb")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(MeshError):
            load_mesh(path, tmp_path)


@pytest.mark.skipif(not (SHARED / "meshes").is_dir(), reason="needs the shared real meshes")
def test_every_real_model_loads():
    root = SHARED / "meshes"
    paths = sorted(p for p in root.rglob("*") if p.suffix in (".glb", ".ply"))
    assert len(paths) > 100
    for path in paths:
        assert load_mesh(path, root).facts == {}
