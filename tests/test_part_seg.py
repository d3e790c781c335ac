"""Part segmentation: the measures against a slow loop, a data set's parts, and a model that is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.parts import load_parts
from recon.trainer.evaluate.downstream import measure_segmenter, predict_parts, read_examples
from recon.trainer.evaluate.part_seg import part_measures
from recon.trainer.evaluate.voting import moved, vote
from recon.trainer.model.heads import Segmenter
from recon.trainer.model.recon import ModelConfig
from tests import trainer_store as tiny

CPU = torch.device("cpu")
OF_CATEGORY = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], bool)
CONFIG = DataConfig(teachers=(), num_points=64, scale=(0.8, 1.25), scale_axes="together", translate=0.1, rotate=False)
MODEL = ModelConfig(width=12, heads=3, depth=2, num_group=8, group_size=8)


def drawn(seed: int, shapes: int, points: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Predicted parts, true ones, categories."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, 2, shapes)
    parts = [np.flatnonzero(OF_CATEGORY[number]) for number in category]
    truth, predicted = (np.stack([rng.choice(own, points) for own in parts]) for _ in range(2))
    return predicted, truth, category


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 12))
def test_measures_are_those_of_a_loop(seed: int, shapes: int, points: int) -> None:
    predicted, truth, category = drawn(seed, shapes, points)
    of_shape = []
    for guess, right, number in zip(predicted, truth, category, strict=True):
        ious = []
        for part in np.flatnonzero(OF_CATEGORY[number]):
            both, either = np.sum((guess == part) & (right == part)), np.sum((guess == part) | (right == part))
            ious.append(both / either if either else 1.0)
        of_shape.append(np.mean(ious))
    found = part_measures(predicted, truth, category, OF_CATEGORY, ["a", "b"])
    means = [np.mean([iou for iou, each in zip(of_shape, category, strict=True) if each == n]) for n in set(category)]
    assert found["instance_miou"] == pytest.approx(np.mean(of_shape))
    assert found["class_miou"] == pytest.approx(np.mean(means))
    assert found["accuracy"] == np.mean(predicted == truth)
    assert [found["per_class"][name] is None for name in "ab"] == [n not in category for n in (0, 1)]


def test_where_every_part_is_there_it_is_scikit_learns() -> None:
    predicted, truth, category = drawn(1, 4, 200)
    found = part_measures(predicted, truth, category, OF_CATEGORY, ["a", "b"])
    expected = [jaccard_score(right, guess, average="macro") for right, guess in zip(truth, predicted, strict=True)]
    assert found["instance_miou"] == pytest.approx(np.mean(expected))


def test_the_parts_of_a_data_set_of_meshes(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    dataset = load_dataset(store, CONFIG, parts=True)
    numbers = np.arange(len(store.registry.categories))
    labels = load_parts(store, store.ref(), store.registry.categories, numbers)
    assert labels.names == dataset.parts and list(labels.names) == sorted(labels.names)
    for number, category in enumerate(store.registry.categories):
        own = {name for name, has in zip(labels.names, labels.of_category[number], strict=True) if has}
        rows = np.flatnonzero(store.registry.category == number)
        # Of every split: a head must not depend on which shapes are trained on.
        assert own == {f"{category}/{part}" for row in rows for part in store.part_names()[row]}
    assert "parts" in dataset.record


def test_a_store_without_part_names_is_named(tmp_path: Path) -> None:
    store = tiny.make_store(tmp_path / "tiny.zarr")
    with pytest.raises(UserError, match="ref 'tiny'"):
        load_dataset(store, CONFIG, parts=True)


class Knowing(Segmenter):
    """Names each point's part by where it lies, and likes a part of another category even better."""

    def __init__(self, answers: dict[tuple[float, ...], int], foreign: NDArray[np.bool_]) -> None:
        super().__init__(MODEL, foreign.shape[1], len(foreign))
        self.answers, self.foreign = answers, torch.from_numpy(foreign)

    def forward(self, points: Tensor, category: Tensor, generator: torch.Generator | None = None) -> Tensor:
        scores = torch.zeros(*points.shape[:2], self.foreign.shape[1])
        for shape, cloud in enumerate(points):
            for place, point in enumerate(cloud.tolist()):
                scores[shape, place, self.answers[tuple(point)]] = 1.0
        return scores.masked_fill(self.foreign[category][:, None], 2.0)


def test_points_and_parts_of_a_test_stay_together(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    examples = read_examples(store, store.ref(), replace(CONFIG, normalize="none"), "test", parts=True)
    assert examples.labels is not None and examples.parts is not None
    held, names, answers = store.points(), store.part_names(), {}
    for row in examples.data.row:
        category = store.registry.categories[store.registry.category[row]]
        for point, part in zip(np.asarray(held.xyz[row]).tolist(), np.asarray(held.part[row]), strict=True):
            answers[tuple(point)] = examples.labels.names.index(f"{category}/{names[row][part]}")
    found = measure_segmenter(Knowing(answers, ~examples.labels.of_category).eval(), examples, CPU)
    assert (found["instance_miou"], found["class_miou"], found["accuracy"]) == (1.0, 1.0, 1.0)


def test_votes_add_up_log_probabilities(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    examples = read_examples(store, store.ref(), CONFIG, "test", parts=True)
    assert examples.labels is not None and examples.parts is not None
    torch.manual_seed(0)
    model = Segmenter(MODEL, len(examples.labels.names), len(examples.data.categories)).eval()
    data, category, total = examples.data, torch.from_numpy(examples.data.category), torch.zeros(())
    with torch.no_grad():
        for number in range(3):
            total = total + model(moved(examples.points, examples.data.row, CONFIG, 5, 1, number), category)
    total[~torch.from_numpy(examples.labels.of_category)[category][:, None].expand_as(total)] = -torch.inf
    labels = examples.labels.of_category
    slow = part_measures(total.argmax(-1).numpy(), examples.parts, data.category, labels, data.categories)
    found = vote(model, examples, CONFIG, seed=5, votes=3, repeats=2, device=CPU)
    assert found["instance_miou"]["values"]["1"] == pytest.approx(slow["instance_miou"])
    assert set(found) == {"votes", "repeats", "instance_miou", "class_miou", "accuracy"}
    plain = predict_parts(model, examples, CPU)
    assert all(labels[c][parts].all() for c, parts in zip(examples.data.category, plain, strict=True))
