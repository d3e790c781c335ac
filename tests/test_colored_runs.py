"""A student of colours from pretraining to every use of it: whatever hands it clouds hands it their colours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.store import FeatureStore
from recon.trainer.data.files import read_shape
from recon.trainer.data.points import farthest_points
from recon.trainer.evaluate.features import load_student
from recon.trainer.model import recon as model
from recon.trainer.use.embedding import describe
from recon.trainer.use.index import unit
from recon.trainer.use.naming import class_vectors
from recon.trainer.use.words import text_space
from tests.probed_run import CPU, train
from tests.serving import serving
from tests.test_docs import succeeds
from tests.test_use import refused

pytestmark = pytest.mark.slow  # whole runs on stores of their own

COLORED = ("model.color=true", "model.color_drop=0.5", "model.default_color=0.3", "model.reconstruction=mdm")
DOWNSTREAM = """
[data]
num_points = 64
normalize = "cloud"
[model]
num_group = 8
group_size = 8
[optim]
epochs = 1
batch_size = 3
warmup_epochs = 0
[run]
precision = "float32"
"""


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with watched() as seen:
        found = train(small_store, tmp_path_factory.mktemp("colored") / "run", *COLORED, "run.probe_every=4")
    assert len(seen) > 4
    return found


@pytest.fixture
def looked_at() -> Iterator[None]:
    """Every cloud that a model takes has colours, which are not the default's alone."""
    with watched() as seen:
        yield
    assert seen


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    box = trimesh.creation.box((1, 2, 3))
    box.visual.face_colors = [255, 0, 0, 255]
    path = tmp_path_factory.mktemp("own") / "red.ply"
    box.export(path)
    return path


