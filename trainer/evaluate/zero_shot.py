"""Zero-shot classification: a student's feature against the prompts of every class, in the teachers' shared space."""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize as unit

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Targets, Text
from recon.pipeline.store.spaces import one_space
from recon.trainer.data.reading import iterate_rows
from recon.trainer.evaluate.features import (
    FLOAT32,
    Probe,
    confusion,
    encode,
    load_probe,
    random_points,
    spare_points,
    write_result,
)
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.evaluate.results import result_folder
from recon.trainer.model.teaching import Teacher

TEXT_WEIGHT = 0.25
"""The release's share of the text query in its zero-shot feature"""


@dataclass(frozen=True)
class Shapes:
    """What the probe reads of a store: the shapes it is measured on, their points, and the classes' embeddings."""

    data: Labelled
    points: Tensor
    """[N, num_points, C]"""
    text: Text
    classes: Tensor
    """[num_categories, D]"""
    teachers: tuple[str, str]
    """The student's image and text teacher that share the words' space"""
    text_weight: float = TEXT_WEIGHT
    """Of the text projection beside the image projection"""


def run_zero_shot(
    source: Path,
    store: Path,
    device: torch.device,
    ref: str | None = None,
    precision: Decision = FLOAT32,
    split: str = "test",
    ema: bool = False,
    prompt: str | None = None,
    text_weight: float = TEXT_WEIGHT,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    teacher: str | None = None,
) -> dict[str, Any]:
    """Classify a split of a ref by prompts alone: a run's student, its random start, and the image teacher itself.

    `source`, `output` and `overrides` as for `run_svm`; `teacher` names the ref's words that a file's text query learnt
    from, where their width does not tell. `split` may be two, "train+test". A class is the sum of all its prompts, or
    `prompt` alone, one of the ref's templates. `text_weight` is that of the text projection beside the image's.
    The teacher is measured where the store holds its features of the clean views, on the shapes that have them. Writes
    a file of results/ and returns it. UserError as for `run_svm`, for a student whose teachers do not share one space,
    and for a store without the words of its text teacher.
    """
    started, folder = time.monotonic(), result_folder(source, output)
    probe = load_probe(source, store, device, ref, precision, split, ema, overrides)
    shapes = replace(read_zero_shot(source, probe, prompt, teacher), text_weight=text_weight)
    result, keys = measure_zero_shot(probe, shapes), {"text": shapes.text.key}
    targets = towers_pictures(probe, shapes.text)
    seen = targets.ok[0, shapes.data.row] if targets else np.zeros(len(shapes.data), np.bool_)
    if targets and seen.any():
        keys["image"] = targets.key
        labels = shapes.data.category[seen]
        predicted = classify(teacher_feature(targets, shapes.data.row[seen]), shapes.classes)
        result["num_test_teacher"] = int(seen.sum())
        result["teacher_zero_shot_accuracy"] = float(np.mean(predicted == labels))
        result["confusion_teacher"] = confusion(labels, predicted, len(shapes.classes))
    name, variant = "zeroshot", []
    if prompt is not None:
        number = probe.ref.templates.index(prompt)
        name, variant = f"{name}_prompt{number}", [f"the one prompt {prompt!r}"]
    if text_weight != TEXT_WEIGHT:
        name, variant = f"{name}_text{text_weight:g}", [*variant, f"text weight {text_weight:g}"]
    result |= {"prompt": prompt, "text_weight": text_weight, "protocol": "zeroshot", "variant": ", ".join(variant)}
    result["text_teacher"] = shapes.text.teacher
    return write_result(folder, name, probe, shapes.data, keys, result, time.monotonic() - started)


def read_zero_shot(source: Path, probe: Probe, prompt: str | None = None, teacher: str | None = None) -> Shapes:
    """Points and prompts; UserError as for `run_zero_shot`."""
    chosen = _chosen(probe, prompt)
    if probe.of_file:
        seeing, reading = space_of_file(source, probe)
        text = words_of_file(source, probe, reading, teacher)
    elif teacher is not None:
        raise UserError(f"--teacher {teacher}: is for a checkpoint file; a run says itself what taught it")
    else:
        seeing, reading = shared_space(source, probe)
        text = learnt_words(source, probe, reading)
    data = probe.split(probe.tested)
    far = probe.farthest_points(data, spare_points(probe.config, data.num_stored))
    points = random_points(far, data.row, probe.config)
    classes = class_embeddings(text, data.numbers, chosen)
    return Shapes(data, points, text, classes, (seeing, reading))


