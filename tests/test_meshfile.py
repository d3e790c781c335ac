import pickle
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.procedural.geometry import box, cylinder
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.meshfile import SUFFIXES, MeshError, check_mesh, load_mesh, mesh_digest
from recon.pipeline.shapes.normals import corner_normals

SHARED = Path(__file__).resolve().parents[2] / "shared"
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 3 0\nvt 3 3\nvt 0 3\n"
RED = Material("red", (0.5, 0.0, 0.0))


def shape(vertices=None, faces=None, **kwargs) -> Mesh:
    solid = box(1, 1, 1)
    vertices = solid.vertices if vertices is None else np.asarray(vertices, np.float64)
    faces = solid.faces if faces is None else np.asarray(faces)
    return Mesh((Primitive("part", vertices, faces, RED, **kwargs),))


def write_obj(folder: Path, mtl: str, text: str = QUAD + "usemtl m\nf 1/1 2/2 3/3 4/4\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.mtl").write_text("newmtl m\n" + mtl)
    path = folder / "model.obj"
    path.write_text("mtllib m.mtl\n" + text)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_surface(tmp_path, suffix):
    solid = box(1, 2, 3)
    source = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    path = tmp_path / f"box{suffix}"
    if suffix == ".gltf":
        for name, content in trimesh.Scene(source).export(file_type="gltf").items():
            (tmp_path / (path.name if name.endswith(".gltf") else name)).write_bytes(content)
    else:
        source.export(path)
    mesh = load_mesh(path, tmp_path)
    assert np.allclose(mesh.bounds(), [solid.vertices.min(0), solid.vertices.max(0)], atol=1e-5)
    assert sum(len(p.faces) for p in mesh.primitives) == len(solid.faces)


def test_instances_and_mirrored_transforms_are_applied(tmp_path):
    scene = trimesh.Scene()
    ball = trimesh.creation.icosphere(subdivisions=1, radius=1.0)
    scene.add_geometry(
        ball, geom_name="ball", node_name="right", transform=trimesh.transformations.translation_matrix([5, 0, 0])
    )
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = -5
    scene.graph.update(frame_to="left", geometry="ball", matrix=mirror)
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb", tmp_path)
    assert len(mesh.primitives) == 2 and mesh.parts == ("ball",)
    assert np.allclose(mesh.bounds(), [[-6, -1, -1], [6, 1, 1]], atol=1e-5)
    for item in mesh.primitives:  # outward faces have positive volume, mirrored or not
        a, b, c = (item.vertices[item.faces[:, i]] - item.vertices.mean(0) for i in range(3))
        assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0


def test_axes_turn_to_y_up_z_front(tmp_path):
    trimesh.creation.box(bounds=[[0, 0, 0], [1, 2, 3]]).export(tmp_path / "box.stl")
    # file: up +Z, front -Y; so its +X is the viewer's right, +X here
    mesh = load_mesh(tmp_path / "box.stl", tmp_path, up="+Z", front="-Y")
    assert np.allclose(mesh.bounds(), [[0, 0, -2], [1, 3, 0]])
    with pytest.raises(UserError, match="different axes"):
        load_mesh(tmp_path / "box.stl", tmp_path, up="+Z", front="-Z")
    with pytest.raises(UserError, match="must be one of"):
        load_mesh(tmp_path / "box.stl", tmp_path, up="up")


def test_kd_is_decoded_from_srgb_and_not_metallic(tmp_path):
    (item,) = load_mesh(write_obj(tmp_path, "Kd 0.5 0.5 0.5\n"), tmp_path).primitives
    assert np.allclose(item.material.base_color, 0.2140, atol=3e-3)  # sRGB 0.5
    assert item.material.metallic == 0.0 and item.material.name == "m"


