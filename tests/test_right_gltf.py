"""What docs/rendering.md's table of formats says of glTF is right: a file a cell, made to show it."""

import numpy as np
import pytest

from tests.gltf_files import SQUARE, Builder
from tests.test_right_shapes import colour

# ---- arrays


@pytest.mark.parametrize(("dtype", "most"), [(np.int8, 127), (np.uint8, 255), (np.int16, 32767), (np.uint16, 65535)])
def test_gltf_normalised_positions_are_shares(tmp_path, dtype, most):
    builder = Builder().square()
    index = builder.array((SQUARE * most).astype(dtype), normalized=True)
    builder.primitive["attributes"]["POSITION"] = index
    builder.header["extensionsRequired"] = ["KHR_mesh_quantization"]
    assert np.allclose(builder.load(tmp_path).bounds(), [[0, 0, 0], [1, 1, 0]])


def test_gltf_plain_integer_positions_are_what_they_are(tmp_path):
    builder = Builder().square()
    builder.primitive["attributes"]["POSITION"] = builder.array((SQUARE * 1000).astype(np.int16))
    assert np.allclose(builder.load(tmp_path).bounds(), [[0, 0, 0], [1000, 1000, 0]])


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("material", [True, False])
def test_gltf_colours_of_vertices_in_every_type(tmp_path, dtype, most, width, material):
    builder = Builder()
    values = np.rint(np.array([[0.4, 0.2, 0.0, 1.0][:width]] * 4) * 255) / 255 * most
    packed = np.zeros((4, 4), dtype)
    packed[:, :width] = values.astype(dtype)
    index = builder.array(packed[:, :width].copy(), normalized=most > 1)
    if width == 3 and most > 1:  # rows begin at multiples of four bytes
        view = builder.view(packed.tobytes())
        builder.header["bufferViews"][view]["byteStride"] = packed.strides[0]
        builder.header["accessors"][index]["bufferView"] = view
    builder.square(COLOR_0=index)
    if material:
        builder.material(name="m")
    assert colour(builder.load(tmp_path)) == [0.4, 0.2, 0.0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gltf_texture_coordinates_as_normalised_integers(tmp_path, dtype):
    builder = Builder()
    builder.square(TEXCOORD_0=builder.array((SQUARE[:, :2] * np.iinfo(dtype).max).astype(dtype), normalized=True))
    builder.material((255, 0, 0), pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    (item,) = builder.load(tmp_path).primitives
    assert item.texture is not None and np.allclose(item.uv, np.array([[0, 1], [1, 1], [1, 0], [0, 0]]))


def test_gltf_sparse_arrays(tmp_path):
    builder = Builder().square()
    at, new = (
        builder.view(np.array([2], np.uint16).tobytes()),
        builder.view(np.array([[1, 5, 0]], np.float32).tobytes()),
    )
    sparse = {"count": 1, "indices": {"bufferView": at, "componentType": 5123}, "values": {"bufferView": new}}
    builder.header["accessors"][0]["sparse"] = sparse
    assert builder.load(tmp_path).bounds()[1].tolist() == [1, 5, 0]
    at = builder.view(np.array([9], np.uint16).tobytes())
    sparse["indices"]["bufferView"] = at
    assert "sparse" in str(builder.refusal(tmp_path))


def test_gltf_fans(tmp_path):
    builder = Builder().square()
    builder.primitive["mode"] = 6
    builder.primitive["indices"] = builder.array(np.array([0, 1, 2, 3], np.uint8))
    (item,) = builder.load(tmp_path).primitives
    a, b, c = (item.vertices[item.faces[:, i]] for i in range(3))
    assert np.allclose(np.cross(b - a, c - a), [[0, 0, 1], [0, 0, 1]])


# ---- what is shown, and how


def test_gltf_what_is_hidden_or_of_another_scene_is_not_there(tmp_path):
    builder = Builder().square()
    hidden = {"mesh": 0, "translation": [9, 0, 0], "extensions": {"KHR_node_visibility": {"visible": False}}}
    builder.header["nodes"] = [
        {"mesh": 0},
        {**hidden, "children": [2]},
        {"mesh": 0},
        {"mesh": 0, "translation": [5, 0, 0]},
    ]
    builder.header["scenes"] = [{"nodes": [0, 1]}, {"nodes": [3]}]
    assert builder.load(tmp_path).bounds()[1].tolist() == [1, 1, 0]
    builder.header["scene"] = 1
    assert builder.load(tmp_path).bounds()[1].tolist() == [6, 1, 0]


@pytest.mark.parametrize("of_node", [True, False])
def test_gltf_morph_targets_by_their_weights(tmp_path, of_node):
    builder = Builder().square()
    builder.primitive["targets"] = [{"POSITION": builder.array(SQUARE * 2)}, {"POSITION": builder.array(SQUARE * 100)}]
    owner = builder.header["nodes" if of_node else "meshes"][0]
    owner["weights"] = [0.5, 0.0]
    assert np.allclose(builder.load(tmp_path).bounds()[1], [2, 2, 0])


def test_gltf_a_skin_stands_where_its_joints_are(tmp_path):
    builder = Builder()
    joints, weights = (
        np.array([[0, 1, 0, 0]] * 4, np.uint8),
        np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]),
    )
    share = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    builder.square(JOINTS_0=builder.array(joints), WEIGHTS_0=builder.array(share))
    bind = np.stack([np.eye(4, dtype=np.float32)] * 2)
    bind[:, :3, 3] = [-1, 0, 0]
    back = builder.array(bind.transpose(0, 2, 1).reshape(2, 16).copy())
    builder.header["skins"] = [{"joints": [1, 2], "inverseBindMatrices": back}]
    builder.header["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [50, 50, 50]},  # which does not count
        {"translation": [1, 0, 0], "children": [2]},
        {"translation": [0, 4, 0], "name": "tip"},
    ]
    builder.header["scenes"] = [{"nodes": [0, 1]}]
    (item,) = builder.load(tmp_path).primitives
    assert np.allclose(item.vertices, [[0, 0, 0], [1, 0, 0], [1, 3, 0], [0, 5, 0]])


@pytest.mark.parametrize("textured", [True, False])
def test_gltf_what_only_shines_has_the_colour_of_its_light(tmp_path, textured):
    builder = Builder()
    builder.square(TEXCOORD_0=builder.array(SQUARE[:, :2].copy()))
    look = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}, "emissiveFactor": [0.6, 0, 0]}
    if textured:
        builder.material((0, 255, 0), **look, emissiveTexture={"index": 0})
    else:
        builder.material(None, **look)
    (item,) = builder.load(tmp_path).primitives
    assert item.material.base_color == (0.6, 0, 0)
    assert (item.texture is not None) == textured
    look["pbrMetallicRoughness"]["baseColorFactor"] = [0, 0, 1, 1]  # beside a colour, light is left out
    builder.material(None, **look)
    assert builder.load(tmp_path).primitives[0].material.base_color == (0, 0, 1)


def test_gltf_a_required_extension_that_is_not_read_is_named(tmp_path):
    builder = Builder().square()
    builder.header["extensionsRequired"] = ["XX_nobody_knows"]
    assert "XX_nobody_knows" in str(builder.refusal(tmp_path))