def measure_zero_shot(probe: Probe, shapes: Shapes) -> dict[str, Any]:
    """Accuracy and confusion matrix of each student."""
    labels, num_classes = shapes.data.category, len(shapes.classes)
    result: dict[str, Any] = {"num_test": len(shapes.data), "chance": 1 / num_classes}
    seeing, reading = shapes.teachers
    for suffix, student in probe.students().items():
        feature = partial(student.zero_shot_feature, image=seeing, text=reading, text_weight=shapes.text_weight)
        features = encode(feature, shapes.points, probe.device, probe.precision.used)
        predicted = classify(torch.from_numpy(features), shapes.classes)
        result[f"zero_shot_accuracy{suffix}"] = float(np.mean(predicted == labels))
        result[f"confusion{suffix}"] = confusion(labels, predicted, num_classes)
    return result


def shared_space(run: Path, probe: Probe) -> tuple[str, str]:
    """An image and a text teacher of the student whose features lie in one space, two towers of one CLIP.

    UserError where no pair does.
    """
    learnt, teachers = learnt_teachers(run, probe), probe.config.model.teachers
    if pair := first_pair(learnt, teachers):
        return pair
    had = [
        f"{learnt[each.name]['teacher']!r} ({each.kind}, tap {learnt[each.name]['recipe'].get('tap')!r})"
        for each in teachers
    ]
    raise UserError(
        f"zero-shot needs one space for pictures and words: {run} was trained on {' and '.join(had) or 'no teacher'}, "
        "which are not two towers of one CLIP; train with both of one, tap 'pooled'"
    )


def spaces_shared(data: Mapping[str, Any], teachers: Sequence[Teacher]) -> bool:
    """Whether a student of these teachers can be measured so; `data` is the record of what it is trained on."""
    return first_pair(data["teachers"], teachers) is not None


def first_pair(learnt: Mapping[str, Any], teachers: Sequence[Teacher]) -> tuple[str, str] | None:
    """The first image and text teacher of one space, by what a run's record says of its teachers."""
    kinds = [[teacher for teacher in teachers if teacher.kind == kind] for kind in ("image", "text")]
    for seeing, reading in itertools.product(*kinds):
        recipes = learnt[seeing.name]["recipe"], learnt[reading.name]["recipe"]
        if one_space(*recipes, seeing.dim, reading.dim):
            return seeing.name, reading.name
    return None


def learnt_words(run: Path, probe: Probe, teacher: str) -> Text:
    """The prompts of the store's ref as the student's own text teacher embeds them, whatever it is called there.

    A key of text depends on the teacher alone, not on the data set: equal keys are one encoder in any store. UserError
    where the ref has none of it.
    """
    learnt = learnt_teachers(run, probe)[teacher]
    for name, key in probe.ref.text.items():
        if key == learnt["key"]:
            return probe.store.text(name, probe.ref)
    has = ", ".join(f"{name} ({key})" for name, key in probe.ref.text.items()) or "none"
    raise UserError(
        f"{probe.store.path}: ref {probe.ref.name!r} has no words of the text teacher {run} learnt, "
        f"{learnt['teacher']!r} ({learnt['key']}); it has {has}: put that teacher into its manifest and run "
        "`recon-pipeline features`"
    )


def space_of_file(source: Path, probe: Probe) -> tuple[str, str]:
    """The first image and text query of a checkpoint file that predict features of one width.

    What taught them the file does not say, so that it was one CLIP is taken on its user's word. UserError where a query
    is missing and where no two are of one width.
    """
    teachers = probe.config.model.teachers
    told = " and ".join(f"{each.name!r} ({each.kind}, {each.dim}-d)" for each in teachers) or "none"
    for kind in ("image", "text"):
        if all(each.kind != kind for each in teachers):
            raise UserError(f"{source}: has no {kind} query; zero-shot needs one of each, it has {told}")
    for seeing, reading in itertools.product(teachers, teachers):
        if (seeing.kind, reading.kind) == ("image", "text") and seeing.dim == reading.dim:
            return seeing.name, reading.name
    raise UserError(
        f"{source}: its queries predict {told}, which cannot be one space; zero-shot needs a student that was trained "
        "with both towers of one CLIP"
    )


