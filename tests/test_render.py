import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.base.compositing import mask, straight_rgba
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, ellipsoid
from recon.pipeline.rendering import rasterizer
from recon.pipeline.rendering.cameras import projection_matrix
from recon.pipeline.rendering.rasterizer import Lights
from recon.pipeline.rendering.render import RenderConfig, Renderer, recipe
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.shapes.sample import sample_points

SIX = RenderConfig(preset="pointclip6", resolution=64)  # front, right, back, left, top, bottom
WHITE, GREY = Material("white", (1.0, 1.0, 1.0)), Material("grey", (0.2140, 0.2140, 0.2140))
SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])


@pytest.fixture(scope="module")
def renderer():
    with Renderer(SIX) as shared:
        yield shared


def one(geometry: Geometry, material: Material = GREY) -> Mesh:
    return Mesh((Primitive("part", geometry.vertices, geometry.faces, material),))


def textured(texture, tiles: float = 1.0) -> Mesh:
    uv = (SQUARE[:, :2] + 1) / 2 * tiles
    return Mesh((Primitive("square", SQUARE, SQUARE_FACES, WHITE, None, uv, np.asarray(texture, np.uint8)),))


def lightness(views, view: int = 0) -> float:
    """Mean linear value of the shape's pixels in one view."""
    srgb = views.rgb[view][views.depth[view] > 0] / 255
    return float(np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).mean())


def digest(views) -> str:
    pictures = [views.rgb, views.alpha, views.depth] + ([] if views.normal is None else [views.normal])
    return hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()


def test_shapes_types_and_white_background(renderer):
    views = renderer.render(one(box(1, 1, 1)))
    assert views.rgb.shape == (6, 64, 64, 3) and views.rgb.dtype == np.uint8
    assert views.depth.shape == (6, 64, 64) and views.depth.dtype == np.float16
    # an integer background would be divided by 255 and come out black
    assert (views.rgb[:, 0, 0] == 255).all() and (views.depth[:, 0, 0] == 0).all()


def test_every_camera_sees_its_side(renderer):
    sides = {"+Z": (0, 0, 1), "+X": (1, 0, 0), "-Z": (0, 0, -1), "-X": (-1, 0, 0), "+Y": (0, 1, 0), "-Y": (0, -1, 0)}
    colors = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)]
    plates = []
    for side, color in zip(sides.values(), colors, strict=True):
        size = [0.02 if abs(s) else 1.0 for s in side]
        plate = box(*size).move(*(0.5 * s for s in side))
        plates.append(Primitive("plate", plate.vertices, plate.faces, Material("c", tuple(float(c) for c in color))))
    views = renderer.render(Mesh(tuple(plates)))
    for view, color in enumerate(colors):
        assert ((views.rgb[view, 32, 32] > 128) == np.array(color, bool)).all(), f"view {view}"


def test_top_of_the_picture_is_up_and_right_is_right(renderer):
    mark = box(0.4, 0.4, 0.4).move(x=0.7, y=0.7)
    views = renderer.render(
        Mesh((*one(box(2, 2, 0.2)).primitives, *one(mark, Material("red", (1.0, 0.0, 0.0))).primitives))
    )
    red = views.rgb[0, ..., 0].astype(int) - views.rgb[0, ..., 1] > 60
    rows, columns = np.nonzero(red)
    assert len(rows) and rows.max() < 32 and columns.min() > 32


def test_surface_points_project_onto_the_pictures_at_their_depth(renderer):
    mesh = one(ellipsoid(1.0, 0.6, 0.8).move(3, 4, 5))
    views, points = renderer.render(mesh), sample_points(mesh, 2000, seed=0)
    frame = views.normalisation
    local = (points.xyz - frame.box_center) / frame.box_radius
    focal = projection_matrix(SIX)[1, 1]
    for pose, depth in zip(views.camera_to_world, views.depth.astype(np.float64), strict=True):
        seen = (local - pose[:3, 3]) @ pose[:3, :3]
        ray = pose[:3, 3] - local
        facing = (ray * points.normal).sum(1) > 0.5 * np.linalg.norm(ray, axis=1)  # clear of the outline
        pixel = ((1 + focal * seen[:, :2] / -seen[:, 2:]) * 32).astype(int)
        found = depth[63 - pixel[facing, 1], pixel[facing, 0]]
        assert facing.sum() > 50 and np.abs(found + seen[facing, 2]).max() < 0.1  # a pixel's diagonal at 60 degrees