def test_vertex_colours_of_a_ply_are_decoded_and_of_a_glb_kept(tmp_path):
    source = trimesh.creation.box()
    source.visual.vertex_colors = np.full((8, 4), [128, 64, 255, 255], np.uint8)
    source.export(tmp_path / "box.ply")
    source.export(tmp_path / "box.glb")
    (ply,) = load_mesh(tmp_path / "box.ply", tmp_path).primitives
    (glb,) = load_mesh(tmp_path / "box.glb", tmp_path).primitives  # glTF stores colours linear
    assert np.allclose(ply.colors[0] * ply.material.base_color, [0.2158, 0.0513, 1.0], atol=1e-3)
    assert np.allclose(glb.colors[0] * glb.material.base_color, np.array([128, 64, 255]) / 255, atol=1e-3)


def test_a_face_keeps_its_own_colour(tmp_path):
    lines = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {c}" for c in "xyz"), "element face 2"]
    lines += ["property list uchar int vertex_indices", *(f"property uchar {c}" for c in ("red", "green", "blue"))]
    lines += ["end_header", "0 0 0", "1 0 0", "1 1 0", "0 1 0", "3 0 1 2 255 0 0", "3 0 2 3 0 0 255"]
    (tmp_path / "two.ply").write_text("\n".join(lines) + "\n")
    (item,) = load_mesh(tmp_path / "two.ply", tmp_path).primitives
    assert np.allclose(item.colors[item.faces[0]], [1, 0, 0]) and np.allclose(item.colors[item.faces[1]], [0, 0, 1])


def test_texture_in_a_sister_folder_is_found_within_the_root(tmp_path):
    # ShapeNetCore v2: models/model.obj names ../images/x.jpg, which trimesh's own resolver refuses
    (tmp_path / "a" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4), (200, 100, 0)).save(tmp_path / "a" / "images" / "x.png")
    path = write_obj(tmp_path / "a" / "models", "Kd 0 0 0\nmap_Kd ../images/x.png\n")
    mesh = load_mesh(path, tmp_path)
    (item,) = mesh.primitives
    assert item.texture is not None and item.texture[0, 0].tolist() == [200, 100, 0]
    assert item.material.base_color == (1.0, 1.0, 1.0), "black Kd beside a texture would blacken it"
    assert np.ptp(item.uv) == 3, "tiling beyond [0, 1] must survive"
    assert mesh.facts == {}


def test_texture_outside_the_root_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path = write_obj(tmp_path / "root" / "a", "map_Kd ../../secret.png\n")
    with pytest.raises(MeshError, match=r"secret\.png.*outside"):
        load_mesh(path, tmp_path / "root")
    (path.parent / "link.png").symlink_to(tmp_path / "secret.png")
    write_obj(tmp_path / "root" / "a", "map_Kd link.png\n")
    with pytest.raises(MeshError, match="outside"):
        load_mesh(path, tmp_path / "root")


@pytest.mark.parametrize("name", ["gone.png", "page.png", "C:\\art\\gone.png", "/art/gone.png"])
def test_a_missing_texture_is_named_and_does_not_blacken(tmp_path, name):
    (tmp_path / "page.png").write_text("<html>not found</html>")
    mesh = load_mesh(write_obj(tmp_path, f"Kd 0 0 0\nmap_Kd {name}\n"), tmp_path)
    words = ": it looks like a web page; no whole picture in a format that is read "
    words += "(PNG, JPEG, WEBP, TGA, BMP, GIF, TIFF)"
    assert mesh.facts["missing_files"] == [name + words * (name == "page.png")]
    assert min(mesh.primitives[0].material.base_color) > 0.2


def test_an_absent_mtl_gives_grey(tmp_path):
    path = tmp_path / "model.obj"
    path.write_text("mtllib gone.mtl\n" + QUAD + "usemtl m\nf 1/1 2/2 3/3 4/4\n")
    (item,) = load_mesh(path, tmp_path).primitives
    assert item.texture is None and 0.3 < item.material.base_color[0] < 0.7


