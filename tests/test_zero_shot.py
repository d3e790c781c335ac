"""Zero-shot on a real store and a real, if short, run: against plain numpy, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from recon.pipeline.store import FeatureStore
from recon.pipeline.store.spaces import one_space
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.data.transforms import normalize
from recon.trainer.evaluate.features import Probe, confusion, encode, random_points, spare_points
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import class_embeddings, classify, run_zero_shot, teacher_feature
from recon.trainer.model.recon import ReCon
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.probed_run import CPU, MEASURED, assert_confusions, edit_record, farthest, refusal
from tests.results_files import result_of

pytestmark = pytest.mark.slow  # whole stores are made


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


def test_zero_shot_leaves_its_result(own_run: Path, probe: Probe, small_store: Path, testing: Labelled) -> None:
    result = run_zero_shot(own_run, small_store, CPU)
    assert result_of(own_run, "zeroshot") == result
    again = run_zero_shot(own_run, small_store, CPU)
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
    own_run: Path, probe: Probe, small_store: Path, testing: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A barely trained student may call everything by one name, so what is compared is what it is judged by.
    seen = []

    def recorded(*arguments: Any) -> NDArray[np.float32]:
        seen.append(encode(*arguments))
        return seen[-1]

    monkeypatch.setattr("recon.trainer.evaluate.zero_shot.encode", recorded)
    run_zero_shot(own_run, small_store, CPU)
    assert len(seen) == 2
    spare = torch.from_numpy(farthest(testing, 75))  # 64 x 1200 / 1024
    clouds = random_points(spare, testing.row, probe.config)
    centered = clouds - clouds.mean(dim=1, keepdim=True)
    unit = centered / centered.norm(dim=2).amax(dim=1)[:, None, None]
    for found, student in zip(seen, (probe.student, probe.random_init), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(found, student.zero_shot_feature(unit), rtol=1e-4, atol=1e-6)


def test_chance_counts_classes_without_a_test_shape(
    own_run: Path, small_store: Path, testing: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A guess is among all classes offered, whether or not a shape of each is there to be recognised.
    one = testing.category == testing.category[0]
    part = replace(testing, category=testing.category[one], row=testing.row[one])
    monkeypatch.setattr(Probe, "split", lambda self, name: part)
    assert run_zero_shot(own_run, small_store, CPU)["chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("change", [{"words": "other"}, {"words": None}, {"tap": "cls"}])
def test_zero_shot_needs_a_student_of_one_space(change: dict[str, str], own_run: Path, small_store: Path) -> None:
    # As many dimensions, other weights or another layer: spaces that only look alike.
    edit_record(own_run, lambda data: data["teachers"]["image"]["recipe"].update(change))
    told = refusal(run_zero_shot, own_run, small_store)
    assert "'tiny'" in told and "not two towers of one CLIP" in told
    assert not (own_run / "results").exists()


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
    assert not one_space(seeing, reading, 8, 4)  # whatever is said of them


def test_teachers_that_differ_in_width_are_one_line(tmp_path: Path) -> None:
    # A store may say that both are of one CLIP, as a damaged or a foreign one does.
    store = tiny.make_store(tmp_path / "two.zarr").path
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    pretrain(Console(quiet=True), store, tmp_path / "run", str(tmp_path / "tiny.toml"), ["optim.epochs=2"])
    assert "which are not two towers of one CLIP" in refusal(run_zero_shot, tmp_path / "run", store)


def test_zero_shot_of_a_run_that_does_not_say_its_teachers(own_run: Path, small_store: Path) -> None:
    edit_record(own_run, lambda data: data["teachers"]["image"].pop("recipe"))
    assert f"{own_run / 'config.json'}: of an older version" in refusal(run_zero_shot, own_run, small_store)


def test_zero_shot_needs_the_words_the_student_learnt(own_run: Path, small_store: Path) -> None:
    held = FeatureStore.open(small_store).ref().text["tiny"]
    edit_record(own_run, lambda data: data["teachers"]["text"].update(key="another", teacher="big"))
    told = refusal(run_zero_shot, own_run, small_store)
    assert "'big' (another)" in told and f"it has tiny ({held})" in told and "recon-pipeline features" in told
    run_svm(own_run, small_store, CPU)  # which reads no words


def test_the_learnt_words_are_found_under_any_name(own_run: Path, small_store: Path, tmp_path: Path) -> None:
    # Manifests call their teachers what they like: what counts is what the teacher is.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own)
    path = own / "refs" / "small.json"
    ref = json.loads(path.read_text())
    ref["text"] = {"first": ref["keys"]["points"], "renamed": ref["text"]["tiny"]}
    path.write_text(json.dumps(ref))
    expected = run_zero_shot(own_run, small_store, CPU)
    assert run_zero_shot(own_run, own, CPU)["zero_shot_accuracy"] == expected["zero_shot_accuracy"]


def test_a_teacher_of_another_space_is_left_out(own_run: Path, small_store: Path, tmp_path: Path) -> None:
    # The student is judged all the same: what it learnt from lies in its record, not in this store.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own)
    store = FeatureStore.open(own, write=True)
    key = store.targets().key
    recipe = store.recipe("targets", key)
    store.kind_group("targets", key).attrs["recipe"] = recipe | {"teacher": recipe["teacher"] | {"words": "other"}}
    result, whole = run_zero_shot(own_run, own, CPU), run_zero_shot(own_run, small_store, CPU)
    assert not {"teacher_zero_shot_accuracy", "confusion_teacher", "num_test_teacher"} & result.keys()
    assert list(result["digests"]) == ["points", "text"] and list(whole["digests"]) == ["points", "text", "image"]
    assert result["confusion"] == whole["confusion"]


def test_zero_shot_by_one_prompt_and_another_mix(own_run: Path, small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    ensemble = run_zero_shot(own_run, small_store, CPU)
    templates, text = store.ref().templates, store.text()
    alone = run_zero_shot(own_run, small_store, CPU, prompt=templates[3], text_weight=1.0)
    assert alone["variant"] == f"the one prompt {templates[3]!r}, text weight 1"
    student, config = read_model(own_run)
    assert isinstance(student, ReCon)
    data = load_labelled(store, store.ref(), "test")
    far = data.farthest_points(spare_points(config, data.num_stored))
    points = normalize(random_points(far, data.row, config))
    with torch.inference_mode():
        feature = student.zero_shot_feature(points, text_weight=1.0)
    words = torch.from_numpy(text.feat[text.class_prompts[data.numbers][:, 3]].astype(np.float32))
    named = torch.nn.functional.cosine_similarity(feature[:, None], words[None], dim=-1).argmax(dim=1).numpy()
    assert alone["confusion"] == confusion(data.category, named, len(data.categories))
    names = sorted(path.name for path in (own_run / "results").glob("zeroshot*"))
    assert len(names) == 2 and names[1].startswith("zeroshot_prompt3_text1-")
    both = run_zero_shot(own_run, small_store, CPU, split="train+test")
    assert both["num_test"] == ensemble["num_test"] + 9 and both["split"] == "train+test"
    assert "none of the 60 templates" in refusal(
        partial(run_zero_shot, prompt="A {category} it is."), own_run, small_store
    )
