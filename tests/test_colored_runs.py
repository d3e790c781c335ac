"""A student of colours from pretraining to every use of it: whatever hands it clouds hands it their colours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from recon.pipeline.store import FeatureStore
from recon.trainer.data.files import read_shape
from recon.trainer.data.points import farthest_points
from recon.trainer.evaluate.features import load_student
from recon.trainer.model import recon as model
from recon.trainer.use.embedding import describe
from tests.probed_run import CPU, train
from tests.test_docs import succeeds

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
