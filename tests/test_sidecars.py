"""What a mesh file asks for is found as the reader finds it, and a change of it shows in the fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recon.pipeline.base.digests import digest_of
from recon.pipeline.flow.manifest import Manifest, fingerprinted, list_shapes, load_manifest
from recon.pipeline.shapes import meshfile
from recon.pipeline.shapes.meshfile import load_mesh, mesh_digest
from recon.pipeline.shapes.meshfile import sidecars as module
from recon.pipeline.shapes.meshfile.files import ModelFiles
from recon.pipeline.shapes.meshfile.sidecars import counted, fingerprint, sidecars, without_sidecars
from recon.pipeline.shapes.meshfile.text_guard import guard_obj
from recon.pipeline.sources.source import Shape, stamp
from recon.pipeline.stages.rows import shape_rows
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from tests.miniature_meshes import build_folder, build_objaverse, build_shapenet55, build_shapenet_core_v2, write_obj
from tests.test_picture_faults import FACE, PLATE, write
from tests.test_picture_formats import encoded, every_way

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], set[str]]:
    """Where the reader itself looks for files beside a mesh file, relative to the root."""
    readers: list[ModelFiles] = []

    class Noting(ModelFiles):
        def __init__(self, folder: Path, root: Path) -> None:
            super().__init__(folder, root)
            readers.append(self)

    monkeypatch.setattr(meshfile, "ModelFiles", Noting)

    def look(path: Path, root: Path) -> set[str]:
        load_mesh(path, root)
        return {os.path.relpath(place, root) for place in readers[-1].looked_at}

    return look


def named(path: Path, root: Path) -> set[str]:
    return {os.path.normpath(name) for name in sidecars(path, root)}


def test_pictures_and_buffers_of_every_format(tmp_path: Path, looked_at: Callable[[Path, Path], set[str]]) -> None:
    expected = {"obj": {"m.mtl", "x.png"}, "ply": {"x.png"}, "dae": {"my%20wood.png", "my wood.png"}}
    expected |= {name: {"x.png"} for name in ("gltf-file", "glb-file", "gltf-buffer")}
    expected["gltf-separate"] = {"my%20buffer.bin", "my buffer.bin"}
    for name, path in every_way(tmp_path, encoded("PNG")).items():
        assert named(path, tmp_path) == looked_at(path, tmp_path), name
        assert named(path, path.parent) == expected.get(name, set()), name


@pytest.mark.parametrize(
    ("build", "layout"),
    [
        (build_folder, "folder"),
        (build_shapenet_core_v2, "shapenet_core_v2"),
        (build_shapenet55, "shapenet55"),
        (build_objaverse, "objaverse"),
    ],
)
def test_miniatures_of_every_layout(
    tmp_path: Path, looked_at: Callable[[Path, Path], set[str]], build: Callable[[Path], None], layout: str
) -> None:
    build(tmp_path)
    manifest = load_manifest(MANIFESTS / f"{layout}.toml")
    for shape in list_shapes(manifest, tmp_path):
        found = manifest.source.mesh_file(tmp_path, shape.source)
        assert found is not None
        if found[0].is_file():
            assert named(*found) == looked_at(*found)
            assert bool(named(*found)) == (found[0].suffix == ".obj")


@pytest.mark.parametrize(
    ("head", "mtl", "expected"),
    [
        ("mtllib m.mtl", "map_Kd x.png", {"m.mtl", "x.png"}),
        ("\t mtllib \\\n  m.mtl", "  MAP_KD -s 2 2 -o .5 x.png", {"m.mtl", "x.png"}),
        ("# mtllib no.mtl\r\nmtllib m.mtl\r", "map_Kd x.png\r\nmap_Bump b.png\nmap_d d.png", {"m.mtl", "x.png"}),
        ("mtllib m.mtl other.mtl", "", {"m.mtl other.mtl", "m.mtl", "other.mtl"}),
        ("mtllib my m.mtl", "map_Kd x.png", {"my m.mtl", "x.png"}),
        ("mtllib gone.mtl\nmtllib m.mtl", "map_Kd a/gone.png", {"gone.mtl", "m.mtl", "a/gone.png", "gone.png"}),
        ("mtllib m.mtl", "map_Kd C:\\me\\my%20x.png", {"m.mtl", "C:/me/my%20x.png", "C:/me/my x.png", "my%20x.png"}),
        ("mtllib m.mtl", "map_Kd /home/me/x.png", {"m.mtl", "x.png"}),
        ("mtllib m.mtl", "map_Kd ä.png", {"m.mtl", "ä.png"}),
        ("o mtllib", "map_Kd x.png", set()),
    ],
)
def test_objs_as_people_write_them(
    tmp_path: Path, looked_at: Callable[[Path, Path], set[str]], head: str, mtl: str, expected: set[str]
) -> None:
    for name in ("m.mtl", "my m.mtl", "other.mtl"):
        (tmp_path / name).write_text(f"newmtl m\nKd 1 0 0\n{mtl}\n")
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    path = tmp_path / "a.obj"
    for text in (f"{head}\n{PLATE}{FACE}", f"{PLATE}{FACE}{head}\n", f"{PLATE * 200}{head}\n{FACE}{head}"):
        path.write_text(text, newline="")
        assert named(path, tmp_path) == expected
        if head != "o mtllib":  # trimesh takes the word for a library's wherever it stands
            assert named(path, tmp_path) == looked_at(path, tmp_path)


lines = st.sampled_from(
    [
        "v 0 0 0",
        "mtllib a.mtl",
        "  mtllib b c.mtl ",
        "#mtllib d.mtl",
        "mtllib\te.mtl",
        "o mtllib f",
        "mtllib \\",
        "g.mtl",
    ]
)


@given(st.lists(st.tuples(lines, st.sampled_from(["\n", "\r\n", "\r"]))))
def test_no_material_library_is_overlooked(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str]]
) -> None:
    """A name too many costs a look at a file; one too few would hide a change."""
    path = tmp_path_factory.mktemp("obj") / "a.obj"
    content = "".join(map("".join, parts)).encode()
    path.write_bytes(content)
    places = named(path, path.parent)
    files = ModelFiles(path.parent, path.parent)
    for line in guard_obj(content, files.budget)[2]:
        files.find_libraries(line)
    assert {os.path.relpath(place, path.parent) for place in files.looked_at} <= places


def test_what_cannot_be_scanned_names_nothing(tmp_path: Path) -> None:
    for name, content in (
        ("a.obj", b""),
        ("b.glb", b"glTF"),
        ("c.gltf", b"[]"),
        ("d.gltf", b'{"images": 3}'),
        ("e.dae", b"<!DOCTYPE a><image><init_from>x</init_from></image>"),
        ("f.ply", b"\xff"),
        ("g.off", b"mtllib a.mtl"),
    ):
        (tmp_path / name).write_bytes(content)
        assert sidecars(tmp_path / name, tmp_path) == ()
    with pytest.raises(OSError, match="gone"):
        sidecars(tmp_path / "gone.obj", tmp_path)


def test_nothing_outside_the_root_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "root", "map_Kd ../secret.png\n")
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))
    assert sidecars(path, path.parent) == ("m.mtl",)
    assert set(sidecars(path, tmp_path)) == {"root/m.mtl", "root/../secret.png"}


# ---- fingerprints


def mark(path: Path, root: Path, known: str = "") -> str:
    return fingerprint(stamp(path), path, root, known)


def test_a_change_beside_the_mesh_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "Kd 1 0 0\nmap_Kd gone.png\n")
    seen = [(mark(path, tmp_path), mesh_digest(load_mesh(path, tmp_path)))]

    def changed() -> None:
        now = mark(path, tmp_path, seen[-1][0]), mesh_digest(load_mesh(path, tmp_path))
        assert now[0] not in [before for before, _ in seen] and now[1] not in [digest for _, digest in seen]
        assert mark(path, tmp_path, now[0]) == now[0] == mark(path, tmp_path), "known or not, it says the same"
        seen.append(now)

    (tmp_path / "a" / "m.mtl").write_text("newmtl m\nKd 0 1 0\nmap_Kd gone.png\n")
    changed()
    Image.new("RGB", (2, 2), (9, 9, 9)).save(tmp_path / "a" / "gone.png")
    changed()
    Image.new("RGB", (2, 2), (9, 9, 8)).save(tmp_path / "a" / "gone.png")
    changed()
    (tmp_path / "a" / "m.mtl").write_text("newmtl m\nmap_Kd other.png\n")
    changed()
    Image.new("RGB", (2, 2), (7, 9, 8)).save(tmp_path / "a" / "other.png")
    changed()  # which only the new library names
    (tmp_path / "a" / "m.mtl").unlink()
    assert mark(path, tmp_path, seen[-1][0]) != seen[-1][0]


def test_every_format_notices_its_own(tmp_path: Path) -> None:
    for name, path in every_way(tmp_path, encoded("PNG")).items():
        before = mark(path, tmp_path)
        places = [tmp_path / place for place in sidecars(path, tmp_path)]
        assert counted(before) == (before if places else stamp(path))
        for place in places:
            if place.is_file():
                os.utime(place, (1, 1))
                assert mark(path, tmp_path, before) != before, (name, place)
                before = mark(path, tmp_path, before)


def test_known_files_are_not_looked_into_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_folder(tmp_path)
    paths = [tmp_path / "chair" / "a.obj", tmp_path / "sofa" / "z.glb"]
    bare = tmp_path / "sofa" / "bare.obj"
    bare.write_text(PLATE + "f 1 2 3\n")
    before = {path: mark(path, tmp_path) for path in (*paths, bare)}
    assert before[bare] == stamp(bare) + " {}" and counted(before[bare]) == stamp(bare)
    scanned: list[Path] = []

    def scan(path: Path, files: ModelFiles) -> list[str]:
        scanned.append(path)
        return []

    monkeypatch.setattr(module, "_SCANS", {".obj": scan, ".glb": scan})
    assert {path: mark(path, tmp_path, known) for path, known in before.items()} == before
    assert not scanned
    os.utime(bare, (1, 1))
    for path in (bare, paths[0]):
        mark(path, tmp_path, before[path] if path == bare else stamp(path))  # as earlier versions registered it
    assert scanned == [bare, paths[0]]


def test_what_has_no_sidecars_keeps_its_mark(tmp_path: Path) -> None:
    for name in ("a.off", "b.stl"):
        (tmp_path / name).touch()
        assert mark(tmp_path / name, tmp_path) == stamp(tmp_path / name)
    assert mark(tmp_path / "gone.obj", tmp_path) == "missing"


def manifest_of(layout: str) -> Manifest:
    return load_manifest(MANIFESTS / f"{layout}.toml")


def test_shapes_of_a_manifest(tmp_path: Path) -> None:
    """Clouds do not depend on what lies beside a mesh; rows of what has nothing beside it stay as they were."""
    build_shapenet55(tmp_path)
    manifest = manifest_of("shapenet55")
    shapes = list_shapes(manifest, tmp_path)
    told = fingerprinted(manifest, tmp_path, shapes, {})
    for shape, now in zip(shapes, told, strict=True):
        assert now.fingerprint.startswith(shape.fingerprint + ' {"') and ".mtl" in now.fingerprint
        assert without_sidecars(now.fingerprint) == shape.fingerprint
    known = {shape.source: shape.fingerprint for shape in told}
    assert fingerprinted(manifest, tmp_path, shapes, known) == told
    demo = manifest_of("demo")
    assert fingerprinted(demo, None, list_shapes(demo, None), {}) == list_shapes(demo, None)


def test_rows_of_files_without_sidecars_are_those_of_earlier_versions(tmp_path: Path) -> None:
    fields = {"uid": ["a", "b"], "dataset": ["d", "d"], "category": ["c", "c"], "split": ["train", "train"]}
    store = FeatureStore.create(tmp_path / "s.zarr")
    store.append_registry({name: fields.get(name, ["", ""]) for name in REGISTRY_COLUMNS})
    shapes = [Shape(uid, "d", "c", "train", uid, mark) for uid, mark in (("a", "1-2 {}"), ("b", '1-2 {"m.mtl":"3-4"}'))]
    bare, dressed = shape_rows(store.registry, shapes)
    assert bare.inputs == digest_of("1-2") != dressed.inputs
    assert {row.inputs for row in shape_rows(store.registry, shapes, meshes=False)} == {digest_of("1-2")}


def test_a_texture_through_a_link_is_noticed_where_it_leads(tmp_path: Path) -> None:
    write_obj(tmp_path / "a" / "m.obj", texture="x.png")
    (tmp_path / "pool").mkdir()
    (tmp_path / "a" / "x.png").rename(tmp_path / "pool" / "one.png")
    (tmp_path / "a" / "x.png").symlink_to(tmp_path / "pool" / "one.png")
    before = mark(tmp_path / "a" / "m.obj", tmp_path)
    (tmp_path / "pool" / "two.png").write_bytes(encoded("BMP"))
    (tmp_path / "a" / "x.png").unlink()
    (tmp_path / "a" / "x.png").symlink_to(tmp_path / "pool" / "two.png")
    assert mark(tmp_path / "a" / "m.obj", tmp_path, before) != before
