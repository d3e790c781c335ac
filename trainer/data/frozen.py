"""The store's teachers themselves, loaded and compared with their keys as the pipeline compares its own.

For training with teachers that run on every step, and for words and pictures that no store holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.teachers import TeacherSpec, load_teacher
from recon.pipeline.teachers.loaded import DRAWN, PROBE, LoadedTeacher, check_probe, check_recipe
from recon.trainer.data.targets import OnlineTeacher


@dataclass(frozen=True)
class Wanted:
    """What teachers are loaded for, as errors tell it."""

    by: str
    """The setting or option that asks for them"""
    folder: str
    """The one that names the folder of their files"""
    otherwise: str
    """What can be done without them"""


ONLINE = Wanted("data.online", "data.weights", "or train on the stored features with --teachers stored")


def spec_of(teacher: OnlineTeacher, folder: Path, wanted: Wanted) -> TeacherSpec:
    """The teacher by what its key's manifest said of it; its files are looked for in FOLDER/NAME, else in FOLDER."""
    label = teacher.attributes.get("teacher")
    try:
        spec = TeacherSpec.model_validate(label)
    except ValidationError as error:
        raise UserError(
            f"{wanted.by}: {teacher.key} does not say how to load {teacher.name!r} ({label}); run "
            f"`recon-pipeline features` again, {wanted.otherwise}"
        ) from error
    own = folder / teacher.stored_name
    return spec.resolved(own if own.is_dir() else folder)


def load_frozen(teacher: OnlineTeacher, spec: TeacherSpec, device: torch.device, wanted: Wanted) -> LoadedTeacher:
    """The teacher on a device. UserError for one whose files are not at hand."""
    try:
        return LoadedTeacher(spec, load_teacher(spec, str(device)))
    except MachineError:
        raise
    except UserError as error:
        raise UserError(
            f"{wanted.by}: {teacher.name!r} is not at hand: {error}. Name the folder of its files with "
            f"{wanted.folder}, {wanted.otherwise}"
        ) from error


def check_frozen(teacher: OnlineTeacher, model: LoadedTeacher, augmented: bool, wanted: Wanted) -> None:
    """MachineError unless the teacher is the key's, and does with fixed inputs what that did."""
    whose, attributes, precision = f"{wanted.by}: {model.name} of {teacher.key}", teacher.attributes, model.precision
    mend = f"name the folder of the files it was made with by {wanted.folder}, {wanted.otherwise}"
    if isinstance(teacher.inputs, list):
        check_recipe(whose, model.reader.text_recipe(), teacher.recipe, mend)
        check_probe(whose, teacher.key, attributes.get(PROBE), lambda: model.text_probe, precision)
        return
    check_recipe(whose, model.teacher.recipe(), teacher.recipe, mend)
    size = teacher.inputs.shape[2]
    for name, drawn in {PROBE: False, **({DRAWN: True} if augmented else {})}.items():
        check_probe(whose, teacher.key, attributes.get(name), partial(model.image_probe, size, drawn), precision)
