"""Frozen features and the SVM on a real store and a real, if short, run: against plain numpy, and what they refuse."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.dataset import load_dataset
from recon.trainer.evaluate import features
from recon.trainer.evaluate.features import Probe, confusion, encode, newest_checkpoint, random_points, spare_points
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.evaluate.svm import fit_predict, run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.recipe import load_config
from recon.trainer.training.loop import Trainer
from tests import trainer_store as tiny
from tests.probed_run import CPU, MEASURED, OVERRIDES, assert_confusions, farthest, refusal, train
from tests.results_files import result_of

pytestmark = pytest.mark.slow  # whole stores are made


def test_farthest_points_are_the_definitions(tmp_path: Path) -> None:
    # Rows of four shards, some left out, so that a lost, repeated or shifted block shows.
    store = tiny.make_store(tmp_path / "tiny.zarr")
    data = load_labelled(store, store.ref(), "train")
    assert data.row.tolist() == [row for row in range(30) if row % 5 != 4]  # whether or not they have image targets
    assert data.category.tolist() == [row % 3 for row in data.row]
    found = data.farthest_points(7)
    np.testing.assert_array_equal(found, farthest(data, 7))
    assert torch.equal(data.farthest_points(96)[:, :7], found)
    with pytest.raises(UserError, match=r"data\.num_points: 97 asked for, the store holds 96"):
        data.farthest_points(97)


def test_random_points_are_a_row_s_own(probe: Probe) -> None:
    config = replace(probe.config, data=replace(probe.config.data, num_points=20))
    clouds = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 24, 3)).astype(np.float32))
    rows = np.arange(5, 9)
    drawn = random_points(clouds, rows, config)
    for cloud, subset in zip(clouds.tolist(), drawn.tolist(), strict=True):
        assert len({tuple(point) for point in subset}) == 20  # without replacement
        assert all(point in cloud for point in subset)
    # What a row is given depends on its number in the store, not on which rows are measured with it.
    assert torch.equal(random_points(clouds[3:], rows[3:], config), drawn[3:])
    other = replace(config, run=replace(config.run, seed=config.run.seed + 1))
    assert not torch.equal(random_points(clouds, rows, other), drawn)


def test_spare_points_are_the_release_s(probe: Probe) -> None:
    config = replace(probe.config, data=replace(probe.config.data, num_points=1024))
    assert spare_points(config, 8192) == 1200
    assert spare_points(config, 1100) == 1100  # a store that holds fewer


def test_random_init_is_what_the_run_started_from(probe: Probe, small_store: Path, tmp_path: Path) -> None:
    config = load_config("demo", OVERRIDES)
    data = load_dataset(FeatureStore.open(small_store), config.data)
    start = Trainer(config, data, tmp_path, CPU).model.state_dict()
    found = probe.random_init.state_dict()
    assert found.keys() == start.keys() and all(torch.equal(found[name], start[name]) for name in start)
    student = probe.student.state_dict()
    assert not torch.equal(student["teachers.0.projection.weight"], start["teachers.0.projection.weight"])


@pytest.mark.parametrize("name", ["svm_feature", "zero_shot_feature"])
def test_features_do_not_depend_on_the_batch(
    name: str, probe: Probe, testing: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(probe.student, name)
    points = testing.farthest_points(64)
    whole = encode(function, points, CPU)
    assert whole.shape[0] == len(testing) == 3
    monkeypatch.setattr(features, "BATCH", 2)
    np.testing.assert_allclose(encode(function, points, CPU), whole, rtol=1e-4, atol=1e-6)
    # Where a cloud lies and how large it is says nothing: points are normalised on the way in.
    np.testing.assert_allclose(encode(function, points * 4 + 1, CPU), whole, rtol=1e-3, atol=1e-4)


def test_probes_write_nothing_into_the_store(own_run: Path, small_store: Path, tmp_path: Path) -> None:
    # They read the shards: no copy of a whole data set for what is looked at once.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own, ignore=shutil.ignore_patterns("cache"))
    before = set(own.rglob("*"))
    run_svm(own_run, own, CPU)
    run_zero_shot(own_run, own, CPU)
    assert set(own.rglob("*")) == before


def test_fit_predict_separates_what_can_be() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    centers = np.eye(3, 5) * 10
    cloud = (centers[labels] + rng.normal(size=(90, 5))).astype(np.float32)
    np.testing.assert_array_equal(fit_predict(cloud[:60], labels[:60], cloud[60:]), labels[60:])
    # Labels dealt anew cannot be learnt: the probe does not see the answers.
    dealt = rng.permutation(labels[:60])
    assert np.mean(fit_predict(cloud[:60], dealt, cloud[60:]) == labels[60:]) < 0.9


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_confusion_counts_every_shape_once(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    counts = confusion(truth, predicted, 5)
    assert [[pairs.count((row, column)) for column in range(5)] for row in range(5)] == counts


def test_svm_leaves_its_result(own_run: Path, small_store: Path) -> None:
    result = run_svm(own_run, small_store, CPU)
    assert result_of(own_run, "svm") == result
    again = run_svm(own_run, small_store, CPU)
    assert {k: v for k, v in again.items() if k not in MEASURED} == {
        k: v for k, v in result.items() if k not in MEASURED
    }
    assert (result["num_train"], result["num_test"], result["seed"], result["num_points"]) == (9, 3, 3, 64)
    assert_confusions(result, small_store, {"": "svm_accuracy", "_random_init": "svm_accuracy_random_init"})
    assert result["checkpoint"] == newest_checkpoint(own_run) and result["checkpoint"]["step"] == 4


def test_svm_s_numbers_are_those_of_its_parts(own_run: Path, probe: Probe, small_store: Path) -> None:
    train_split, testing = probe.split("train"), probe.split("test")
    # By hand from the store's own points: the definition of FPS, the model, scikit-learn.
    found = []
    for data in (train_split, testing):
        clouds = torch.from_numpy(farthest(data, 64))
        centered = clouds - clouds.mean(dim=1, keepdim=True)
        with torch.no_grad():
            found.append(probe.student.svm_feature(centered / centered.norm(dim=2).amax(dim=1)[:, None, None]).numpy())
    predicted = fit_predict(found[0], train_split.category, found[1])
    expected = confusion(testing.category, predicted, 3)
    assert run_svm(own_run, small_store, CPU)["confusion"] == expected


@pytest.mark.parametrize("function", [run_svm, run_zero_shot])
def test_missing_inputs_are_named(function: Any, own_run: Path, small_store: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert str(none) in refusal(function, own_run, none)
    assert f"--run {none}" in refusal(function, none, small_store)
    (own_run / "checkpoints" / "last.json").write_text("{}")
    assert "last.json" in refusal(function, own_run, small_store)
    shutil.rmtree(own_run / "checkpoints")
    assert f"--run {own_run}: has no checkpoint" in refusal(function, own_run, small_store)
    assert not list(own_run.glob("results/*"))


def test_a_file_s_results_need_a_folder(probed_run: Path, small_store: Path) -> None:
    (weights,) = (probed_run / "checkpoints").glob("step-????????.safetensors")
    assert "name a folder for them with -o FOLDER" in refusal(run_svm, weights, small_store)


def test_svm_needs_two_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "CATEGORIES", ("chair", "chair", "chair"))
    store = tiny.make_store(tmp_path / "tiny.zarr").path
    assert "one category" in refusal(run_svm, train(store, tmp_path / "run"), store)
