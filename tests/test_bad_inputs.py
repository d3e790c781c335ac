"""Inputs that are too much of something: each is refused, or told, in a line, within the limits of time and memory."""

import struct
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from recon.pipeline.commands.cli import app
from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.store.feature_store import FeatureStore
from tests.conftest import FOLDER_MANIFEST
from tests.gltf_files import SQUARE, Builder
from tests.test_kept_meshes import put_boxes

SECONDS = 30.0  # of CPU, on a machine that others use too
MANY = 10_000_000
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def refusal(path: Path) -> MeshError:
    started = time.process_time()
    with pytest.raises(MeshError) as caught:
        load_mesh(path, path.parent)
    assert time.process_time() - started < SECONDS
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return caught.value


def picture(folder: Path, width: int) -> Path:
    Image.new("RGB", (width, 2)).save(folder / "t.png")
    return folder / "t.png"


def test_an_obj_with_a_texture_of_20000_px(tmp_path):
    picture(tmp_path, 20_000)
    (tmp_path / "m.mtl").write_text("newmtl m\nmap_Kd t.png\n")
    (tmp_path / "a.obj").write_text("mtllib m.mtl\nusemtl m\n" + QUAD + "vt 0 0\nf 1/1 2/1 3/1\n")
    found = refusal(tmp_path / "a.obj")
    assert found.reason == "unreadable" and "20000 x 2 px; at most 8192" in found.words


def test_a_glb_with_a_texture_of_20000_px(tmp_path):
    content = picture(tmp_path, 20_000).read_bytes()
    builder = Builder()
    builder.square(TEXCOORD_0=builder.array(SQUARE[:, :2]))
    builder.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    builder.header["images"] = [{"bufferView": builder.view(content), "mimeType": "image/png"}]
    builder.header["textures"] = [{"source": 0}]
    assert "20000 x 2 px" in builder.refusal(tmp_path).words


@pytest.mark.parametrize("binary", [True, False])
def test_a_ply_of_ten_million_faces(tmp_path, binary):
    form = "binary_little_endian" if binary else "ascii"
    header = f"ply\nformat {form} 1.0\nelement vertex 3\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += f"element face {MANY}\nproperty list uchar int vertex_indices\nend_header\n"
    row = struct.pack("<B3i", 3, 0, 1, 2) if binary else b"3 0 1 2\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + (bytes(36) if binary else b"0 0 0\n" * 3) + row * MANY)
    found = refusal(tmp_path / "a.ply")
    assert found.reason == "too-many-faces" and str(MANY) in found.words


def test_an_obj_of_ten_million_faces(tmp_path):
    (tmp_path / "a.obj").write_bytes(QUAD.encode() + b"f 1 2 3\n" * MANY)
    assert refusal(tmp_path / "a.obj").reason in ("too-many-faces", "unreadable")


@pytest.mark.slow
def test_an_off_of_ten_million_faces(tmp_path):
    (tmp_path / "a.off").write_bytes(f"OFF\n3 {MANY} 0\n0 0 0\n1 0 0\n1 1 0\n".encode() + b"3 0 1 2\n" * MANY)
    assert refusal(tmp_path / "a.off").reason in ("too-many-faces", "unreadable")


@pytest.mark.slow
def test_an_stl_of_ten_million_faces(tmp_path):
    (tmp_path / "a.stl").write_bytes(bytes(80) + struct.pack("<I", MANY) + bytes(50 * MANY))
    assert refusal(tmp_path / "a.stl").reason == "too-many-faces"


def test_a_glb_of_ten_million_faces(tmp_path):
    builder = Builder().square()
    builder.header["accessors"][builder.primitive["indices"]]["count"] = 3 * MANY
    assert str(3 * MANY) in builder.refusal(tmp_path).words or "too-many" in str(builder.refusal(tmp_path))


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory, clip_config) -> tuple[Path, str]:
    """A run over a file name of 255 bytes, a caption of 10,000 words and a name in a material that no file can have."""
    folder = tmp_path_factory.mktemp("odd")
    put_boxes(folder, num=1)
    box = (folder / "meshes" / "box" / "0.obj").read_text()
    long = "é" * 125 + "a.obj"  # 255 bytes in UTF-8
    assert len(long.encode()) == 255
    (folder / "meshes" / "box" / long).write_text(box)
    (folder / "meshes" / "box" / "m.mtl").write_text(f"newmtl m\nmap_Kd {'t' * 300}.png\n")
    (folder / "meshes" / "box" / "1.obj").write_text(f"mtllib m.mtl\nusemtl m\n{box}")
    words = "word " * 10_000
    rows = ["path,class,caption", f"box/0.obj,box,{words}", f"box/{long},box,a box", "box/1.obj,box,another box"]
    (folder / "meshes" / "shapes.csv").write_text("\n".join(rows) + "\n")
    text = FOLDER_MANIFEST.format(model=clip_config)
    (folder / "m.toml").write_text(text.replace('layout = "folder"', 'layout = "folder"\nlist = "shapes.csv"'))
    places = ["--manifest", folder / "m.toml", "--root", folder / "meshes", "--store", folder / "s.zarr"]
    ran = CliRunner().invoke(app, ["all", *map(str, places), "--workers", "0"])
    assert ran.exit_code == 0, ran.output
    return folder / "s.zarr", ran.stderr


def test_a_caption_of_10000_words_is_embedded_by_its_beginning_and_told(odd_store):
    path, said = odd_store
    store = FeatureStore.open(path)
    prompts = store.prompts(store.ref().text["tiny"])
    assert max(len(prompt.split()) for prompt in prompts) == 10_000
    assert store.ok(store.ref().text["tiny"], len(prompts)).all()
    assert f"cut short: 1 of {len(prompts)} prompts" in " ".join(said.split())
    assert max(map(len, said.splitlines())) < 500


def test_a_file_name_of_255_bytes_is_a_shape_like_others(odd_store, tmp_path):
    path, _ = odd_store
    store = FeatureStore.open(path)
    assert sorted(len(uid.encode()) for uid in store.registry.uid) == [9, 9, 259]
    assert store.points().ok.all() and store.views().ok.all()
    for command in (["stats", path], ["verify", path], ["preview", path, tmp_path / "sheets"]):
        ran = CliRunner().invoke(app, list(map(str, command)))
        assert ran.exit_code == 0, ran.output


def test_a_texture_name_that_no_file_can_have_is_missing(odd_store):
    _, said = odd_store
    assert "missing files: 1 shapes name 1 that are not there" in " ".join(said.split())
