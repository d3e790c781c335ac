"""The probes on a real store and a real, if short, run: against plain numpy, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.spaces import one_space
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.transforms import normalize
from recon.trainer.evaluate import features
from recon.trainer.evaluate.features import (
    Probe,
    confusion,
    encode,
    load_probe,
    newest_checkpoint,
    random_points,
    spare_points,
)
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.evaluate.svm import fit_predict, run_svm
from recon.trainer.evaluate.zero_shot import class_embeddings, classify, run_zero_shot, teacher_feature
from recon.trainer.model.recon import ReCon
from recon.trainer.recipe import load_config
from recon.trainer.training.loop import Trainer
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of

pytestmark = pytest.mark.slow  # whole stores are made

CPU = torch.device("cpu")
OVERRIDES = [
    "model.width=12", "model.heads=3", "model.depth=2", "model.decoder_depth=1", "model.num_group=8",
    "model.group_size=8", "data.num_points=64", "optim.epochs=2", "optim.batch_size=4", "optim.warmup_epochs=1",
    "run.log_every=2", "run.seed=3",
]  # fmt: skip
MEASURED = {"seconds", "peak_memory_gb"}


def train(store: Path, run: Path, *overrides: str) -> Path:
    """Two epochs of a tiny model; returns `run`."""
    assert pretrain(Console(quiet=True), store, run, "demo", [*OVERRIDES, *overrides], device="cpu") == 0
    return run


@pytest.fixture(scope="module")
def trained(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `small_store`; for reading only."""
    return train(small_store, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to write to."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def probe(trained: Path, small_store: Path) -> Probe:
    return load_probe(trained, small_store, CPU)


@pytest.fixture(scope="module")
def testing(probe: Probe) -> Labelled:
    return probe.split("test")


def farthest(data: Labelled, count: int) -> NDArray[np.float32]:
    """Farthest point sampling by its definition, every distance computed anew, from where the stored order begins:
    [N, count, 3].
    """
    clouds, starts = np.asarray(data.points.xyz[:])[data.row], np.asarray(data.points.order[:])[data.row, 0]
    found = []
    for cloud, start in zip(clouds, starts.tolist(), strict=True):
        chosen = [start]
        while len(chosen) < count:
            gaps = np.linalg.norm(cloud[:, None].astype(np.float64) - cloud[chosen].astype(np.float64), axis=2)
            chosen.append(int(gaps.min(axis=1).argmax()))
        found.append(cloud[chosen])
    return np.stack(found)


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


def test_probes_write_nothing_into_the_store(run: Path, small_store: Path, tmp_path: Path) -> None:
    # They read the shards: no copy of a whole data set for what is looked at once.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own, ignore=shutil.ignore_patterns("cache"))
    before = set(own.rglob("*"))
    run_svm(run, own, CPU)
    run_zero_shot(run, own, CPU)
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


def test_class_embeddings_and_teacher_feature_in_numpy(probe: Probe, testing: Labelled) -> None:
    store = probe.store
    ref = store.ref()
    text, targets = store.text(ref=ref), store.targets(ref=ref)
    expected = np.zeros((len(store.registry.categories), text.feat.shape[1]), np.float32)
    for category, rows in enumerate(text.class_prompts):
        assert len(set(rows.tolist())) == 60
        for row in rows:
            expected[category] += text.feat[row].astype(np.float32)
    np.testing.assert_allclose(class_embeddings(text, testing.numbers), expected, rtol=1e-4, atol=1e-4)
    # A data set that shares the store with others is offered its own classes only.
    np.testing.assert_allclose(class_embeddings(text, np.array([2, 0])), expected[[2, 0]], rtol=1e-4, atol=1e-4)

    rows = [row for row, split in enumerate(store.registry.split) if split == "test"]
    clean = np.asarray(targets.feat[0])[rows].astype(np.float32)
    directions = clean / np.linalg.norm(clean, axis=2, keepdims=True)
    assert testing.row.tolist() == rows
    np.testing.assert_allclose(teacher_feature(targets, testing.row), directions.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_classify_takes_the_highest_cosine() -> None:
    rng = np.random.default_rng(2)
    points, classes = rng.normal(size=(20, 6)), rng.normal(size=(4, 6))
    classes *= np.array([[1], [50], [0.1], [3]])  # lengths, which must not count
    cosine = [[p @ c / np.linalg.norm(p) / np.linalg.norm(c) for c in classes] for p in points]
    np.testing.assert_array_equal(
        classify(torch.from_numpy(points), torch.from_numpy(classes)), np.argmax(cosine, axis=1)
    )


def test_svm_leaves_its_result(run: Path, small_store: Path) -> None:
    result = run_svm(run, small_store, CPU)
    assert result_of(run, "svm") == result
    again = run_svm(run, small_store, CPU)
    assert {k: v for k, v in again.items() if k not in MEASURED} == {
        k: v for k, v in result.items() if k not in MEASURED
    }
    assert (result["num_train"], result["num_test"], result["seed"], result["num_points"]) == (9, 3, 3, 64)
    assert_confusions(result, small_store, {"": "svm_accuracy", "_random_init": "svm_accuracy_random_init"})
    assert result["checkpoint"] == newest_checkpoint(run) and result["checkpoint"]["step"] == 4


def test_svm_s_numbers_are_those_of_its_parts(run: Path, probe: Probe, small_store: Path) -> None:
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
    assert run_svm(run, small_store, CPU)["confusion"] == expected


def test_zero_shot_leaves_its_result(run: Path, probe: Probe, small_store: Path, testing: Labelled) -> None:
    result = run_zero_shot(run, small_store, CPU)
    assert result_of(run, "zeroshot") == result
    again = run_zero_shot(run, small_store, CPU)
    assert {k: v for k, v in again.items() if k not in MEASURED} == {
        k: v for k, v in result.items() if k not in MEASURED
    }
    assert result["num_test"] == 3 and result["chance"] == pytest.approx(1 / 3)
    names = {"": "zero_shot_accuracy", "_random_init": "zero_shot_accuracy_random_init"}
    assert_confusions(result, small_store, names | {"_teacher": "teacher_zero_shot_accuracy"})
    targets, text = probe.store.targets(), probe.store.text()
    expected = classify(teacher_feature(targets, testing.row), class_embeddings(text, testing.numbers))
    assert result["confusion_teacher"] == confusion(testing.category, expected, 3)
    assert result["num_test_teacher"] == 3


def test_zero_shot_s_features_are_those_of_its_parts(
    run: Path, probe: Probe, small_store: Path, testing: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A barely trained student may call everything by one name, so what is compared is what it is judged by.
    seen = []

    def recorded(*arguments: Any) -> NDArray[np.float32]:
        seen.append(encode(*arguments))
        return seen[-1]

    monkeypatch.setattr("recon.trainer.evaluate.zero_shot.encode", recorded)
    run_zero_shot(run, small_store, CPU)
    assert len(seen) == 2
    spare = torch.from_numpy(farthest(testing, 75))  # 64 x 1200 / 1024
    clouds = random_points(spare, testing.row, probe.config)
    centered = clouds - clouds.mean(dim=1, keepdim=True)
    unit = centered / centered.norm(dim=2).amax(dim=1)[:, None, None]
    for found, student in zip(seen, (probe.student, probe.random_init), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(found, student.zero_shot_feature(unit), rtol=1e-4, atol=1e-6)


def assert_confusions(result: dict[str, Any], store: Path, names: dict[str, str]) -> None:
    """Every matrix holds each test shape once in its true class's row, and its diagonal is the accuracy."""
    registry = FeatureStore.open(store).registry
    truth = [c for c, split in zip(registry.category, registry.split, strict=True) if split == "test"]
    assert result["categories"] == registry.categories
    for suffix, name in names.items():
        counts = np.array(result[f"confusion{suffix}"])
        np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(truth, minlength=3))
        assert result[name] == pytest.approx(np.trace(counts) / len(truth))


def test_chance_counts_classes_without_a_test_shape(
    run: Path, small_store: Path, testing: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A guess is among all classes offered, whether or not a shape of each is there to be recognised.
    one = testing.category == testing.category[0]
    part = replace(testing, category=testing.category[one], row=testing.row[one])
    monkeypatch.setattr(Probe, "split", lambda self, name: part)
    assert run_zero_shot(run, small_store, CPU)["chance"] == pytest.approx(1 / 3)


def refusal(function: Any, *arguments: Any) -> str:
    """The one line `function` refuses with."""
    with pytest.raises(UserError) as refused:
        function(*arguments, CPU)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("function", [run_svm, run_zero_shot])
def test_missing_inputs_are_named(function: Any, run: Path, small_store: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert str(none) in refusal(function, run, none)
    assert f"--run {none}" in refusal(function, none, small_store)
    (run / "checkpoints" / "last.json").write_text("{}")
    assert "last.json" in refusal(function, run, small_store)
    shutil.rmtree(run / "checkpoints")
    assert f"--run {run}: has no checkpoint" in refusal(function, run, small_store)
    # A checkpoint's file is a student too, but there is no folder to leave a result in.
    assert not list(run.glob("results/*"))


def test_checkpoint_file_is_no_run(trained: Path, small_store: Path) -> None:
    (weights,) = (trained / "checkpoints").glob("step-????????.safetensors")
    assert "no run there" in refusal(run_svm, weights, small_store)


def test_svm_needs_two_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "CATEGORIES", ("chair", "chair", "chair"))
    store = tiny.make_store(tmp_path / "tiny.zarr").path
    assert "one category" in refusal(run_svm, train(store, tmp_path / "run"), store)


@pytest.mark.parametrize("change", [{"words": "other"}, {"words": None}, {"tap": "cls"}])
def test_zero_shot_needs_a_student_of_one_space(change: dict[str, str], run: Path, small_store: Path) -> None:
    # As many dimensions, other weights or another layer: spaces that only look alike.
    edit_record(run, lambda data: data["teachers"]["image"]["recipe"].update(change))
    told = refusal(run_zero_shot, run, small_store)
    assert "'tiny'" in told and "not two towers of one CLIP" in told
    assert not (run / "results").exists()


CLIP = {"kind": "open_clip", "weights": "a", "words": "b", "tap": "pooled"}


@pytest.mark.parametrize(
    ("seeing", "reading", "shared"),
    [
        (CLIP, {"weights": "b"}, True),
        (CLIP, {"weights": "a"}, False),
        (CLIP | {"tap": "patch_mean"}, {"weights": "b"}, False),
        ({"kind": "timm", "weights": "b", "tap": "pooled"}, {"weights": "b"}, False),
        ({"tap": "pooled"}, {}, False),  # two who both say nothing do not agree
        ({"kind": "stored", "dim": 8}, {"weights": "b"}, True),
    ],
)
def test_which_teachers_share_a_space(seeing: dict[str, str], reading: dict[str, str], shared: bool) -> None:
    assert one_space(seeing, reading, 8, 8) == shared
    if seeing.get("kind") == "stored":  # features that came with a data set: their widths are all there is to compare
        assert not one_space(seeing, reading, 8, 4)


def test_zero_shot_of_a_run_that_does_not_say_its_teachers(run: Path, small_store: Path) -> None:
    edit_record(run, lambda data: data["teachers"]["image"].pop("recipe"))
    assert f"{run / 'config.json'}: of an older version" in refusal(run_zero_shot, run, small_store)


def test_zero_shot_needs_the_words_the_student_learnt(run: Path, small_store: Path) -> None:
    held = FeatureStore.open(small_store).ref().text["tiny"]
    edit_record(run, lambda data: data["teachers"]["text"].update(key="another", teacher="big"))
    told = refusal(run_zero_shot, run, small_store)
    assert "'big' (another)" in told and f"it has tiny ({held})" in told and "recon-pipeline features" in told
    run_svm(run, small_store, CPU)  # which reads no words


def test_the_learnt_words_are_found_under_any_name(run: Path, small_store: Path, tmp_path: Path) -> None:
    # Manifests call their teachers what they like: what counts is what the teacher is.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own)
    path = own / "refs" / "small.json"
    ref = json.loads(path.read_text())
    ref["text"] = {"first": ref["keys"]["points"], "renamed": ref["text"]["tiny"]}
    path.write_text(json.dumps(ref))
    expected = run_zero_shot(run, small_store, CPU)
    assert run_zero_shot(run, own, CPU)["zero_shot_accuracy"] == expected["zero_shot_accuracy"]


def test_a_teacher_of_another_space_is_left_out(run: Path, small_store: Path, tmp_path: Path) -> None:
    # The student is judged all the same: what it learnt from lies in its record, not in this store.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own)
    store = FeatureStore.open(own, write=True)
    key = store.targets().key
    recipe = store.recipe("targets", key)
    store.kind_group("targets", key).attrs["recipe"] = recipe | {"teacher": recipe["teacher"] | {"words": "other"}}
    result, whole = run_zero_shot(run, own, CPU), run_zero_shot(run, small_store, CPU)
    assert not {"teacher_zero_shot_accuracy", "confusion_teacher", "num_test_teacher"} & result.keys()
    assert list(result["digests"]) == ["points", "text"] and list(whole["digests"]) == ["points", "text", "image"]
    assert result["confusion"] == whole["confusion"]


def edit_record(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a run says of its data."""
    record = json.loads((run / "config.json").read_text())
    change(record["data"])
    (run / "config.json").write_text(json.dumps(record))


def test_zero_shot_by_one_prompt_and_another_mix(run: Path, small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    ensemble = run_zero_shot(run, small_store, CPU)
    templates, text = store.ref().templates, store.text()
    alone = run_zero_shot(run, small_store, CPU, prompt=templates[3], text_weight=1.0)
    assert alone["variant"] == f"the one prompt {templates[3]!r}, text weight 1"
    student, config = read_model(run)
    assert isinstance(student, ReCon)
    data = load_labelled(store, store.ref(), "test")
    far = data.farthest_points(spare_points(config, data.num_stored))
    points = normalize(random_points(far, data.row, config))
    with torch.inference_mode():
        feature = student.zero_shot_feature(points, text_weight=1.0)
    words = torch.from_numpy(text.feat[text.class_prompts[data.numbers][:, 3]].astype(np.float32))
    named = torch.nn.functional.cosine_similarity(feature[:, None], words[None], dim=-1).argmax(dim=1).numpy()
    assert alone["confusion"] == confusion(data.category, named, len(data.categories))
    names = sorted(path.name for path in (run / "results").glob("zeroshot*"))
    assert len(names) == 2 and names[1].startswith("zeroshot_prompt3_text1-")
    both = run_zero_shot(run, small_store, CPU, split="train+test")
    assert both["num_test"] == ensemble["num_test"] + 9 and both["split"] == "train+test"
    assert "none of the 60 templates" in refusal(partial(run_zero_shot, prompt="A {category} it is."), run, small_store)