def test_the_sphere_touches_the_edges_and_lies_within_the_planes(renderer):
    views = renderer.render(one(ellipsoid(1, 1, 1, segments=48)))
    for depth in views.depth.astype(np.float64):
        rows, columns = np.nonzero(depth)
        assert min(rows.min(), columns.min()) <= 1 and max(rows.max(), columns.max()) >= 62
        shown = depth[depth > 0]
        assert abs(shown.min() - (SIX.distance - 1)) < 0.02 and shown.max() < SIX.distance


def test_metal_is_not_black(renderer):
    silver = Material("silver", (0.8, 0.8, 0.8), metallic=1.0, roughness=0.4)
    ball = ellipsoid(1, 1, 1)
    assert lightness(renderer.render(one(ball, silver))) > 0.4 * lightness(
        renderer.render(one(ball, replace(silver, metallic=0.0)))
    )


def test_linear_colours_are_encoded_once(renderer):
    # sRGB 0.5 is linear 0.214: lit alike, the square must return that share of white's light, plus some highlight
    plate = box(1, 1, 0.1)
    ratio = lightness(renderer.render(one(plate))) / lightness(renderer.render(one(plate, WHITE)))
    assert 0.2 < ratio < 0.3
    assert 0.6 < lightness(renderer.render(one(plate, WHITE))) < 0.97, "white keeps apart from the background"


def test_vertex_colours_count_like_the_material(renderer):
    solid = cylinder(1.0, 1.0)
    plain = one(solid, Material("c", (0.3, 0.2, 0.1)))
    painted = Mesh(
        (replace(one(solid, WHITE).primitives[0], colors=np.tile([0.3, 0.2, 0.1], (len(solid.vertices), 1))),)
    )
    assert np.abs(renderer.render(plain).rgb.astype(int) - renderer.render(painted).rgb).max() <= 1


def test_wrongly_wound_faces_are_neither_holes_nor_dark(renderer):
    solid = cylinder(0.7, 1.5).rotate("x", 25)
    right = renderer.render(one(solid))
    inside_out = renderer.render(one(Geometry(solid.vertices, solid.faces[:, ::-1])))
    assert np.array_equal(right.depth > 0, inside_out.depth > 0)
    assert np.abs(right.rgb.astype(int) - inside_out.rgb).max() <= 2
    cube = box(1, 1, 1)
    faces = cube.faces.copy()
    faces[::2] = faces[::2, ::-1]  # half of every side
    some = renderer.render(one(Geometry(cube.vertices, faces)))
    assert np.abs(renderer.render(one(cube)).rgb.astype(int) - some.rgb).max() <= 2


def test_uv_tiling_is_kept(renderer):
    stripes = np.repeat([[[0] * 3, [255] * 3]], 2, axis=0)

    def edges(tiles):
        row = renderer.render(textured(np.repeat(stripes, 16, axis=1), tiles)).rgb[0, 32, 12:52, 0]
        return int(np.count_nonzero(np.diff((row > 128).astype(int))))

    assert edges(1) == 1 and edges(4) >= 6


def test_texture_rows_run_downwards_and_odd_widths_hold(renderer):
    # three texels a row: 9 bytes, which OpenGL's default alignment would shear
    texture = np.zeros((3, 3, 3), np.uint8)
    texture[0, :] = [255, 0, 0]
    texture[2, :] = [0, 0, 255]
    picture = renderer.render(textured(texture)).rgb[0].astype(int)
    for column in (18, 32, 46):
        assert picture[16, column, 0] > picture[16, column, 2] + 80
        assert picture[48, column, 2] > picture[48, column, 0] + 80


def test_transparent_texels_are_cut_out(renderer):
    texture = np.full((2, 2, 4), 255, np.uint8)
    texture[:, 0, 3] = 0
    depth = renderer.render(textured(texture)).depth[0]
    assert depth[32, 20] == 0 and depth[32, 44] > 0


