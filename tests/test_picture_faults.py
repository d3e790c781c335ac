"""Wrong pictures that raise nothing: each fault that mesh viewers are known for, on a file made to show it.

Every test compares pixels of a file on disk, read and drawn as the pipeline does, with what they must be; so each would
fail were the fault there.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.procedural.geometry import box, cylinder
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.shapes.sample import sample_points

CONFIG = RenderConfig(preset="pointclip6", resolution=64)  # view 0 looks at the front
MIDDLE = (0, slice(28, 36), slice(28, 36))
PLATE = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "usemtl m\nf 1/1 2/2 3/3 4/4\n"
TAN = (188, 120, 60)


@pytest.fixture(scope="module")
def renderer():
    with Renderer(CONFIG) as shared:
        yield shared


def write(folder: Path, mtl: str, text: str = PLATE + FACE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.mtl").write_text("newmtl m\n" + mtl)
    (folder / "model.obj").write_text("mtllib m.mtl\n" + text)
    return folder / "model.obj"


def middle(renderer: Renderer, mesh: Mesh) -> np.ndarray:
    """Mean sRGB colour of the middle of the front view."""
    return renderer.render(mesh).rgb[MIDDLE].reshape(-1, 3).mean(0)


def picture(path: Path, color: tuple[int, ...], mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).convert(mode).save(path)


def test_1_a_texture_in_a_sister_folder_is_drawn_and_a_missing_one_counted(renderer, tmp_path):
    picture(tmp_path / "a" / "images" / "x.png", (200, 0, 0))
    path = write(tmp_path / "a" / "models", "Kd 0.8 0.8 0.8\nmap_Kd ../images/x.png\n")
    mesh = load_mesh(path, tmp_path)
    red, green, blue = middle(renderer, mesh)
    assert red > 120 and red > green + 80 and red > blue + 80, "without its texture the plate is grey"
    assert mesh.facts == {}
    (tmp_path / "a" / "images" / "x.png").unlink()
    assert load_mesh(path, tmp_path).facts == {"missing_files": ["../images/x.png"]}


def test_2_the_background_is_white(renderer, tmp_path):
    views = renderer.render(load_mesh(write(tmp_path, "Kd 0 0 0\n"), tmp_path))
    assert (views.rgb[:, 0, 0] == 255).all() and (views.rgb[:, -1, -1] == 255).all()


def test_3_simple_materials_are_not_metal(renderer, tmp_path):
    solid = cylinder(1.0, 1.0)
    lines = [f"v {x} {y} {z}" for x, y, z in solid.vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in solid.faces]
    path = write(tmp_path, "Kd 0.8 0.8 0.8\n", "\n".join(["usemtl m", *lines]) + "\n")
    (item,) = load_mesh(path, tmp_path).primitives
    drawn, matt, metal = (
        renderer.render(Mesh((replace(item, material=material),))).rgb.astype(int)
        for material in (item.material, *(replace(item.material, metallic=share) for share in (0.0, 1.0)))
    )
    assert np.abs(drawn - matt).max() <= 1
    assert np.abs(matt - metal).max() > 20, "the pictures can tell"


def test_4_one_colour_is_the_same_as_texture_as_kd_and_as_vertex_colour(renderer, tmp_path):
    picture(tmp_path / "texture" / "t.png", TAN)
    textured = load_mesh(write(tmp_path / "texture", "map_Kd t.png\n"), tmp_path)
    kd = "Kd " + " ".join(str(c / 255) for c in TAN) + "\n"
    plain = load_mesh(write(tmp_path / "kd", kd), tmp_path)
    lines = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {c}" for c in "xyz")]
    lines += [*(f"property uchar {c}" for c in ("red", "green", "blue")), "element face 1"]
    lines += ["property list uchar int vertex_indices", "end_header"]
    corners = ("-1 -1", "1 -1", "1 1", "-1 1")
    lines += [f"{xy} 0 {TAN[0]} {TAN[1]} {TAN[2]}" for xy in corners]
    (tmp_path / "p.ply").write_text("\n".join([*lines, "4 0 1 2 3"]) + "\n")
    painted = load_mesh(tmp_path / "p.ply", tmp_path)
    colors = [middle(renderer, mesh) for mesh in (textured, plain, painted)]
    assert np.ptp(colors, axis=0).max() <= 2
    white = middle(renderer, load_mesh(write(tmp_path / "white", "Kd 1 1 1\n"), tmp_path))
    # Lit alike, the shares of white's light are those of the linear colours; taken as linear, blue's would be 0.24.
    shares = ((colors[1] / 255) ** 2.2) / ((white / 255) ** 2.2)
    assert np.abs(shares - (np.array(TAN) / 255) ** 2.2).max() < 0.08
    points = [sample_points(mesh, 50, seed=0).color.astype(int).mean(0) for mesh in (textured, plain, painted)]
    assert np.ptp(points, axis=0).max() <= 1, "points have the colours of the pictures"


def test_5_flipped_faces_are_neither_holes_nor_dark(renderer, tmp_path):
    solid = box(1, 1, 1)
    flipped = solid.faces.copy()
    flipped[::2] = flipped[::2, ::-1]  # half of every side
    views = []
    for name, faces in (("right", solid.faces), ("flipped", flipped)):
        lines = [f"v {x} {y} {z}" for x, y, z in solid.vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
        path = write(tmp_path / name, "Kd 0.8 0.2 0.2\n", "\n".join(["usemtl m", *lines]) + "\n")
        views.append(renderer.render(load_mesh(path, tmp_path)))
    assert np.array_equal(views[0].depth > 0, views[1].depth > 0)
    assert np.abs(views[0].rgb.astype(int) - views[1].rgb).max() <= 2


def test_6_tiles_are_kept_and_textures_are_neither_mixed_nor_greyed(renderer, tmp_path):
    stripes = np.zeros((16, 32, 3), np.uint8)
    stripes[:, 16:] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    picture(tmp_path / "white.png", (255, 255, 255))
    # two plates in one file, each with a texture of its own: the left one tiled four times across
    left = "v -2 -1 0\nv 0 -1 0\nv 0 1 0\nv -2 1 0\nvt 0 0\nvt 4 0\nvt 4 1\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3 4/4\n"
    right = "v 0 -1 0\nv 2 -1 0\nv 2 1 0\nv 0 1 0\nusemtl w\nf 5/1 6/2 7/3 8/4\n"
    path = write(tmp_path, "map_Kd stripes.png\nnewmtl w\nKd 0.5 0.5 0.5\nmap_Kd white.png\n", left + right)
    row = renderer.render(load_mesh(path, tmp_path)).rgb[0, 32].astype(int)[:, 0]
    assert np.count_nonzero(np.diff((row[6:31] > 128).astype(int))) >= 6, "an atlas would show one stripe or none"
    assert row[36:56].min() > 225, "a white texel is as light as white paint, whatever Kd says beside it"


@pytest.mark.parametrize("mode", ["LA", "1"])
def test_7_grey_textures_with_alpha_or_one_bit_are_drawn(renderer, tmp_path, mode):
    picture(tmp_path / "t.png", (255, 255, 255), mode)
    mesh = load_mesh(write(tmp_path, "Kd 0 0 0\nmap_Kd t.png\n"), tmp_path)
    assert "missing_files" not in mesh.facts and middle(renderer, mesh).min() > 200


def test_7_opacity_hides_what_is_fully_transparent_and_nothing_else(renderer, tmp_path):
    # a hidden red plate before a faint green one
    both = PLATE.replace(" 0\nv", " 0.5\nv", 1) + "usemtl glass\nf 1/1 2/2 3/3 4/4\n"
    both += "v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nusemtl m\nf 5/1 6/2 7/3 8/4\n"
    path = write(tmp_path, "Kd 0 1 0\nd 0.3\nnewmtl glass\nKd 1 0 0\nd 0\n", both)
    mesh = load_mesh(path, tmp_path)
    red, green, _ = middle(renderer, mesh)
    assert green > 150 > red and mesh.parts == ("m",)
    assert (sample_points(mesh, 100, seed=0).color[:, 1] > 200).all(), "no points on it either"


def test_7_kd_0_with_a_missing_texture_is_not_black(renderer, tmp_path):
    mesh = load_mesh(write(tmp_path, "Kd 0 0 0\nmap_Kd gone.png\n"), tmp_path)
    assert middle(renderer, mesh).min() > 100
    assert middle(renderer, load_mesh(write(tmp_path, "Kd 0 0 0\n"), tmp_path)).max() < 80, "black paint stays black"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no-faces"),
        ("<html><body>404 not found</body></html>", "no-faces"),
        ("v 0 0 0\nv 1 0 0\nv 1 1 0\nl 1 2 3\n", "no-faces"),
        ("v 0 0 0\nv 1e39 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
        ("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
        ("v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "degenerate"),
        ("v 3 3 3\nv 3 3 3\nv 3 3 3\nf 1 2 3\n", "degenerate"),
    ],
)
def test_8_what_would_be_a_blank_picture_is_refused(tmp_path, text, reason):
    (tmp_path / "model.obj").write_text(text)
    with pytest.raises(MeshError) as caught:
        load_mesh(tmp_path / "model.obj", tmp_path)
    assert caught.value.reason == reason and "model.obj" in str(caught.value)


def test_8_a_speck_beside_a_stray_face_is_refused_when_drawn(renderer, tmp_path):
    text = "v 0 0 0\nv 0.01 0 0\nv 0 0.01 0\nv 99 99 99\nv 99.01 99 99\nv 99 99.01 99\nf 1 2 3\nf 4 5 6\n"
    (tmp_path / "model.obj").write_text(text)
    mesh = load_mesh(tmp_path / "model.obj", tmp_path)
    with pytest.raises(MeshError, match="blank"):
        renderer.render(mesh)
