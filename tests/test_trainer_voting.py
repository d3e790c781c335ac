"""`recon-train test`: a run's and a file's weights on a store, and voting against a slow loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.data.transforms import random_bits, random_uniform, stream
from recon.trainer.evaluate.downstream import read_examples
from recon.trainer.evaluate.voting import _farthest, vote, voted_points
from recon.trainer.model.heads import Classifier
from recon.trainer.recipe import load_config
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import CPU, QUIET
from tests.test_trainer_transfer import RECIPE

pytestmark = pytest.mark.slow  # runs are trained


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def place(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a fine-tuned run of the release's shape; for reading only."""
    folder = tmp_path_factory.mktemp("voting")
    (folder / "tiny.toml").write_text(tiny.RECIPE.replace("width = 12\nheads = 3", "width = 64\nheads = 1"))
    assert pretrain(QUIET, store, folder / "pre", str(folder / "tiny.toml")) == 0
    (folder / "down.toml").write_text(RECIPE + "\n[model]\nnum_group = 8\ngroup_size = 8\n")
    with pytest.MonkeyPatch.context() as patch:
        usual = ["--store", str(store), "--from", str(folder / "pre"), "--recipe", str(folder / "down.toml")]
        assert run_main(patch, "finetune", *usual, "--run", str(folder / "out")) == 0
        run = folder / "out" / "pretrained" / "seed-0"
        assert run_main(patch, "export", str(run), "-o", str(folder / "released.pth")) == 0
    return folder


Call = Callable[..., int]


@pytest.fixture
def test_command(store: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    def call(source: Path, *more: str, where: Path = store) -> int:
        return run_main(monkeypatch, "test", str(source), "--store", str(where), "--device", "cpu", *more)

    return call


def test_a_run_tested_again_is_what_it_was(place: Path, test_command: Call, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "out" / "pretrained" / "seed-0"
    assert test_command(run, "--votes", "3", "--repeats", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    before = result_of(run, "full")
    assert (found["accuracy"], found["confusion"]) == (before["accuracy"], before["confusion"])
    assert found["checkpoint"] == before["checkpoint"]
    assert found["voting"]["accuracy"]["n"] == 2 and found == result_of(run, "full_3votes_2times_64points")
    assert test_command(run, "--votes", "3", "--repeats", "2") == 0
    shown = capsys.readouterr().out
    assert "accuracy, 3 votes" in shown and "best, chosen on this split" in shown


def test_votes_are_those_of_a_loop(place: Path, store: Path) -> None:
    run = place / "out" / "pretrained" / "seed-0"
    config = load_config(str(place / "down.toml"), ["data.rotate=true"]).data
    opened = FeatureStore.open(store)
    model = load_model(run)
    assert isinstance(model, Classifier)
    examples = read_examples(opened, opened.ref(), config, "test")
    found = vote(model, examples, config, seed=3, votes=2, repeats=2, device=CPU)
    stored = opened.points()
    for repetition in (0, 1):
        right = []
        for row, category in zip(examples.data.row, examples.data.category, strict=True):
            total = torch.zeros(1, 3)
            xyz = np.asarray(stored.xyz[row])[np.asarray(stored.order[row])[: math.ceil(64 * 1200 / 1024)]]
            center = np.asarray(stored.xyz[row]).mean(axis=0, dtype=np.float64)
            radius = np.linalg.norm(np.asarray(stored.xyz[row]) - center, axis=1).max()
            cloud = ((xyz - center.astype(np.float32)) / np.float32(radius)).astype(np.float32)

            def bits(name: str, count: Any, repetition: int = repetition, number: int = 0) -> torch.Tensor:
                return random_bits(stream(3, f"vote {name}", repetition, number), count)

            for number in (0, 1):
                counter = torch.tensor([row])
                key = bits("points", counter, number=number)
                order = random_bits(key[:, None], torch.arange(len(cloud))).topk(64).indices[0].numpy()
                angle = 2 * math.pi * random_uniform(bits("angle", counter, number=number)).item()
                x, y, z = cloud[order].T
                turned = np.stack(
                    [math.cos(angle) * x + math.sin(angle) * z, y, math.cos(angle) * z - math.sin(angle) * x]
                )
                factor = [
                    0.8 + 0.45 * random_uniform(bits(f"scale {axis}", counter, number=number)).item() for axis in "xyz"
                ]
                points = torch.tensor(turned.T * np.array(factor), dtype=torch.float32)[None]
                with torch.inference_mode():
                    total += model(points)
            right.append(total.argmax().item() == category)
        assert found["accuracy"]["values"][str(repetition)] == np.mean(right)


def test_votes_depend_on_the_row_alone(place: Path, store: Path) -> None:
    config = load_config(str(place / "down.toml"), ["data.rotate=true"]).data
    opened = FeatureStore.open(store)
    examples = read_examples(opened, opened.ref(), config, "train")
    far, rows = _farthest(examples, config), examples.data.row
    whole = voted_points(far, rows, config, 0, 1, 2)
    assert torch.equal(voted_points(far[5:7], rows[5:7], config, 0, 1, 2), whole[5:7])
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(voted_points(far, rows, config, *other), whole)


def test_a_file_of_the_release_gives_the_run_s_numbers(
    place: Path, test_command: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = ["--recipe", str(place / "down.toml"), "--json"]
    assert test_command(place / "released.pth", *more, "-o", str(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    before = result_of(place / "out" / "pretrained" / "seed-0", "full")
    assert found["confusion"] == before["confusion"] and found["selection"] == "unknown"
    assert result_of(tmp_path, "classify_tested_*") == found
    # Outputs in another order are other classes.
    assert test_command(place / "released.pth", *more, "--classes", "table,lamp,chair", "-o", str(tmp_path)) == 0
    turned = json.loads(capsys.readouterr().out)["confusion"]
    assert [row[::-1] for row in turned] == before["confusion"]
    # What no weight tells is taken from --set too, not from a recipe alone.
    more = ["--set", "data.num_points=64", "--set", "data.pool=0", "--set", "model.num_group=8"]
    assert test_command(place / "released.pth", *more, "--set", "model.group_size=97", "-o", str(tmp_path)) == 1
    told = capsys.readouterr().err
    assert "97" in told and told.count("\n") == 1
    assert (
        test_command(place / "released.pth", *more, "--set", "model.group_size=8", "-o", str(tmp_path), "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["confusion"] == before["confusion"]


def test_what_does_not_fit_is_named(
    place: Path, test_command: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "out" / "pretrained" / "seed-0"
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "CATEGORIES", ("chair", "mug", "table"))
        other = tiny.make_store(tmp_path / "other.zarr").path
    recipe, out = ["--recipe", str(place / "down.toml")], ["-o", str(tmp_path / "out")]
    for source, more, where, said in (
        (run, [], other, "its head knows no mug; it knows chair, lamp, table"),
        (place / "pre", [], other, "a pretrained model without a head"),
        (run, recipe, other, "leave out --recipe, --classes, --set and --output"),
        (place / "released.pth", [*recipe, "--classes", "a,b", *out], other, "its head has 3 outputs, and 2 classes"),
        (place / "released.pth", recipe, other, "a checkpoint file keeps no results; name a folder for them with -o"),
        (place / "released.pth", [*recipe, "-o", str(place / "pre")], other, "is a run's folder"),
        (run, ["--set", "data.normalize=none"], other, "leave out --recipe, --classes, --set and --output"),
        (run, ["--split", "val"], other, "has no split 'val'"),
    ):
        assert test_command(source, *more, where=where) == 1
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