@pytest.mark.parametrize(("mode", "channels"), [("LA", 4), ("1", 3), ("L", 3), ("P", 3), ("RGBA", 4), ("RGB", 3)])
def test_every_picture_mode_becomes_rgb_or_rgba(tmp_path, mode, channels):
    Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "t.png")
    (item,) = load_mesh(write_obj(tmp_path, "map_Kd t.png\n"), tmp_path).primitives
    assert item.texture.shape == (4, 4, channels) and item.texture.dtype == np.uint8
    assert (item.texture == 255).all()


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        (Mesh((Primitive("p", np.zeros((3, 3)), np.zeros((0, 3), np.int64), RED),)), "no-faces"),
        (Mesh(()), "no-faces"),
        (shape(vertices=np.full_like(box(1, 1, 1).vertices, np.nan)), "non-finite"),
        (shape(vertices=[[0, 0, 0], [1e39, 0, 0], [0, 1, 0]], faces=[[0, 1, 2]]), "non-finite"),
        (shape(vertices=[[0, 0, 0], [1, 0, 0], [2, 0, 0]], faces=[[0, 1, 2]]), "degenerate"),
        (shape(vertices=np.ones((3, 3)), faces=[[0, 1, 2]]), "degenerate"),
        (shape(faces=[[0, 1, 99]]), "bad-index"),
        (shape(faces=[[0, 1, -1]]), "bad-index"),
        (shape(faces=np.zeros((2_000_001, 3), np.int64)), "too-many-faces"),
        (
            Mesh(tuple(Primitive(f"p{i}", box(1, 1, 1).vertices, box(1, 1, 1).faces, RED) for i in range(257))),
            "too-many-parts",
        ),
    ],
)
def test_the_gate_names_its_reason(mesh, reason):
    with pytest.raises(MeshError) as caught:
        check_mesh(mesh)
    assert caught.value.reason == reason and str(caught.value).startswith(reason)
    # a worker process sends it back pickled
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason  # noqa: S301


def test_files_that_cannot_be_read_give_one_line_that_names_them(tmp_path):
    for name, content in {
        "empty.obj": b"",
        "page.stl": b"<html>",
        "lines.obj": b"v 0 0 0\nv 1 0 0\nl 1 2\n",
        "x.fbx": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MeshError) as caught:
            load_mesh(tmp_path / name, tmp_path)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MeshError, match="no such file"):
        load_mesh(tmp_path / "gone.obj", tmp_path)


def test_compressed_gltf_says_what_to_install(tmp_path):
    (tmp_path / "c.gltf").write_text('{"asset": {"version": "2.0"}, "extensionsRequired": ["EXT_meshopt_compression"]}')
    with pytest.raises(MeshError, match="EXT_meshopt_compression"):
        load_mesh(tmp_path / "c.gltf", tmp_path)


def test_digest_sees_geometry_material_and_texture_but_not_facts():
    base = mesh_digest(shape())
    assert base == mesh_digest(shape()) == mesh_digest(Mesh(shape().primitives, {"any": 1}))
    uv, texture = np.zeros((len(box(1, 1, 1).vertices), 2)), np.zeros((2, 2, 3), np.uint8)
    others = [
        shape(vertices=box(1, 1, 1).vertices * 1.001),
        shape(faces=box(1, 1, 1).faces[::-1]),
        Mesh((Primitive("other", box(1, 1, 1).vertices, box(1, 1, 1).faces, RED),)),
        Mesh((Primitive("part", box(1, 1, 1).vertices, box(1, 1, 1).faces, Material("red", (0.4, 0.0, 0.0))),)),
        shape(colors=np.ones((len(box(1, 1, 1).vertices), 3))),
        shape(uv=uv, texture=texture),
        shape(uv=uv, texture=texture.reshape(1, 4, 3)),
    ]
    assert len({base, *map(mesh_digest, others)}) == 1 + len(others)
    zero = shape(vertices=box(1, 1, 1).vertices * 0.0)
    assert mesh_digest(zero) == mesh_digest(shape(vertices=box(1, 1, 1).vertices * -0.0)), "minus zero is zero"


