"""Shapes of a store nearest to words, a picture or somebody's mesh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.store import FeatureStore
from recon.trainer.data.files import OwnShape
from recon.trainer.evaluate.features import Probe, Student
from recon.trainer.use.embedding import describe
from recon.trainer.use.index import SHAPES, Index, nearest, nearest_by_graph, unit
from recon.trainer.use.words import Floats, Space, Teachers, image_teacher, text_space

WORDS, PICTURES = "words", "pictures"


@dataclass(frozen=True)
class Question:
    """What is asked for, as a unit vector [D] of one space, and how it is told."""

    kind: str
    """WORDS, PICTURES or SHAPES: what the space is called"""
    space: str | Space
    vector: Floats
    told: str


@dataclass(frozen=True)
class Found:
    """A shape of the store and its cosine with what was asked for."""

    row: int
    uid: str
    category: str
    split: str
    cosine: float

    def named(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self)}


def spaces(source: Path, probe: Probe) -> dict[str, str | Space]:
    """The spaces that the student can be asked in, by name."""
    kinds = {teacher.kind for teacher in probe.config.model.teachers}
    found: dict[str, str | Space] = {SHAPES: SHAPES}
    if "text" in kinds:
        found[WORDS] = text_space(source, probe)
    if "image" in kinds:
        found[PICTURES] = image_teacher(source, probe)
    return found


def ask_words(teachers: Teachers, text: str) -> Question:
    """UserError for a student without a text teacher, and for one whose teacher is neither here nor in the store."""
    space = text_space(teachers.source, teachers.probe)
    return Question(WORDS, space, unit(teachers.words(space.text, [text])[0]), f"{text!r}")


def ask_image(teachers: Teachers, picture: NDArray[np.uint8], name: str) -> Question:
    """By a picture [H, W, 3], called `name`; UserError as for `ask_words`."""
    teacher = image_teacher(teachers.source, teachers.probe)
    return Question(PICTURES, teacher, unit(teachers.picture(teacher, picture)), name)


def ask_mesh(student: Student, shape: OwnShape, name: str) -> Question:
    """By somebody's shape; the answer tells what was taken for granted of it."""
    described = describe(student, torch.from_numpy(shape.points)[None])
    return Question(SHAPES, SHAPES, unit(described.embedding[0]), f"{name}: {shape.told()}")


def answer(store: FeatureStore, index: Index, asked: Question, top: int, by_graph: bool) -> list[Found]:
    """The `top` shapes of highest cosine, best first; `by_graph` searches approximately, UserError without a graph."""
    if by_graph:
        places, cosines = nearest_by_graph(index, asked.kind, asked.vector, top)
    else:
        places, cosines = nearest(index.vectors(asked.space), asked.vector, top)
    registry, rows = store.registry, index.row[places]
    return [
        Found(row, registry.uid[row], registry.categories[registry.category[row]], registry.split[row], cosine)
        for row, cosine in zip(rows.tolist(), np.asarray(cosines, np.float64).round(4).tolist(), strict=True)
    ]


def thumbnail(probe: Probe, row: int) -> NDArray[np.uint8] | None:
    """The first stored view of a row [H, W, 3]; None where there is none."""
    if "views" not in probe.ref.keys:
        return None
    views = probe.store.views(probe.ref)
    return np.asarray(views.rgb[row, 0]) if views.ok[row] else None