def test_a_grey_and_alpha_texture_of_a_file_is_drawn(renderer, tmp_path):
    Image.new("LA", (4, 4), (90, 255)).save(tmp_path / "t.png")
    (tmp_path / "m.mtl").write_text("newmtl m\nKd 0 0 0\nmap_Kd t.png\n")
    lines = ["mtllib m.mtl", *(f"v {x} {y} {z}" for x, y, z in SQUARE), "vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    (tmp_path / "o.obj").write_text("\n".join([*lines, "usemtl m", "f 1/1 2/2 3/3 4/4"]) + "\n")
    views = renderer.render(load_mesh(tmp_path / "o.obj", tmp_path))
    assert 60 < views.rgb[0, 32, 32].mean() < 120


def test_blank_pictures_are_refused(renderer):
    speck, stray = box(0.01, 0.01, 0.01), box(0.01, 0.01, 0.01).move(100, 100, 100)
    with pytest.raises(MeshError, match=r"^blank: the shape covers 0\.\d\d% of its pictures") as caught:
        renderer.render(one(speck + stray))
    assert caught.value.reason == "blank"
    assert renderer.render(one(box(1, 1, 1))).foreground > 0.1, "and the next shape is unharmed"


def test_same_bytes_again_after_other_meshes_and_beside_other_renderers(renderer):
    shape, other = one(cylinder(0.5, 1.0).rotate("x", 30)), textured(np.full((5, 7, 4), 199))
    first = digest(renderer.render(shape))
    renderer.render(other)
    with Renderer(RenderConfig(preset="ring2", resolution=32, samples=1)) as small:
        small.render(other)
    # closing one renderer must not take the display away from the other
    assert digest(renderer.render(shape)) == first


@pytest.mark.slow
def test_same_bytes_in_a_new_process(renderer):
    code = (
        "from tests.test_render import *\n"
        "with Renderer(SIX) as r: print(digest(r.render(one(cylinder(0.5, 1.0).rotate('x', 30)))))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(renderer.render(one(cylinder(0.5, 1.0).rotate("x", 30))))


def test_views_split_over_framebuffers_are_the_same(renderer, monkeypatch):
    shape = one(cylinder(0.5, 1.0).rotate("x", 30))
    whole = renderer.render(shape)
    monkeypatch.setattr(rasterizer, "MAX_FRAMEBUFFER_WIDTH", 256)  # four views, then two
    with Renderer(SIX) as split:
        assert digest(split.render(shape)) == digest(whole)


def test_antialiasing_only_touches_edges(renderer):
    shape = one(box(1, 1, 1).rotate("x", 20))
    smooth = renderer.render(shape)
    with Renderer(replace(SIX, samples=1)) as plain:
        hard = plain.render(shape)
    differ = (smooth.rgb != hard.rgb).any(-1)
    assert 0 < differ.mean() < 0.1
    background = (hard.depth == 0) & (hard.rgb < 255).any(-1)
    assert not background.any(), "without samples no pixel is part shape, part background"


def test_a_forked_process_is_told_to_spawn(renderer, monkeypatch):
    monkeypatch.setattr(renderer._rasterizer.context, "pid", -1)
    with pytest.raises(MachineError, match="spawn"):
        renderer.render(one(box(1, 1, 1)))


def test_a_machine_without_the_device_is_sent_to_the_doctor(monkeypatch):
    monkeypatch.setattr(rasterizer, "_context", None)
    monkeypatch.setenv("EGL_DEVICE_ID", "99")
    with pytest.raises(UserError, match="recon-pipeline doctor"):
        Renderer(SIX)


def test_alpha_is_the_share_of_samples_on_the_shape(renderer):
    """Against 16 times as many pixels without antialiasing; and nothing is counted where nothing is."""
    shape = one(cylinder(0.7, 1.5).rotate("x", 25))
    views = renderer.render(shape)
    with Renderer(replace(SIX, resolution=256, samples=1)) as fine:
        share = (fine.render(shape).depth > 0).reshape(6, 64, 4, 64, 4).mean((2, 4))
    assert views.alpha.dtype == np.uint8 and views.alpha.shape == (6, 64, 64)
    assert np.abs(views.alpha / 255 - share).max() < 0.5, "samples lie elsewhere, so single pixels differ"
    assert abs(views.alpha.mean() / 255 - share.mean()) < 0.003
    assert (views.alpha[views.depth > 0] > 0).all() and (views.rgb[views.alpha == 0] == 255).all()
    assert 0 < ((views.alpha > 0) & (views.alpha < 255)).sum() < 0.1 * views.alpha.size


def test_straight_colours_come_back_at_the_edges():
    """Of one unlit colour every pixel must show that colour, be it an edge's, and give the picture on white again."""
    colour = Material("c", (0.05, 0.3, 0.6))
    with Renderer(replace(SIX, lights=Lights(unlit=True))) as flat:
        views = flat.render(one(cylinder(0.7, 1.5).rotate("x", 25), colour))
    expected = np.array([63, 149, 203])  # sRGB of the linear colour
    rgba = straight_rgba(views.rgb, views.alpha)
    assert np.abs(rgba[views.alpha == 255][:, :3].astype(int) - expected).max() == 0
    for covered in (64, 128, 191):
        edge = rgba[np.abs(views.alpha.astype(int) - covered) <= 1][:, :3].astype(int)
        assert len(edge) > 20
        assert np.abs(edge - expected).max() <= 3
    assert (rgba[views.alpha == 0] == [255, 255, 255, 0]).all()
    share = rgba[..., 3:] / 255
    assert np.abs(rgba[..., :3] * share + 255 * (1 - share) - views.rgb).max() <= 1


def test_masks_are_what_covers_half_a_pixel(renderer):
    views = renderer.render(one(box(1, 1, 1).rotate("x", 20)))
    assert (mask(np.array([0, 64, 126, 127, 128, 255], np.uint8)) == [False, False, False, True, True, True]).all()
    with Renderer(replace(SIX, samples=1)) as plain:
        hard = plain.render(one(box(1, 1, 1).rotate("x", 20))).alpha
    assert set(np.unique(hard)) == {0, 255}
    assert (mask(views.alpha) != mask(hard)).mean() < 0.02


def test_normals_are_those_of_the_shape_in_its_own_axes():
    with Renderer(replace(SIX, normals=True)) as both:
        cube, ball = (both.render(one(shape)) for shape in (box(1, 1, 1), ellipsoid(1, 1, 1, segments=64)))
        inside_out = both.render(one(Geometry(box(1, 1, 1).vertices, box(1, 1, 1).faces[:, ::-1])))
        again = both.render_some(one(box(1, 1, 1)), [5, 2])
    assert cube.normal.dtype == np.int8 and cube.normal.shape == (6, 64, 64, 3)
    sides = [[0, 0, 127], [127, 0, 0], [0, 0, -127], [-127, 0, 0], [0, 127, 0], [0, -127, 0]]
    for view, side in enumerate(sides):
        assert (cube.normal[view, 32, 32] == side).all()
        assert (inside_out.normal[view, 32, 32] == side).all(), "a wrongly wound face points to its visible side"
    assert (cube.normal[:, 0, 0] == 0).all()
    assert np.array_equal(again.normal, cube.normal[[5, 2]]), "whatever other views are drawn"
    # a ball's normal is its point: unproject what is seen
    rows, columns = np.nonzero(ball.normal[1].any(-1) & (ball.depth[1] > 0))
    depth, focal = ball.depth[1, rows, columns].astype(float), projection_matrix(SIX)[1, 1]
    seen = np.stack([(columns - 31.5) / 32 / focal * depth, -(rows - 31.5) / 32 / focal * depth, -depth], -1)
    pose = ball.camera_to_world[1].astype(float)
    points = seen @ pose[:3, :3].T + pose[:3, 3]
    facing = points[:, 0] > 0.5  # depth is another sample's than the centre's, which shows where it is steep
    assert np.abs(points - ball.normal[1, rows, columns] / 127)[facing].max() < 0.06


def test_normals_leave_the_pictures_alone(renderer):
    with Renderer(replace(SIX, normals=True)) as both:
        shape = textured(np.full((5, 7, 4), 199))
        drawn = both.render(shape)
    assert digest(replace(drawn, normal=None)) == digest(renderer.render(shape))


def test_every_light_counts():
    def shade(**changed) -> float:
        with Renderer(replace(SIX, lights=Lights(**changed))) as lit:
            return lightness(lit.render(one(box(1, 1, 1).rotate("x", 20))))

    usual = shade()
    assert all(shade(**dark) < usual - 0.01 for dark in ({"ambient": (0.0, 0.0)}, {"fill": 0.0}, {"key": 0.0}))
    assert shade(key_direction=(0.0, 0.0, 1.0)) > usual + 0.01, "from the camera it meets what is seen squarely"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"fill": -0.1}, "lights fill"),
        ({"key": float("nan")}, "lights key"),
        ({"ambient": (0.1, 11.0)}, "lights ambient"),
        ({"key_direction": (0.0, 0.0, 0.0)}, "lights key_direction"),
        ({"key_direction": (float("nan"), 0.0, 0.0)}, "lights key_direction"),
    ],
)
def test_lights_that_cannot_be_drawn_are_refused(wrong, field):
    with pytest.raises(UserError, match=f"^{field} must "):
        Lights(**wrong)


