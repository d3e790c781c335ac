"""Manifests are strict, and say which shapes there are in an order any prefix of which is a fair sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import Manifest, list_shapes, load_manifest
from recon.pipeline.sources import procedural
from recon.pipeline.sources.procedural import ProceduralSource

ROOT = Path(__file__).resolve().parents[1]
GOOD = """
name = "x"
[source]
layout = "procedural"
[features]
teachers = [{ name = "t", kind = "timm", model = "vit_tiny_patch16_224" }]
"""


def load(tmp_path: Path, text: str) -> Manifest:
    path = tmp_path / "m.toml"
    path.write_text(text)
    return load_manifest(path)


@pytest.mark.parametrize("path", sorted((ROOT / "data_manifests").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_manifest_is_valid(path: Path) -> None:
    assert load_manifest(path).name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("layout =", "layuot ="), "source"),
        (("[source]", "[source]\nshapes_per_categroy = 3"), "did you mean 'shapes_per_category'"),
        (("[source]", "[render]\nresolutoin = 64\n[source]"), "did you mean 'resolution'"),
        (("[source]", "[render]\nresolution = 4\n[source]"), "16..4096"),
        (("[source]", "[render]\npreset = 'openshape11'\n[source]"), "openshape12"),
        (('kind = "timm"', 'kind = "tim"'), "features.teachers.0.kind"),
        (("[source]", '[source]\ncategories = ["chiar"]'), "did you mean 'chair'"),
        (("[source]", "[source]\nshapes_per_category = 0"), "shapes_per_category"),
        (('name = "x"', 'name = "x"\nlicense = "MIT"'), "did you mean 'licence'"),
        (('name = "x"', 'name = "../x"'), "name"),
        (('name = "x"', "name = "), "not valid TOML"),
        (('{ name = "t"', '{ name = "a/b"'), "features.teachers.0.name"),
        (("}]", '}, { name = "t", kind = "timm", model = "m" }]'), "share a name"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_field(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert load(tmp_path, GOOD)
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace(*change))
    assert "m.toml" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_offers_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "there.toml").write_text(GOOD)
    with pytest.raises(UserError, match=r"there\.toml"):
        load_manifest(tmp_path / "here.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "data_manifests").glob("*.toml")), ids=lambda p: p.name)
def test_a_shipped_manifest_goes_by_its_name_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.stem).mkdir()  # a store's or a data set's folder, say
    assert load_manifest(path.stem) == load_manifest(Path(path.stem)) == load_manifest(path)


@pytest.mark.parametrize("given", ["demo", "./demo", "demo.toml", "here/demo.toml"])
def test_a_file_comes_before_a_shipped_manifest(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / given).write_text(GOOD)
    assert load_manifest(given).name == "x"


def test_a_shipped_manifests_paths_are_relative_to_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped" / "templates").mkdir(parents=True)
    (tmp_path / "shipped" / "templates" / "one.txt").write_text("a {}\n")
    (tmp_path / "shipped" / "x.toml").write_text(f'class_prompts = "templates/one.txt"\n{GOOD}')
    monkeypatch.setattr("recon.pipeline.flow.manifest.SHIPPED", tmp_path / "shipped")
    assert load_manifest("x").class_prompts == str(tmp_path / "shipped" / "templates" / "one.txt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "demmo",
            "no manifest 'demmo' (did you mean 'demo'?); give a file's path or one of cap3d, demo, demo_dense, "
            "folder, ",
        ),
        ("zzz", "no manifest 'zzz'; give a file's path or one of cap3d, demo, "),
        ("", "no manifest ''; give a file's path or one of cap3d, demo, "),
        ("data_manifests/demo.toml", "no manifest at data_manifests/demo.toml; the one shipped is called demo"),
        ("demo.toml", "no manifest at demo.toml; the one shipped is called demo"),
        ("~/mine.toml", "no manifest at ~/mine.toml"),
        ("sets", "sets is a folder, and a manifest is a TOML file: give one of its files: sets/mine.toml"),
        ("sets/mime.toml", "no manifest at sets/mime.toml (did you mean sets/mine.toml?)"),
        (
            "meshes",
            "meshes is a folder, and a manifest is a TOML file: for meshes in it, --manifest folder --root meshes",
        ),
    ],
)
def test_an_unknown_manifest_is_one_line(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshes").mkdir()
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mine.toml").touch()
    with pytest.raises(UserError) as caught:
        load_manifest(given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_demo_lists_its_shapes() -> None:
    shapes = list_shapes(load_manifest(ROOT / "data_manifests" / "demo.toml"), None)
    assert len(shapes) == 960
    assert len({shape.uid for shape in shapes}) == 960
    assert Counter(shape.category for shape in shapes) == dict.fromkeys(procedural.CATEGORIES, 40)
    assert Counter((s.category, s.split) for s in shapes if s.split == "test") == {
        (name, "test"): 8 for name in procedural.CATEGORIES
    }
    assert {shape.category for shape in shapes[:24]} == set(procedural.CATEGORIES)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.1, 4), (0.2, 8), (0.3, 12), (0.4, 16), (0.75, 30)])
def test_the_test_split_has_the_share_asked_for(tmp_path: Path, fraction: float, expected: int) -> None:
    manifest = load(tmp_path, GOOD).model_copy(update={"test_fraction": fraction})
    counts = Counter((shape.category, shape.split) for shape in list_shapes(manifest, None))
    assert {counts[name, "test"] for name in procedural.CATEGORIES} == {expected}


def test_more_shapes_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    manifest = load(tmp_path, GOOD)
    assert isinstance(manifest.source, ProceduralSource)
    more = manifest.model_copy(update={"source": manifest.source.model_copy(update={"shapes_per_category": 60})})
    few, many = list_shapes(manifest, None), list_shapes(more, None)
    assert many[: len(few)] == few


def test_a_manifest_that_lists_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest 'x' lists no shape; look at its \[source\]"):
        list_shapes(load(tmp_path, GOOD.replace("[source]", "[source]\ncategories = []")), None)


def test_what_draws_a_split_is_told_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "shapes.csv").write_text("path,class,split\na.off,c,val\nb.off,c,\n")
    (tmp_path / "a.off").touch()
    manifest = load(tmp_path, GOOD.replace('"procedural"', '"folder"\nlist = "shapes.csv"'))
    first, second = list_shapes(manifest, tmp_path)
    assert (first.split, first.listed_split, second.listed_split) == ("val", True, False)


def test_a_folder_manifest_asks_for_its_root(tmp_path: Path) -> None:
    manifest = load(tmp_path, GOOD.replace('"procedural"', '"folder"'))
    with pytest.raises(UserError, match="--root DIR"):
        list_shapes(manifest, None)