class watched:
    """Keeps how many batches of clouds models are given, and refuses those without colours of their own."""

    def __enter__(self) -> list[int]:
        self._cut, seen = model.Student.cut, list[int]()

        def cut(student: model.Student, points: Tensor) -> tuple[Tensor, Tensor]:
            # Those of the default colour are what `color_drop` made of them in training.
            assert points.shape[2] == 6, "a cloud without colours"
            assert student.training or (points[..., 3:] != 0.3).any(), "clouds of the default colour"
            seen.append(len(points))
            return self._cut(student, points)

        model.Student.cut = cut  # type: ignore[method-assign]
        return seen

    def __exit__(self, *_: object) -> None:
        model.Student.cut = self._cut  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "command",
    [
        "svm --run {run} --store {store}",
        "zeroshot --run {run} --store {store}",
        "attention --run {run} --store {store} -o {out}/a.png",
        "reconstruct --run {run} --store {store} -o {out}/r.png",
        "embed {store} --run {run} -o {out}/s.npz",
        "embed {red} --run {run} -o {out}/f.npz",
        "retrieve --run {run} --store {store} --mesh {red}",
    ],
)
@pytest.mark.usefixtures("looked_at")
def test_whatever_looks_at_a_student(command: str, run: Path, small_store: Path, red: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    places = {"run": tmp_path / "run", "store": small_store, "red": red, "out": tmp_path}
    succeeds("recon-train", *command.format(**places).split())


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), [("finetune", "classify"), ("partseg", "segment")])
@pytest.mark.usefixtures("looked_at")
def test_what_is_trained_downstream(command: str, kind: str, run: Path, small_store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "down.toml"
    recipe.write_text(f'[task]\nkind = "{kind}"\n{DOWNSTREAM}')
    out = tmp_path / "out"
    usual = ["--from", str(run), "--store", str(small_store), "--recipe", str(recipe), "--run", str(out)]
    succeeds("recon-train", command, *usual, "--device", "cpu")
    succeeds("recon-train", "test", str(out / "pretrained/seed-0"), "--store", str(small_store), "--votes", "2")


def test_a_file_is_seen_as_the_store_has_its_shape(run: Path, small_store: Path, red: Path, tmp_path: Path) -> None:
    shape = read_shape(red, 64, color=True, default_color=0.3)
    assert shape.points.shape == (64, 6) and "colour" not in shape.what
    np.testing.assert_allclose(shape.points[:, 3:], np.tile([1.0, 0.0, 0.0], (64, 1)))
    np.testing.assert_array_equal(shape.points[:, :3], read_shape(red, 64).points)
    for name in ("plain.ply", "plain.npy"):  # neither a mesh nor a cloud that says no colour has one
        path, box = tmp_path / name, trimesh.creation.box((1, 2, 3))
        if name == "plain.npy":
            np.save(path, box.sample(500, seed=0))
        else:
            box.export(path)
        found = read_shape(path, 64, color=True, default_color=0.3)
        assert (found.points[:, 3:] == np.float32(0.3)).all()
        assert found.told().split(";")[0].endswith(", without colour, so of the grey 0.3")
    points, shades = np.random.default_rng(0).normal(size=(100, 3)), np.tile(np.uint8([0, 255, 0]), (100, 1))
    trimesh.PointCloud(points, colors=shades).export(tmp_path / "green.ply")
    green = read_shape(tmp_path / "green.ply", 64, color=True).points
    np.testing.assert_array_equal(green[:, 3:], np.tile(np.float32([0, 1, 0]), (64, 1)))
    student = load_student(run, CPU)
    without = describe(student, torch.from_numpy(found.points[None, :, :3])).embedding
    np.testing.assert_allclose(describe(student, torch.from_numpy(found.points[None])).embedding, without, atol=1e-5)


def test_colours_say_something_and_places_stay(run: Path, small_store: Path) -> None:
    student, points = load_student(run, CPU), FeatureStore.open(small_store).points()
    clouds = farthest_points(points, np.arange(4), 64, color=True, default_color=0.3)
    grey = describe(student, clouds[..., :3]).embedding
    assert np.abs(describe(student, clouds).embedding - grey).max() > 1e-3
    moved = torch.cat([clouds[..., :3] * 37 + 5, clouds[..., 3:]], dim=2)
    np.testing.assert_allclose(
        describe(student, moved).embedding, describe(student, clouds).embedding, rtol=2e-3, atol=2e-3
    )


# ---- files of one's own, named and sent


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By format a file with colours, and one of the same places without: meshes, and a cloud."""
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    shades = np.tile(np.uint8([[255, 255, 0], [255, 0, 255]]), (4, 1))
    for name in ("mesh.glb", "mesh.ply", "cloud.ply", "cloud.glb"):
        for colored in (True, False):
            shape = trimesh.creation.box((1, 2, 3))
            if colored and name.startswith("mesh"):
                shape.visual.vertex_colors = shades
            if name.startswith("cloud"):
                points = shape.sample(300, seed=0)
                shape = trimesh.PointCloud(points, colors=np.tile(shades, (38, 1))[:300] if colored else None)
            path = folder / ("" if colored else "plain") / name
            path.parent.mkdir(exist_ok=True)
            (trimesh.Scene(shape) if name.endswith(".glb") else shape).export(path)
        found[name] = folder / name, folder / "plain" / name
    return found


def cosines_with(run: Path, store: Path, points: NDArray[np.float32]) -> list[float]:
    """Of a cloud [P, C] with the store's categories."""
    student = load_student(run, CPU)
    probe = student.on(FeatureStore.open(store))
    space, names = text_space(run, probe), probe.split("train+test").categories
    feature = space.feature(describe(student, torch.from_numpy(points)[None]))
    found: list[float] = (class_vectors(run, probe, space, names, None) @ unit(feature)[0]).tolist()
    return found


@pytest.mark.parametrize("name", ["mesh.glb", "mesh.ply", "cloud.ply", "cloud.glb"])
def test_colours_of_a_file_are_named_by(
    name: str, run: Path, small_store: Path, pairs: dict[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    cosines = []
    for path, said in zip(pairs[name], (False, True), strict=True):
        words = ["classify", str(path), "--run", str(run), "--store", str(small_store), "--split", "train+test"]
        succeeds("recon-train", *words, "--json")
        told = json.loads(capsys.readouterr().out)
        assert ("without colour, so of the grey 0.3" in told["taken"]) == said
        found = {each["name"]: each["cosine"] for each in told["classes"]}
        cosines.append([found[category] for category in sorted(found)])
        shape = read_shape(path, 64, color=True, default_color=0.3)
        seen = shape.points.copy()
        if said:  # the declared default, and not what the file's reader fills in
            seen[:, 3:] = 0.3
        np.testing.assert_allclose(cosines[-1], cosines_with(run, small_store, seen), atol=1e-6)
    assert np.abs(np.subtract(*cosines)).max() > 1e-5  # a student of two epochs hardly tells clouds apart


@pytest.mark.parametrize("name", ["mesh.glb", "cloud.ply"])
def test_colours_of_a_file_are_searched_by(
    name: str, run: Path, small_store: Path, clip_config: Path, pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    with serving(tmp_path / "run", small_store, clip_config.parent) as served:
        found = []
        for path, said in zip(pairs[name], (False, True), strict=True):
            status, answer = served.send(name, path.read_bytes())
            assert status == 200 and ("without colour, so of the grey 0.3" in answer["asked"]) == said
            found.append({each["place"]: each["cosine"] for each in answer["found"]})
            shape = read_shape(path, 64, color=True, default_color=0.3)
            student = load_student(run, CPU)
            mine = unit(describe(student, torch.from_numpy(shape.points)[None]).embedding)[0]
            stored = unit(served.collection.index.described.embedding) @ mine
            np.testing.assert_allclose([found[-1][place] for place in range(12)], stored, atol=1e-4)
    assert max(abs(found[0][place] - found[1][place]) for place in range(12)) > 1e-3


COLUMNS = ("x", "y", "z", "r", "g", "b")


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cloud of six columns, nameless and with a comment of their names, and one of three."""
    folder = tmp_path_factory.mktemp("columns")
    points = trimesh.creation.box((1, 2, 3)).sample(300, seed=0)
    rows = np.concatenate([points, np.tile([[255, 255, 0], [255, 0, 255]], (150, 1))], axis=1)
    np.save(folder / "bare.npy", rows)
    np.save(folder / "three.npy", points)
    np.savetxt(folder / "named.xyz", rows, header="x y z r g b")
    return folder


def test_named_columns_are_colours_everywhere(
    run: Path, small_store: Path, clip_config: Path, six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    beside = ["--run", str(tmp_path / "run"), "--store", str(small_store)]
    seen = read_shape(six / "bare.npy", 64, color=True, columns=COLUMNS).points
    own = describe(load_student(run, CPU), torch.from_numpy(seen)[None]).embedding[0]
    named = ["--columns", "x,y,z,r,g,b"]

    def embedded(*words: str) -> tuple[dict[str, NDArray[np.float32]], str]:
        succeeds("recon-train", "embed", *words, *beside[:2], "-o", str(tmp_path / "found.npz"))
        with np.load(tmp_path / "found.npz") as found:
            rows = dict(zip(found["uid"].tolist(), found["embedding"], strict=True))
        return rows, " ".join(capsys.readouterr().err.split())

    rows, told = embedded(str(six / "bare.npy"), *named)
    np.testing.assert_allclose(rows[str(six / "bare.npy")], own, atol=1e-5)
    assert "without colour" not in told
    rows, told = embedded(str(six))
    np.testing.assert_allclose(rows["named.xyz"], own, atol=1e-5)
    np.testing.assert_array_equal(rows["bare.npy"], rows["three.npy"])
    assert np.abs(rows["bare.npy"] - own).max() > 1e-3
    assert "1 of 3 files are without colour (3 further columns have no names: --columns x,y,z,r,g,b gives them)" in told
    assert "1 of 3 files are without colour, so of the grey 0.3" in told

    cosines = []
    for words in (["bare.npy", *named], ["named.xyz"], ["bare.npy"]):
        succeeds("recon-train", "classify", str(six / words[0]), *words[1:], *beside, "--split", "train+test", "--json")
        found = {each["name"]: each["cosine"] for each in json.loads(capsys.readouterr().out)["classes"]}
        cosines.append([found[name] for name in sorted(found)])
    np.testing.assert_allclose(cosines[0], cosines_with(run, small_store, seen), atol=1e-6)
    np.testing.assert_allclose(cosines[1], cosines[0], atol=1e-6)
    assert np.abs(np.subtract(cosines[2], cosines[0])).max() > 1e-5

    answers = []
    for words in (["bare.npy", *named], ["bare.npy"]):
        succeeds("recon-train", "retrieve", "--mesh", str(six / words[0]), *words[1:], *beside, "--json")
        answers.append(json.loads(capsys.readouterr().out)["found"])
    assert answers[0] != answers[1]

    with serving(tmp_path / "run", small_store, clip_config.parent) as served:
        sent = [served.send(name, (six / name).read_bytes())[1] for name in ("bare.npy", "named.xyz")]
        assert "3 further columns have no names" in sent[0]["asked"] and "without" not in sent[1]["asked"]
        served.collection.columns = COLUMNS
        again = served.send("bare.npy", (six / "bare.npy").read_bytes())[1]
        assert again["found"] == sent[1]["found"] != sent[0]["found"]
        status, other = served.send("three.npy", (six / "three.npy").read_bytes())
        assert status == 400 and "three.npy: holds 3 columns, and 6 are named" in other["error"]


@pytest.mark.parametrize(
    "command",
    [
        "embed {out}/a.npy -o {out}/a.npz",
        "classify {out}/a.npy --store {store}",
        "retrieve --mesh {out}/a.npy --store {store}",
        "serve --store {store}",
    ],
)
def test_columns_that_name_no_cloud_are_a_line(
    command: str, run: Path, small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(100, 6)))
    words = command.format(out=tmp_path, store=small_store).split()
    told = refused(capsys, *words, "--run", str(run), "--columns", "x,y,r,g,b")
    assert told.startswith("error: --columns x,y,r,g,b: name every column of the files")
