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
from recon.trainer.evaluate import results
from recon.trainer.evaluate.clouds import Clouds, clouds_of
from recon.trainer.evaluate.features import FLOAT32, Probe, confusion, encode, load_probe, write_result
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.evaluate.protocols import PROTOCOLS, RELEASED, result_name
from recon.trainer.evaluate.results import result_folder, summarize
from recon.trainer.model.teaching import Teacher

TEXT_WEIGHT = PROTOCOLS[RELEASED].feed.text_weight
"""The release's share of the text query in its zero-shot feature"""
TOPS = (1, 3, 5)


@dataclass(frozen=True)
class Shapes:
    """What the probe reads of a store: the shapes it is measured on, their points, and the classes' embeddings."""

    data: Labelled
    clouds: Clouds
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
    text_weight: float | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    teacher: str | None = None,
    protocol: str = RELEASED,
    draws: int = 1,
) -> dict[str, Any]:
    """Classify a split of a ref by prompts alone: a run's student, its random start, and the image teacher itself.

    `source`, `output` and `overrides` as for `run_svm`; `teacher` names the ref's words that a file's text query learnt
    from, where their width does not tell. `split` may be two, "train+test". A class is the sum of all its prompts, or
    `prompt` alone, one of the ref's templates. `protocol` is one of `PROTOCOLS`; `text_weight` stands in the place of
    its weight of the text projection beside the image's. Of several `draws` of points the result has the mean.
    The teacher is measured where the store holds its features of the clean views, on the shapes that have them. Writes
    a file of results/ and returns it. UserError as for `run_svm`, for a student whose teachers do not share one space,
    for a store without the words of its text teacher, and for clouds that the protocol does not fit.
    """
    started, folder = time.monotonic(), result_folder(source, output)
    probe = load_probe(source, store, device, ref, precision, split, ema, overrides)
    shapes = read_zero_shot(source, probe, prompt, teacher, protocol)
    usual, fed = shapes.text_weight, shapes.clouds.num_points
    shapes = replace(shapes, text_weight=usual if text_weight is None else text_weight)
    if draws > 1 and not shapes.clouds.drawn:
        raise UserError(f"--draws {draws}: protocol {protocol!r} takes all {fed} points of a cloud; leave --draws out")
    result, keys = measure_zero_shot(probe, shapes, draws), {"text": shapes.text.key}
    if (targets := towers_pictures(probe, shapes.text)) and (of_teacher := measure_teacher(targets, shapes)):
        result, keys = result | of_teacher, keys | {"image": targets.key}
    name, told = _told(probe, shapes, protocol, prompt, usual)
    result |= {"prompt": prompt, "text_weight": shapes.text_weight, "protocol": result_name(protocol), "variant": told}
    result["text_teacher"] = shapes.text.teacher
    measured = replace(probe, config=replace(probe.config, data=replace(probe.config.data, num_points=fed)))
    return write_result(folder, name, measured, shapes.data, keys, result, time.monotonic() - started)


def measure_teacher(targets: Targets, shapes: Shapes) -> dict[str, Any]:
    """What the image teacher itself names rightly, of the shapes that the store has its features of; empty of none."""
    seen = targets.ok[0, shapes.data.row]
    if not seen.any():
        return {}
    labels = shapes.data.category[seen]
    predicted = classify(teacher_feature(targets, shapes.data.row[seen]), shapes.classes)
    return {
        "num_test_teacher": int(seen.sum()),
        "teacher_zero_shot_accuracy": float(np.mean(predicted == labels)),
        "confusion_teacher": confusion(labels, predicted, len(shapes.classes)),
    }


def _told(probe: Probe, shapes: Shapes, protocol: str, prompt: str | None, usual: float) -> tuple[str, str]:
    """What the result's file is called, and in words in what it differs from the release's protocol; `usual`: the
    protocol's weight of the words.
    """
    name, told = result_name(protocol), [] if protocol == RELEASED else [f"protocol {protocol}"]
    if prompt is not None:
        name += f"_prompt{probe.ref.templates.index(prompt)}"
        told.append(f"the one prompt {prompt!r}")
    elif shapes.text.ready:
        told.append("features of the classes from the data set's files")
    elif told:
        told.append("prompt ensemble")
    if shapes.text_weight != usual:
        name += f"_text{shapes.text_weight:g}"
        told.append(f"text weight {shapes.text_weight:g}")
    return name, ", ".join(told)


