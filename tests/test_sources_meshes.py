"""Data sets with meshes: every shipped manifest on a miniature of the genuine tree, axes, and bad input by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recon.pipeline.flow.manifest import list_shapes, load_manifest
from recon.pipeline.shapes.meshfile import MeshError
from recon.pipeline.sources.shapenet55 import ShapeNet55Source
from recon.pipeline.sources.shapenet_core import SYNSETS, SYNSETS_V1, ShapeNetCoreSource
from tests.miniature_meshes import (
    AIRPLANE,
    CHAIR,
    OBJECTS,
    TURNED,
    build_objaverse,
    build_shapenet_core_v1,
    build_shapenet_core_v2,
    corners,
    message,
    write_glb,
    write_obj,
)

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"
SHARED = Path(__file__).resolve().parents[2] / "shared"


# ---- ShapeNetCore


@pytest.mark.parametrize(
    ("version", "build", "file", "count"),
    [(1, build_shapenet_core_v1, "model.obj", 57), (2, build_shapenet_core_v2, "models/model_normalized.obj", 55)],
)
def test_shapenet_core(tmp_path: Path, version: int, build: Callable[[Path], None], file: str, count: int) -> None:
    manifest = load_manifest(MANIFESTS / f"shapenet_core_v{version}.toml")
    source = manifest.source
    assert isinstance(source, ShapeNetCoreSource) and len(source.synsets) == count
    build(tmp_path)
    (tmp_path / CHAIR / "empty").mkdir()  # some models of the release hold nothing
    (tmp_path / CHAIR / "notes.txt").touch()
    (tmp_path / "99999999" / "x").mkdir(parents=True)
    with (tmp_path / "all.csv").open("a") as table:
        table.write(f"000003,{CHAIR},{CHAIR},gone,train\n")
    shapes = list_shapes(manifest, tmp_path)
    assert [(s.uid, s.category, s.split) for s in shapes[:2]] == [
        (f"{AIRPLANE}-a", "airplane", "val"),
        (f"{AIRPLANE}-b-1", "airplane", "test"),
    ]
    assert [s.uid for s in shapes[2:]] == [f"{CHAIR}-empty", f"{CHAIR}-u6028f63e-4111-4412"]
    assert [s.uid for s in shapes if s.fingerprint == "missing"] == [f"{CHAIR}-empty"]
    assert {s.split for s in shapes[2:]} <= {"train", "test"}
    np.testing.assert_allclose(corners(source, tmp_path, shapes[0].source), TURNED, atol=1e-6)
    mesh = source.mesh(tmp_path, shapes[0].source)
    assert mesh.primitives[0].texture is not None and not mesh.facts  # version 2 has its textures in ../images
    with pytest.raises(MeshError, match="no such file"):
        source.mesh(tmp_path, f"{CHAIR}/empty/{file}")
    found = "\n".join(source.problems(tmp_path))
    for words in ("99999999", f"{count - 2} of {count} synsets", "notes.txt", f"{CHAIR}/gone", "2 models are not in"):
        assert words in found


def test_synonyms_come_from_the_taxonomy(tmp_path: Path) -> None:
    source = ShapeNetCoreSource(layout="shapenet_core")
    assert source.synonyms(tmp_path) == {}
    build_shapenet_core_v2(tmp_path / "core")
    names = {"airplane": ("airplane", "aeroplane", "plane"), "chair": ("chair",)}
    assert source.synonyms(tmp_path / "core") == names
    assert ShapeNet55Source(layout="shapenet55", meshes="core").synonyms(tmp_path) == names
    assert ShapeNet55Source(layout="shapenet55").synonyms(tmp_path) == {}
    for broken in ('{"a": 1}', '[{"name": "x"}]', "[1]", "[", '[{"name": "x", "name": "y"}]'):
        (tmp_path / "taxonomy.json").write_text(broken)
        assert "taxonomy.json" in message(lambda: source.synonyms(tmp_path))


def test_the_front_is_the_versions_unless_it_is_given() -> None:
    given = ({"version": 1}, {"version": 2}, {}, {"version": 1, "front": "+Z"})
    fronts = [ShapeNetCoreSource(layout="shapenet_core", **fields).front for fields in given]
    assert fronts == ["+X", "-Z", "-Z", "+Z"]


def test_the_category_names_are_distinct() -> None:
    # Synonyms are looked up by category, and the store numbers categories by name.
    assert len(set(SYNSETS.values())) == 55 and len(set(SYNSETS_V1.values())) == 57


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no folder"),
        (["readme.txt"], "must hold folders such as"),
        (["ShapeNetCore.v2/02691156/a/models/model_normalized.obj"], "take --root"),
        (["02691156.zip"], "unpack the archives"),
        (["02691156/a/model.obj"], "this is version 1"),
        (["02691156/a/other.obj"], "unpack"),
        (["02691156/.keep"], "unpack"),
    ],
)
def test_a_wrong_shapenet_root_says_what_it_is(tmp_path: Path, files: list[str], words: str) -> None:
    root = tmp_path / "root"
    for file in files:
        write_obj(root / file)
    assert words in message(lambda: ShapeNetCoreSource(layout="shapenet_core").shapes(root))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("synsetId,modelId\n", "column 'split' is missing"),
        ("synsetId,modelId,spilt\n", "did you mean 'split'"),
        ("synsetId,modelId,split,split\n", "twice"),
        (f"synsetId,modelId,split\n{AIRPLANE},a,tets\n", "all.csv:2: column 'split': 'tets' (did you mean 'test'?)"),
        (f"synsetId,modelId,split\n\n{AIRPLANE},a\n", "all.csv:3: 2 cells for 3 columns"),
        (f'synsetId,modelId,split\n{AIRPLANE},a,"test\n', "not valid CSV"),
    ],
)
def test_a_bad_split_file_is_named_by_line(tmp_path: Path, text: str, words: str) -> None:
    write_obj(tmp_path / AIRPLANE / "a" / "models" / "model_normalized.obj")
    (tmp_path / "all.csv").write_text(text)
    assert words in message(lambda: ShapeNetCoreSource(layout="shapenet_core").shapes(tmp_path))


@pytest.mark.skipif(not (SHARED / "formats/shapenet_core_v2").is_dir(), reason="needs the shared genuine files")
def test_a_genuine_camera_looks_to_the_front() -> None:
    root = SHARED / "formats/shapenet_core_v2"
    source = load_manifest(MANIFESTS / "shapenet_core_v2.toml").source
    shapes = source.shapes(root)
    assert [shape.category for shape in shapes] == ["bottle", "camera"]
    vertices = corners(source, root, shapes[1].source)
    front = vertices[vertices[:, 2] > 0.8 * vertices[:, 2].max()]
    back = vertices[vertices[:, 2] < 0.6 * vertices[:, 2].min()]
    assert np.ptp(front[:, 0]) < 0.4 * np.ptp(vertices[:, 0])  # only the lens reaches so far forward
    assert np.ptp(back[:, 0]) > 0.9 * np.ptp(vertices[:, 0])


# ---- Objaverse and Cap3D


def test_objaverse(tmp_path: Path) -> None:
    manifest = load_manifest(MANIFESTS / "objaverse.toml")
    source, root = manifest.source, tmp_path
    build_objaverse(root)
    shapes = list_shapes(manifest, root)
    assert [s.uid for s in shapes] == list(OBJECTS[:3])  # the fourth is not there
    assert [s.category for s in shapes] == ["Band_Aid", "object", "bow_(weapon)"]
    np.testing.assert_allclose(corners(source, root, shapes[0].source), TURNED, atol=1e-6)  # glTF has our axes
    assert source.problems(root) == []
    every = source.model_copy(update={"only_present": False}).shapes(root)
    assert [s.fingerprint == "missing" for s in every] == [False, False, False, True]
    write_glb(root / "glbs/000-001/stray.glb")
    (root / "lvis.json").write_text(json.dumps({"a": [OBJECTS[0], "x"], "b": [OBJECTS[0]]}))
    found = source.model_copy(update={"categories": "lvis.json"}).problems(root)
    for line, words in zip(found, ("stray.glb", "1 uids have two categories", "1 uids of lvis.json"), strict=True):
        assert words in line


def test_a_plain_list_of_files(tmp_path: Path) -> None:
    source = load_manifest(MANIFESTS / "cap3d.toml").source.model_copy(update={"objects": "mine.txt"})
    write_glb(tmp_path / "a b" / "ünï-1.glb")
    (tmp_path / "mine.txt").write_text("a b/ünï-1.glb\r\n\r\ngone/x.glb\n", "utf-8")
    (shape,) = source.shapes(tmp_path)
    assert (shape.uid, shape.category) == ("ünï-1", "object")
    assert len(corners(source, tmp_path, shape.source)) == 5
    (tmp_path / "mine.txt").write_text("gone/x.glb\n")
    assert "none of its 1 objects" in message(lambda: source.shapes(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("object-paths.json", "{", "not valid JSON"),
        ("object-paths.json", "[1]", "not an object of uid"),
        ("object-paths.json", '{"a": 1}', "not an object of uid"),
        ("object-paths.json", '{"a": "a.glb", "a": "b.glb"}', "key 'a' is there twice"),
        ("object-paths.json", '{"a": "../../etc/a.glb"}', "leaves the root"),
        ("object-paths.json", '{"a": "/etc/a.glb"}', "leaves the root"),
        ("object-paths.json", '{"a": "x/../../a.glb"}', "leaves the root"),
        ("object-paths.json", '{"a": "passwd"}', "no reader"),
        ("object-paths.json", '{"a": ""}', "empty"),
        ("object-paths.json", '{"a": "a\\n.glb"}', "control character"),
        ("object-paths.json", "[" * 100000, "nested too deeply"),
        ("list.txt", "a.glb\nb/a.glb\n", "list.txt:2: uid 'a' is in line 1"),
        ("list.txt", "\n../a.glb\n", "list.txt:2: '../a.glb' leaves the root"),
        ("list.txt", None, "no list"),
        ("list.json.gz", "{}", "cannot be read"),
        ("lvis.json", '{"x": "a"}', "not an object of category"),
        ("lvis.json", '{"x": [1]}', "category 'x': 1 is no uid"),
        ("lvis.json", "\udcff", "not UTF-8"),
    ],
)
def test_a_bad_objaverse_list_is_named_by_line(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    write_glb(tmp_path / "a.glb")
    fields = {"objects": "good.json", "categories": ""}
    (tmp_path / "good.json").write_text('{"a": "a.glb"}')
    fields["categories" if file == "lvis.json" else "objects"] = file
    if text is not None:
        (tmp_path / file).write_text(text, "utf-8", errors="surrogateescape")
    source = load_manifest(MANIFESTS / "objaverse.toml").source.model_copy(update=fields)
    line = message(lambda: source.shapes(tmp_path))
    assert words in line and file in line


# ---- manifests


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("shapenet_core_v2", "version = 2", "verison = 2", "did you mean 'version'"),
        ("shapenet_core_v2", "version = 2", "version = 3", "source.version"),
        ("shapenet55", "meshes_version", "mesh_version", "did you mean 'meshes_version'"),
        ("objaverse", "only_present", "only_presnet", "did you mean 'only_present'"),
        ("cap3d", "path =", "paht =", "did you mean 'path'"),
        ("folder", "# list =", "lists =", "did you mean 'list'"),
        ("folder", 'up = "+Y"', 'up = "+Q"', "field 'source': up axis '+Q' must be one of"),
        ("shapenet55", 'front = "-Z"', 'front = "+Y"', "must be different axes"),
    ],
)
def test_a_mistyped_field_is_named(tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    text = (MANIFESTS / f"{name}.toml").read_text()
    assert old in text
    (tmp_path / "m.toml").write_text(text.replace(old, new, 1))
    assert words in message(lambda: load_manifest(tmp_path / "m.toml"))
