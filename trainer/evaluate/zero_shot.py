"""Zero-shot classification: a student's feature against the prompts of every class, in the teachers' shared space."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize as unit

from pipeline.errors import UserError
from trainer.checkpoint import read_record
from trainer.data import Dataset
from trainer.evaluate.features import (
    Probe,
    confusion,
    encode,
    farthest_points,
    load_probe,
    random_points,
    spare_points,
    write_result,
)


def run_zero_shot(run: Path, store: Path, device: torch.device) -> dict[str, Any]:
    """Classify the store's test split by prompts alone: the student, its random start, and the image teacher itself.

    Writes RUN/zeroshot.json and returns it. UserError for a missing run, checkpoint, store or split, and when
    pictures, words and the student do not share one space.
    """
    started = time.monotonic()
    probe = load_probe(run, store, device)
    data = probe.split("test")
    check_one_space(run, probe, data)
    classes = class_embeddings(data)
    labels = data.category.numpy()
    num_classes = len(classes)
    far = farthest_points(data, spare_points(probe.config, data.xyz.shape[1]), device)
    points = random_points(far, data, probe.config)
    result: dict[str, Any] = {"num_test": len(data), "chance": 1 / num_classes}
    for suffix, student in probe.students().items():
        predicted = classify(torch.from_numpy(encode(student.zero_shot_feature, points)), classes)
        result[f"zero_shot_accuracy{suffix}"] = float(np.mean(predicted == labels))
        result[f"confusion{suffix}"] = confusion(labels, predicted, num_classes)
    predicted = classify(teacher_feature(data), classes)
    result["teacher_zero_shot_accuracy"] = float(np.mean(predicted == labels))
    result["confusion_teacher"] = confusion(labels, predicted, num_classes)
    return write_result(run, "zeroshot", probe, data, result, time.monotonic() - started)


def check_one_space(run: Path, probe: Probe, data: Dataset) -> None:
    """UserError unless pictures and words come from one encoder, the one whose words the student learnt."""
    if data.image_dim != data.text_dim:
        raise UserError(
            f"zero-shot needs one space for pictures and words: the store's image teacher has {data.image_dim} "
            f"dimensions, its text teacher {data.text_dim}; train with both teachers of one CLIP"
        )
    image, text = data.record["image"], data.record["text"]
    seeing, reading = (
        probe.store.recipe(kind, key)["teacher"] for kind, key in (("targets", image["key"]), ("text", text["key"]))
    )
    if seeing["weights"] != reading["weights"] or seeing["tap"] != "pooled":
        raise UserError(
            f"zero-shot needs one space for pictures and words: {image['teacher']!r} (tap {seeing['tap']!r}) and "
            f"{text['teacher']!r} are not two towers of one CLIP; train with both of one, tap 'pooled'"
        )
    # A key of text depends on the teacher alone, not on the data set: equal keys are one encoder in any store.
    learnt = read_record(run)["data"]["text"]["key"]
    if learnt != text["key"] or probe.config.model.image_dim != data.image_dim:
        raise UserError(
            f"{probe.store.path}: {run} was trained on another teacher's features than this store holds; embed this "
            "store with the manifest's teacher of that run"
        )


def class_embeddings(data: Dataset) -> Tensor:
    """The sum of each class's prompt features, [num_categories, D] (prompt ensemble)."""
    return data.text.float()[data.class_prompts].sum(dim=1)


def teacher_feature(data: Dataset) -> Tensor:
    """What the image teacher itself says of a shape: the mean direction of its clean views, [N, D]."""
    return unit(data.image[0].float(), dim=-1).mean(dim=1)


def classify(features: Tensor, classes: Tensor) -> NDArray[np.int64]:
    """The class of highest cosine similarity: features [N, D], classes [C, D] -> [N]."""
    predicted: NDArray[np.int64] = (unit(features, dim=-1) @ unit(classes, dim=-1).T).argmax(dim=1).numpy()
    return predicted