def test_a_manifest_sets_the_lights_and_is_told_what_is_wrong(small_manifest, tmp_path):
    """Users meet the configuration as a table: what they write must arrive, and errors must name file and field."""
    path = tmp_path / "m.toml"
    plain = small_manifest.read_text()

    def written(table: str) -> RenderConfig:
        path.write_text(plain.replace("resolution = 32", f"resolution = 32\n{table}"))
        return load_manifest(path).render

    table = "normals = true\n[render.lights]\nambient = [0.3, 0.3]\nkey = 0\nkey_direction = [0, 1, 0]"
    assert written(table) == RenderConfig(
        "ring2", 32, normals=True, lights=Lights(ambient=(0.3, 0.3), key=0.0, key_direction=(0.0, 1.0, 0.0))
    )
    assert written("lights.unlit = true").lights.unlit
    for wrong, words in (
        ("lights.fill = -1", "lights fill must lie in 0..10"),
        ("lights.ambient = 0.3", "render.lights.ambient"),
        ("lights.fil = 0.3", "unknown field 'render.lights.fil'"),
        ("normals = 3", "render.normals"),
        ("samples = 2", "samples must be 1"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            written(wrong)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_samples_are_one_or_four():
    with pytest.raises(UserError, match="samples"):
        RenderConfig(samples=3)


def test_recipe_is_json_and_tells_every_setting_apart(monkeypatch):
    base = RenderConfig()
    variants = [base, replace(base, preset="ring6"), replace(base, resolution=64), replace(base, fov_degrees=50.0)]
    variants += [replace(base, samples=1), replace(base, normals=True)]
    lights = [Lights(ambient=(0.3, 0.46)), Lights(fill=0.5), Lights(key=0.5), Lights(unlit=True)]
    variants += [replace(base, lights=other) for other in [*lights, Lights(key_direction=(0.0, 1.0, 0.0))]]
    texts = {json.dumps(recipe(c), sort_keys=True) for c in variants}
    assert len(texts) == len(variants)
    monkeypatch.setattr(rasterizer, "FRAGMENT_SHADER", rasterizer.FRAGMENT_SHADER.replace("0.04", "0.05"))
    assert json.dumps(recipe(base), sort_keys=True) not in texts


def test_one_setting_has_one_recipe():
    """Numbers written as 40 or 40.0, and lights that no unlit picture shows, must not make another key."""
    for one_way, another in (
        (RenderConfig(fov_degrees=40), RenderConfig(fov_degrees=40.0)),
        (RenderConfig(lights=Lights(key=1)), RenderConfig(lights=Lights(key=1.0))),
        (RenderConfig(lights=Lights(unlit=True)), RenderConfig(lights=Lights(fill=0.5, unlit=True))),
    ):
        assert json.dumps(recipe(one_way)) == json.dumps(recipe(another))