def read_zero_shot(
    source: Path, probe: Probe, prompt: str | None = None, teacher: str | None = None, protocol: str = RELEASED
) -> Shapes:
    """Clouds, which are read when they are measured, and prompts; UserError as for `run_zero_shot`."""
    chosen, rules = _chosen(probe, prompt), PROTOCOLS[protocol]
    ready = rules.ready and prompt is None
    if probe.of_file:
        seeing, reading = space_of_file(source, probe)
        text = words_of_file(source, probe, reading, teacher, ready)
    elif teacher is not None:
        raise UserError(f"--teacher {teacher}: is for a checkpoint file; a run says itself what taught it")
    else:
        seeing, reading = shared_space(source, probe)
        text = class_words(source, probe, (seeing, reading), ready)
    if prompt is not None and text.ready:
        raise UserError(f"--prompt {prompt!r}: the features of the classes came with the data set, without prompts")
    clouds = clouds_of(probe, protocol)
    classes = class_embeddings(text, clouds.data.numbers, chosen, rules.unit)
    return Shapes(clouds.data, clouds, text, classes, (seeing, reading), clouds.feed.text_weight)


def measure_zero_shot(probe: Probe, shapes: Shapes, draws: int = 1) -> dict[str, Any]:
    """Accuracy and confusion matrix of each student; under a protocol that was named the tops and the mean over classes
    too. Of several `draws` the means, every one under "draws", and the confusions of all together.
    """
    labels, num_classes = shapes.data.category, len(shapes.classes)
    result: dict[str, Any] = {"num_test": len(shapes.data), "chance": 1 / num_classes}
    named = shapes.clouds.protocol is not PROTOCOLS[RELEASED]
    told: dict[str, Any] = {}
    for suffix, ranked in rank_shapes(probe, shapes, draws).items():
        for name, values in _scores(ranked == labels[:, None], labels, named).items():
            result[f"{name}{suffix}"] = float(np.mean(values))
            told[f"{name}{suffix}"] = summarize(dict(enumerate(map(float, values))))
        result[f"confusion{suffix}"] = confusion(np.tile(labels, draws), ranked[..., 0].reshape(-1), num_classes)
    return result | ({"draws": told} if draws > 1 else {})


def rank_shapes(probe: Probe, shapes: Shapes, draws: int) -> dict[str, NDArray[np.int64]]:
    """Of each student the classes nearest to every shape, the nearest first: [draws, N, at most 5]."""
    seeing, reading = shapes.teachers
    students = probe.students()
    found: dict[str, list[list[NDArray[np.int64]]]] = {suffix: [[] for _ in range(draws)] for suffix in students}
    for part in shapes.clouds.parts():
        for draw in range(draws):
            points = shapes.clouds.draw(part, draw)
            for suffix, student in students.items():
                feature = partial(
                    student.zero_shot_feature, image=seeing, text=reading, text_weight=shapes.text_weight,
                    unit=shapes.clouds.protocol.unit,
                )  # fmt: skip
                features = torch.from_numpy(encode(feature, points, probe.device, probe.precision.used))
                found[suffix][draw].append(nearest_classes(features, shapes.classes, max(TOPS)))
    return {suffix: np.stack([np.concatenate(parts) for parts in ranked]) for suffix, ranked in found.items()}


def _scores(right: NDArray[np.bool_], labels: NDArray[np.int64], named: bool) -> dict[str, NDArray[np.float64]]:
    """A number a draw by what a result calls it; right: [draws, N, ranks], whether the class of a rank is the shape's.

    The mean over classes is over those that have a shape.
    """
    first = right[..., 0].mean(axis=1)
    if not named:
        return {"zero_shot_accuracy": first}
    tops = {f"zero_shot_top{top}": right[..., :top].any(axis=2).mean(axis=1) for top in TOPS[1:]}
    classes = [right[:, labels == number, 0].mean(axis=1) for number in np.unique(labels)]
    return {"zero_shot_accuracy": first, **tops, "zero_shot_class_accuracy": np.mean(classes, axis=0)}


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


