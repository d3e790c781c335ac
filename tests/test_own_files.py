"""People's own files as a student takes them: which there are, their axes, their points, and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.trainer.data.files import axes_of, columns_of, find_files, own_picture, read_shape
from recon.trainer.evaluate.features import load_student
from recon.trainer.use.embedding import describe
from tests.probed_run import CPU


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "box.ply"
    trimesh.creation.box((1, 2, 3)).export(path)
    return path


def test_a_mesh_and_its_points_are_one_shape(box: Path, tmp_path: Path, probed_run: Path) -> None:
    mesh = read_shape(box, 64)
    np.save(tmp_path / "box.npy", trimesh.load(box).sample(5000))
    cloud = read_shape(tmp_path / "box.npy", 64)
    assert (mesh.what, cloud.what) == ("a mesh of 12 faces", "a cloud of 5000 points")
    assert mesh.extent == pytest.approx(3, rel=1e-3) and mesh.points.shape == (64, 3)
    student = load_student(probed_run, CPU)
    found = [describe(student, torch.from_numpy(each.points)[None]).embedding[0] for each in (mesh, cloud)]
    assert found[0] @ found[1] / np.linalg.norm(found[0]) / np.linalg.norm(found[1]) > 0.99


def test_a_ply_of_points_is_a_cloud_and_few_points_are_repeated(tmp_path: Path) -> None:
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(20, 3))).export(tmp_path / "a.ply")
    shape = read_shape(tmp_path / "a.ply", 64)
    assert shape.what == "a cloud of 20 points, some repeated to make 64"
    assert shape.points.shape == (64, 3) and len(np.unique(shape.points[:20], axis=0)) == 20


@pytest.mark.parametrize(
    ("suffix", "up", "front", "expected", "why"),
    [
        (".glb", None, None, ("+Y", "+Z"), "as GLB files have it"),
        (".las", None, None, ("+Z", "-Y"), "as LAS files have it"),
        (".ply", None, None, ("+Y", "+Z"), "a guess, as PLY files do not say"),
        (".ply", "z", None, ("+Z", "-Y"), "as asked"),
        (".ply", "-z", "x", ("-Z", "+X"), "as asked"),
        (".glb", "X", None, ("+X", "+Z"), "as asked"),
    ],
)
def test_axes_are_known_or_said_to_be_guessed(
    suffix: str, up: str | None, front: str | None, expected: tuple[str, str], why: str
) -> None:
    found = axes_of(suffix, up, front)
    assert (found.up, found.front) == expected and why in found.told()


@pytest.mark.parametrize(("up", "front"), [("w", None), ("", None), ("yy", None), ("y", "y"), ("y", "q")])
def test_what_is_no_axis(up: str, front: str | None) -> None:
    with pytest.raises(UserError, match=r"^--up or --front: "):
        axes_of(".ply", up, front)


def test_a_turned_mesh_is_set_upright(box: Path, tmp_path: Path) -> None:
    mesh = trimesh.load(box)
    mesh.apply_transform([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # as Blender has it
    mesh.export(tmp_path / "turned.ply")
    upright, turned = read_shape(box, 64).points, read_shape(tmp_path / "turned.ply", 64, "z").points
    np.testing.assert_allclose(np.ptp(upright, axis=0), np.ptp(turned, axis=0), atol=0.05)
    np.testing.assert_allclose(np.ptp(turned, axis=0), [1, 2, 3], atol=0.1)


def test_folders_are_walked(tmp_path: Path) -> None:
    for name in ("b/c.obj", "a.ply", "b/notes.md", "b/licence.txt", ".git/e.ply", "d.NPY"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in find_files([tmp_path])] == ["a.ply", "b/c.obj", "d.NPY"]
    assert find_files([tmp_path / "a.ply"]) == [(str(tmp_path / "a.ply"), tmp_path / "a.ply")]
    with pytest.raises(UserError, match=r"none\.ply: no such file"):
        find_files([tmp_path / "none.ply"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file in it that is read"):
        find_files([tmp_path / "empty"])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.ply").touch()
    with pytest.raises(UserError, match=r"a\.ply: of one name in two of the paths"):
        find_files([tmp_path / "e", tmp_path])


def test_pictures_come_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = own_picture(tmp_path / "a.png")
    assert found.shape == (4, 5, 3) and found[0, 0].tolist() == [10, 20, 30] and found[1, 1].tolist() == [255] * 3
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(UserError, match=r"b\.png: no whole picture"):
        own_picture(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"c\.png: cannot be read: No such file"):
        own_picture(tmp_path / "c.png")


def test_columns_as_they_are_asked_for() -> None:
    assert columns_of(None) == ()
    assert columns_of("x,y,z") == ("x", "y", "z")
    assert columns_of(" X, y ,z,nx,ny,nz,Red,green,blue") == ("x", "y", "z", "nx", "ny", "nz", "r", "g", "b")


def test_columns_of_a_format_that_names_its_own_are_told(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "a.ply")
    names = columns_of("x,y,z,r,g,b")
    assert read_shape(tmp_path / "a.ply", 64).told().startswith("a mesh of 12 faces; ")
    told = read_shape(tmp_path / "a.ply", 64, columns=names).told()
    assert told.startswith("a mesh of 12 faces, of whose format --columns says nothing; ")


@pytest.mark.parametrize("given", ["", "x,y", "xyzrgb", "x,y,z,r,g", "x,y,z,r,g,b,r", "x,x,z"])
def test_columns_that_name_no_cloud(given: str) -> None:
    with pytest.raises(UserError, match=rf"^--columns {given}: name every column of the files, x, y and z among them"):
        columns_of(given)


def test_a_cloud_of_six_columns_says_what_it_lacks(tmp_path: Path) -> None:
    rows = np.concatenate([np.random.default_rng(0).normal(size=(100, 3)), np.full((100, 3), [255, 0, 51])], axis=1)
    np.save(tmp_path / "a.npy", rows)
    said = "a cloud of 100 points, without colour (3 further columns have no names: --columns x,y,z,r,g,b gives them)"
    plain = read_shape(tmp_path / "a.npy", 64, color=True, default_color=0.3)
    assert plain.told().startswith(f"{said}, so of the grey 0.3; +Y is up")
    assert (plain.points[:, 3:] == np.float32(0.3)).all()
    assert read_shape(tmp_path / "a.npy", 64).told().startswith("a cloud of 100 points; +Y is up")
    named = read_shape(tmp_path / "a.npy", 64, color=True, columns=columns_of("x,y,z,r,g,b"))
    assert named.told().startswith("a cloud of 100 points; +Y is up") and named.lacking == ""
    np.testing.assert_allclose(named.points[:, 3:], np.tile([1, 0, 0.2], (64, 1)), atol=0.01)
    np.testing.assert_array_equal(named.points[:, :3], plain.points[:, :3])
