"""`recon-pipeline check`: what is missing, extra or other than published, before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recon.pipeline.base.errors import UserError
from recon.pipeline.commands.cli import app
from recon.pipeline.flow.check import check, describe
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.keeping.copies import Copies
from tests.miniature_meshes import (
    CHAIR,
    TRAIN,
    build_cap3d,
    build_folder,
    build_objaverse,
    build_shapenet55,
    build_shapenet_core_v1,
    build_shapenet_core_v2,
)

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"


@pytest.mark.parametrize(
    ("name", "build", "shapes", "problems"),
    [
        ("folder", build_folder, 4, []),
        # A miniature has two synsets, and one chair that its all.csv does not name.
        ("shapenet_core_v1", build_shapenet_core_v1, 3, ["55 of 57 synsets", "1 models are not in all.csv"]),
        ("shapenet_core_v2", build_shapenet_core_v2, 3, ["53 of 55 synsets", "1 models are not in all.csv"]),
        ("shapenet55", build_shapenet55, 3, ["3 names are not in the published", "52470 names of the published"]),
        ("objaverse", build_objaverse, 3, []),
        ("cap3d", build_cap3d, 3, []),
    ],
)
def test_every_manifest_on_its_miniature(
    tmp_path: Path, name: str, build: Callable[[Path], None], shapes: int, problems: list[str]
) -> None:
    build(tmp_path)
    manifest = load_manifest(MANIFESTS / f"{name}.toml")
    found = check(manifest, tmp_path)
    assert found.shapes == shapes == sum(found.splits.values()) == sum(found.categories.values())
    assert found.missing == 0
    for line, words in zip(found.problems, problems, strict=True):
        assert words in line
    assert bool(found.differences) == bool(manifest.expected)  # a miniature is never as large as what was published
    assert found.clean == (not problems)
    assert found.captioned == ({"cap3d": 2} if name == "cap3d" else {})


def test_differences_are_told(tmp_path: Path) -> None:
    build_shapenet55(tmp_path)
    (tmp_path / "ShapeNet55-34" / "shapenet_pc" / f"{TRAIN[0]}.npy").unlink()
    (tmp_path / "ShapeNet55-34" / "shapenet_pc" / f"{TRAIN[1]}.npy").write_bytes(b"")
    (tmp_path / "ShapeNet55-34" / "shapenet_pc" / f"{CHAIR}-more.npy").touch()
    manifest = load_manifest(MANIFESTS / "shapenet55.toml")
    found = check(manifest, tmp_path)
    assert (found.missing, found.missing_files) == (1, [f"ShapeNet55-34/shapenet_pc/{TRAIN[0]}.npy"])
    assert found.differences == ["split 'test': 1 listed, 10518 expected", "split 'train': 2 listed, 41952 expected"]
    lines = "\n".join(describe(found))
    for words in ("1 of 3 files", "train: 2 of 41952", "1 listed files are empty", f"{CHAIR}-more.npy", "chair 1"):
        assert words in lines
    exact = manifest.model_copy(update={"expected": {"train": 2, "test": 1}})
    assert check(exact, tmp_path).differences == []
    assert check(manifest.model_copy(update={"expected": {"train": 2}}), tmp_path).differences == [
        "split 'test': 1 listed, 0 expected"
    ]


@pytest.mark.slow
def test_many_missing_files_are_counted_and_few_named(tmp_path: Path) -> None:
    (tmp_path / "shapenet_pc").mkdir()
    manifest = load_manifest(MANIFESTS / "shapenet55.toml")
    manifest = manifest.model_copy(update={"source": manifest.source.model_copy(update={"meshes": ""})})
    found = check(manifest, tmp_path)  # no lists: the published ones
    assert found.missing == found.shapes == 52470 and found.differences == []
    assert len(found.missing_files) == 20
    (line,) = [line for line in describe(found) if line.startswith("missing")]
    assert "52470 of 52470" in line and "and 52467 more" in line and len(line) < 300


def test_captions_of_other_shapes_or_none(tmp_path: Path) -> None:
    build_cap3d(tmp_path)
    manifest = load_manifest(MANIFESTS / "cap3d.toml")
    (tmp_path / "Cap3D_automated_Objaverse.csv").write_text("x,a chair\n")
    assert check(manifest, tmp_path).problems == ["captions 'cap3d': the file has none of these shapes"]
    (tmp_path / "Cap3D_automated_Objaverse.csv").unlink()
    with pytest.raises(UserError, match=r"Cap3D_automated_Objaverse\.csv"):
        check(manifest, tmp_path)


def run(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)], env=variables)
    if isinstance(result.exception, UserError):
        return 1, str(result.exception)  # `main` makes it a line
    return result.exit_code, result.stdout


def test_the_command(tmp_path: Path) -> None:
    build_folder(tmp_path / "root")
    manifest = MANIFESTS / "folder.toml"
    code, text = run("-m", manifest, "--root", tmp_path / "root")
    assert code == 0 and "4 shapes" in text and "chair 2, sofa 2" in text
    (tmp_path / "root" / "bed").mkdir()
    code, text = run("-m", manifest, "--root", tmp_path / "root", "--json")
    document = json.loads(text)
    assert (
        code == 1
        and document["clean"] is False
        and document["problems"] == ["class 'bed' holds no mesh file of its own"]
    )
    assert document["categories"] == {"chair": 2, "sofa": 2}
    code, text = run("-m", manifest, "--root", tmp_path / "gone")
    assert code == 1 and "no folder" in text and "\n" not in text
    code, text = run("-m", manifest)
    assert code == 1 and "--root" in text
    assert not list(tmp_path.glob("*.zarr"))  # it writes nothing


def test_the_root_from_the_environment(tmp_path: Path) -> None:
    build_objaverse(tmp_path)
    code, text = run("-m", MANIFESTS / "objaverse.toml", OBJAVERSE_ROOT=os.fspath(tmp_path))
    assert code == 0 and "3 shapes" in text
    code, text = run("-m", MANIFESTS / "objaverse.toml", OBJAVERSE_ROOT="")
    assert code == 1 and "OBJAVERSE_ROOT" in text


def test_the_demo_needs_no_files() -> None:
    code, text = run("-m", MANIFESTS / "demo.toml")
    assert code == 0 and "960 shapes" in text and "needs no files" in text


def test_one_mesh_in_several_splits_and_classes_is_told(tmp_path: Path) -> None:
    """Ten meshes that each lie twice under the root: five copies in the other split, two in another class."""
    lines = ["path,class,split"]
    for i in range(10):
        for name, split in (("a", "train"), ("b", "test" if i < 5 else "train")):
            (tmp_path / f"{name}{i}.obj").write_text(f"v {i} 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
            lines.append(f"{name}{i}.obj,{'box' if i < 2 and name == 'b' else 'crate'},{split}")
    (tmp_path / "shapes.csv").write_text("\n".join(lines))
    (tmp_path / "m.toml").write_text(
        (MANIFESTS / "folder.toml").read_text().replace('layout = "folder"', 'layout = "folder"\nlist = "shapes.csv"')
    )
    manifest = load_manifest(tmp_path / "m.toml")
    found = check(manifest, tmp_path)
    assert found.copies == Copies(20, 10, 10, 4, found.copies.examples)
    assert found.copies.examples[0] == ("a0.obj (crate, train)", "b0.obj (box, test)")
    assert "  copies: 20 shapes share 10 meshes, 10 of them across splits, 4 across classes, such as " in "\n".join(
        describe(found)
    )
    assert found.clean, "data sets have been published with copies"
    code, text = run("-m", tmp_path / "m.toml", "--root", tmp_path, "--json")
    assert code == 0 and json.loads(text)["copies"]["across_splits"] == 10
    (tmp_path / "b0.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 2 0\nf 1 2 3\n")  # of the same size
    assert check(manifest, tmp_path).copies.shapes == 18


def test_equal_files_with_other_files_beside_them_are_no_copies(tmp_path: Path) -> None:
    build_folder(tmp_path)
    manifest = load_manifest(MANIFESTS / "folder.toml")
    assert check(manifest, tmp_path).copies.shapes == 2, "chair/a.obj and sofa/a.obj, whose materials are equal"
    (tmp_path / "sofa" / "a.mtl").write_text("newmtl skin\nKd 0.1 0.2 0.9\n")
    assert check(manifest, tmp_path).copies.shapes == 0
    assert not [line for line in describe(check(manifest, tmp_path)) if "copies" in line]


def test_copies_that_are_kept_together_are_in_one_split(tmp_path: Path) -> None:
    lines = ["path,class,split"]
    for i in range(20):
        (tmp_path / f"{i}.obj").write_text(f"v {i // 2} 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
        lines.append(f"{i}.obj,box,{'train' if i == 0 else ''}")
    (tmp_path / "shapes.csv").write_text("\n".join(lines))
    text = (
        (MANIFESTS / "folder.toml").read_text().replace('layout = "folder"', 'layout = "folder"\nlist = "shapes.csv"')
    )
    (tmp_path / "m.toml").write_text(text.replace("test_fraction = 0.2", "test_fraction = 0.5"))
    manifest = load_manifest(tmp_path / "m.toml")
    assert check(manifest, tmp_path).copies.across_splits > 0
    found = check(manifest.model_copy(update={"split_by": "mesh"}), tmp_path)
    assert (found.copies.shapes, found.copies.across_splits) == (20, 0)
    assert found.splits == {"drawn by mesh": 19, "train": 1}