def class_words(run: Path, probe: Probe, pair: tuple[str, str], ready: bool) -> Text:
    """What the classes are told by: prompts embedded by the student's own text teacher, or features of the classes that
    came with the ref's data set and lie in the space of the `pair` of its teachers. With `ready` the latter first.

    A student whose own words came with a data set too has no text tower that could be told by its digest: for it all
    embedded prompts of its width are in its space. UserError where the ref has neither.
    """
    learnt, (seeing, reading) = learnt_teachers(run, probe), pair
    if not ready and learnt[reading]["key"] in probe.ref.text.values():
        return learnt_words(run, probe, reading)
    dim = next(each.dim for each in probe.config.model.teachers if each.name == reading)
    untold = learnt[reading]["recipe"].get("kind") == "stored"
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, key in probe.ref.text.items():
        recipe = part_of(probe.store.recipe("text", key), "teacher")
        came = recipe.get("kind") == "stored"
        if (came or untold) and one_space(learnt[seeing]["recipe"], recipe, dim, _width(probe, key)):
            found[came].append(name)
    fitting = found[ready] + found[not ready]
    return probe.store.text(fitting[0], probe.ref) if fitting else learnt_words(run, probe, reading)


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


def words_of_file(source: Path, probe: Probe, reading: str, name: str | None, ready: bool = False) -> Text:
    """The ref's words that the text query `reading` of a checkpoint file learnt from: those called `name`, or the only
    ones of its width; of embedded prompts and features that came with a data set, the latter with `ready`.

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
        kinds = {each: part_of(probe.store.recipe("text", probe.ref.text[each]), "teacher") for each in fitting}
        alike = [each for each in fitting if (kinds[each].get("kind") == "stored") == ready]
        fitting = alike if len(alike) == 1 else fitting
    if len(fitting) > 1:
        raise UserError(f"{where}: say with --teacher which of {', '.join(fitting)} taught the text query of {source}")
    return probe.store.text(fitting[0], probe.ref)


def _width(probe: Probe, key: str) -> int:
    feat: Any = probe.store.column("text", key, "feat")
    return int(feat.shape[-1])


def learnt_teachers(run: Path, probe: Probe) -> dict[str, Any]:
    """What the run's record says of each of the student's teachers; UserError for one of an older version.

    Of a run on several stores it is what is said of the one measured on, of another store what is said of the first.
    """
    stores, place = results.of_stores(probe.learnt), None
    if len(stores) > 1 and (key := probe.ref.keys.get("points")):
        measured_on = {"ref": probe.ref.name, "digests": {"points": probe.store.digest(key)}}
        place = results.learnt_from(measured_on, probe.learnt)
    learnt = stores[place or 0].get("teachers", {})
    if any("recipe" not in teacher for teacher in learnt.values()):
        raise UserError(f"{run / 'config.json'}: of an older version, does not say what its teachers were; train anew")
    return dict(learnt)


def towers_pictures(probe: Probe, text: Text) -> Targets | None:
    """Features of pictures in the words' space, where the ref has such: what the teacher itself makes of the shapes."""
    reading = part_of(text.recipe, "teacher")
    for name in probe.ref.targets:
        targets = probe.store.targets(name, probe.ref)
        if targets.of == "image" and one_space(
            part_of(targets.recipe, "teacher"), reading, targets.dim, text.feat.shape[1]
        ):
            return targets
    return None


def class_embeddings(
    text: Text, numbers: NDArray[np.int64], chosen: slice = slice(None), normalized: bool = False
) -> Tensor:
    """The sum of each class's prompt features, [C, D] (prompt ensemble), or of those `chosen`; numbers [C] are the
    classes' in the store. With `normalized` each is brought to length 1 first.
    """
    places = text.class_prompts[numbers]
    places = places if text.ready else places[:, chosen]
    prompts = torch.from_numpy(text.feat[places].astype(np.float32))
    return (unit(prompts, dim=-1) if normalized else prompts).sum(dim=1)


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
    return nearest_classes(features, classes, 1)[:, 0]


def nearest_classes(features: Tensor, classes: Tensor, most: int) -> NDArray[np.int64]:
    """The classes of highest cosine similarity, the highest first and of equals the first: features [N, D],
    classes [C, D] -> [N, min(most, C)].
    """
    similarity = unit(features, dim=-1) @ unit(classes, dim=-1).T
    order: NDArray[np.int64] = similarity.argsort(dim=1, descending=True, stable=True)[:, :most].numpy()
    return order