def test_normals_are_flat_across_creases_and_smooth_below():
    solid = box(1, 1, 1)  # shares corners across 90 degree edges
    normals = corner_normals(solid.vertices, solid.faces)
    assert np.allclose(np.sort(np.abs(normals), axis=-1), [0, 0, 1])
    tube = cylinder(1.0, 2.0, segments=36)
    normals = corner_normals(tube.vertices, tube.faces)
    corners = tube.vertices[tube.faces]
    side = np.abs(normals[..., 1]) < 0.5
    radial = corners * [1, 0, 1]
    radial /= np.maximum(np.linalg.norm(radial, axis=-1, keepdims=True), 1e-9)
    # facets are 10 degrees apart, so facet normals are off by 5 degrees and smooth ones (nearly) by none
    assert np.degrees(np.arccos(np.clip((normals * radial).sum(-1)[side], -1, 1))).max() < 2.6
    assert np.allclose(np.abs(normals[~side][:, 1]), 1), "caps stay flat"


def test_unwelded_vertices_shade_like_shared_ones():
    tube = cylinder(1.0, 2.0, segments=24)
    apart = tube.vertices[tube.faces].reshape(-1, 3)
    loose = corner_normals(apart, np.arange(len(apart)).reshape(-1, 3))
    assert np.allclose(loose, corner_normals(tube.vertices, tube.faces))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(1.0, 179.0))
def test_normals_match_a_plain_loop(seed, num_faces, crease):
    # few positions and many faces: shared corners, degenerate faces and both windings all occur
    rng = np.random.default_rng(seed)
    vertices = rng.integers(0, 3, (12, 3)).astype(np.float64)
    faces = rng.integers(0, 12, (num_faces, 3))
    crossed = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    length = np.linalg.norm(crossed, axis=1)
    unit = crossed / np.maximum(length, 1e-300)[:, None]
    normals = corner_normals(vertices, faces, crease)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1)
    threshold = np.cos(np.radians(crease))
    cosines = unit @ unit.T
    if np.abs(cosines[length > 0][:, length > 0] - threshold).min(initial=1) < 1e-6:
        return  # on the threshold, rounding decides
    for f in np.flatnonzero(length):
        for k in range(3):
            near = [
                g for g in np.flatnonzero(length)
                if (vertices[faces[g]] == vertices[faces[f, k]]).all(1).any() and cosines[f, g] >= threshold
            ]  # fmt: skip
            count = {g: (vertices[faces[g]] == vertices[faces[f, k]]).all(1).sum() for g in near}
            total = sum(crossed[g] * count[g] for g in near)
            if np.linalg.norm(total) > 1e-9:
                assert np.allclose(normals[f, k], total / np.linalg.norm(total), atol=1e-6)


def test_large_meshes_are_done_in_blocks(monkeypatch):
    tube = cylinder(1.0, 2.0, segments=60)
    whole = corner_normals(tube.vertices, tube.faces)
    monkeypatch.setattr("recon.pipeline.shapes.normals.PAIRS_A_BLOCK", 50)
    assert np.array_equal(corner_normals(tube.vertices, tube.faces), whole)


@pytest.mark.skipif(not (SHARED / "broken_meshes").is_dir(), reason="needs the shared broken meshes")
def test_every_broken_file_is_refused_in_one_line():
    files = sorted((SHARED / "broken_meshes").iterdir())
    assert files
    for path in files:
        with pytest.raises(MeshError) as caught:
            load_mesh(path, path.parent)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not (SHARED / "meshes").is_dir(), reason="needs the shared real meshes")
def test_real_files_load():
    root = SHARED / "meshes"
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES)
    refused = []
    for path in files[::3]:
        try:
            check_mesh(load_mesh(path, root))
        except MeshError as error:
            refused.append(str(error))
    assert len(files) > 50 and all("compressed" in words for words in refused)
