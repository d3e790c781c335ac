"""What a texture does beyond its edges, in pictures and for points."""

import io

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.rendering.rasterizer import Lights
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import load_mesh, mesh_digest
from recon.pipeline.shapes.sample import sample_points
from tests.gltf_files import SQUARE, Builder

CODES = {"repeat": 10497, "clamp": 33071, "mirror": 33648}
# of the four stripes of u from -1 to 3, what a picture that is red at its left and green at its right shows there
STRIPES = {"repeat": "rgrgrgrg", "clamp": "rrrggggg", "mirror": "grrggrrg"}
SEEN = RenderConfig(preset="pointclip6", resolution=64, samples=1, lights=Lights(unlit=True))


@pytest.fixture(scope="module")
def renderer():
    with Renderer(SEEN) as shared:
        yield shared


def striped(along: int, wrap: dict[str, int] | None) -> Builder:
    """A square of two stripes, or as many as there are beyond its edges, across or (`along` 1) up."""
    picture = np.zeros((64, 64, 3), np.uint8)
    halves = picture if along == 0 else picture.swapaxes(0, 1)
    halves[:, :32], halves[:, 32:] = (255, 0, 0), (0, 255, 0)
    uv = SQUARE[:, :2].copy()
    uv[:, along] = uv[:, along] * 4 - 1
    builder = Builder()
    builder.square(TEXCOORD_0=builder.array(uv))
    builder.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    builder.header["images"] = [{"bufferView": builder.view(content.getvalue()), "mimeType": "image/png"}]
    builder.header["textures"] = [{"source": 0}]
    if wrap is not None:
        builder.header["textures"][0]["sampler"] = 0
        builder.header["samplers"] = [wrap]
    return builder


def letters(colors: np.ndarray) -> str:
    return "".join(
        "r" if red > 200 > 50 > green else "g" if green > 200 > 50 > red else "?" for red, green, _ in colors
    )


def of_points(mesh: Mesh, along: int) -> str:
    """The stripes' colours, by points that lie in the middle of each."""
    points = sample_points(mesh, 4096, 0)
    place = points.xyz[:, along] * 8
    inside = np.abs(place % 1 - 0.5) < 0.3
    found = [np.unique(points.color[inside & (place.astype(int) == i)], axis=0) for i in range(8)]
    assert all(len(colors) == 1 for colors in found)
    return letters(np.concatenate(found))


def of_picture(renderer: Renderer, mesh: Mesh, along: int) -> str:
    drawn = renderer.render(mesh)
    rows, columns = np.nonzero(drawn.alpha[0] == 255)
    low, high = (columns.min(), columns.max() + 1) if along == 0 else (rows.max() + 1, rows.min())
    middles = (low + (high - low) * (np.arange(8) + 0.5) / 8).astype(int)
    return letters(drawn.rgb[0][32, middles] if along == 0 else drawn.rgb[0][middles, 32])


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("mode", [*CODES, None])
def test_gltf_wraps_as_its_sampler_says_across_and_up(tmp_path, renderer, mode, along):
    code = None if mode is None else {"wrapS": 10497, "wrapT": 10497} | {("wrapS", "wrapT")[along]: CODES[mode]}
    mesh = striped(along, code).load(tmp_path)
    expected = STRIPES[mode or "repeat"]
    if along:  # v downwards: the square's lower edge is the picture's row v = -1
        assert of_points(mesh, 1) == expected and of_picture(renderer, mesh, 1) == expected
    else:
        assert of_points(mesh, 0) == expected and of_picture(renderer, mesh, 0) == expected


def test_gltf_one_picture_may_end_in_two_ways(tmp_path, renderer):
    builder = striped(0, {"wrapS": CODES["clamp"]})
    header = builder.header
    header["textures"].append({"source": 0})
    header["materials"].append({"pbrMetallicRoughness": {"baseColorTexture": {"index": 1}}})
    header["meshes"][0]["primitives"].append({**builder.primitive, "material": 1})
    header["nodes"] = [{"mesh": 0}]
    mesh = builder.load(tmp_path)
    assert [p.wrap for p in mesh.primitives] == [("clamp", "repeat"), ("repeat", "repeat")]
    first, second = (Mesh((p,)) for p in mesh.primitives)
    assert of_picture(renderer, first, 0) == STRIPES["clamp"] and of_picture(renderer, second, 0) == STRIPES["repeat"]
    assert mesh_digest(first) != mesh_digest(second)


def test_gltf_a_way_to_wrap_that_nobody_knows_is_refused_by_name(tmp_path):
    assert "33069" in str(striped(0, {"wrapS": 33069}).refusal(tmp_path))


@pytest.mark.parametrize(("option", "mode"), [("", "repeat"), ("-clamp on ", "clamp"), ("-clamp off ", "repeat")])
def test_obj_clamps_where_its_material_says_so(tmp_path, renderer, option, mode):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(picture).save(tmp_path / "t.png")
    (tmp_path / "m.mtl").write_text(f"newmtl m\nmap_Kd {option}t.png\n")
    text = "mtllib m.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt -1 0\nvt 3 0\nvt 3 1\nvt -1 1\n"
    (tmp_path / "a.obj").write_text(text + "f 1/1 2/2 3/3 4/4\n")
    mesh = load_mesh(tmp_path / "a.obj", tmp_path)
    assert of_points(mesh, 0) == STRIPES[mode] and of_picture(renderer, mesh, 0) == STRIPES[mode]