def words_of_file(source: Path, probe: Probe, reading: str, name: str | None) -> Text:
    """The ref's words that the text query `reading` of a checkpoint file learnt from: those called `name`, or the only
    ones of its width.

    UserError for a name that is not there or of another width, and where width alone does not tell.
    """
    dim = next(each.dim for each in probe.config.model.teachers if each.name == reading)
    widths = {each: _width(probe, key) for each, key in probe.ref.text.items()}
    told = ", ".join(f"{each} ({width}-d)" for each, width in widths.items()) or "none"
    where = f"ref {probe.ref.name!r} of {probe.store.path} has words of {told}"
    if name is not None and name not in widths:
        raise UserError(f"--teacher {name}: {where}")
    fitting = [each for each, width in widths.items() if width == dim and name in (None, each)]
    if not fitting:
        asked = f"--teacher {name}: " if name else ""
        raise UserError(
            f"{asked}{where}, the text query of {source} predicts {dim}-d features: put the teacher that it learnt "
            "from into the manifest and run `recon-pipeline features`"
        )
    if len(fitting) > 1:
        raise UserError(f"{where}: say with --teacher which of {', '.join(fitting)} taught the text query of {source}")
    return probe.store.text(fitting[0], probe.ref)


def _width(probe: Probe, key: str) -> int:
    feat: Any = probe.store.column("text", key, "feat")
    return int(feat.shape[-1])


def learnt_teachers(run: Path, probe: Probe) -> dict[str, Any]:
    """What the run's record says of each of the student's teachers; UserError for one of an older version."""
    learnt = probe.learnt.get("teachers", {})
    if any("recipe" not in teacher for teacher in learnt.values()):
        raise UserError(f"{run / 'config.json'}: of an older version, does not say what its teachers were; train anew")
    return dict(learnt)


def towers_pictures(probe: Probe, text: Text) -> Targets | None:
    """Features of pictures in the words' space, where the ref has such: what the teacher itself makes of the shapes."""
    reading = part_of(text.recipe, "teacher")
    for name in probe.ref.targets:
        targets = probe.store.targets(name, probe.ref)
        if one_space(part_of(targets.recipe, "teacher"), reading, targets.dim, text.feat.shape[1]):
            return targets
    return None


def class_embeddings(text: Text, numbers: NDArray[np.int64], chosen: slice = slice(None)) -> Tensor:
    """The sum of each class's prompt features, [C, D] (prompt ensemble), or of those `chosen`; numbers [C] are the
    classes' in the store.
    """
    return torch.from_numpy(text.feat[text.class_prompts[numbers][:, chosen]].astype(np.float32)).sum(dim=1)


def _chosen(probe: Probe, prompt: str | None) -> slice:
    """Which of a class's prompts count. UserError for one that the ref has not."""
    if prompt is None:
        return slice(None)
    templates = probe.ref.templates
    if prompt not in templates:
        near = difflib.get_close_matches(prompt, templates, n=1, cutoff=0) or ["none"]
        raise UserError(
            f"--prompt {prompt!r}: none of the {len(templates)} templates of ref {probe.ref.name!r}, whose nearest is "
            f"{near[0]!r}; others are class_prompts of its manifest"
        )
    place = templates.index(prompt)
    return slice(place, place + 1)


def teacher_feature(targets: Targets, rows: NDArray[np.int64]) -> Tensor:
    """What the image teacher itself says of shapes: the mean direction of their clean views, [N, D]."""
    feature = torch.empty(len(rows), targets.dim)
    for part, views in iterate_rows(targets.feat, rows, f"image features of {targets.teacher!r}", lane=0):
        feature[part] = unit(torch.from_numpy(views).float(), dim=-1).mean(dim=1)
    return feature


def classify(features: Tensor, classes: Tensor) -> NDArray[np.int64]:
    """The class of highest cosine similarity: features [N, D], classes [C, D] -> [N]."""
    predicted: NDArray[np.int64] = (unit(features, dim=-1) @ unit(classes, dim=-1).T).argmax(dim=1).numpy()
    return predicted
