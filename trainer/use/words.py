"""Words and pictures in the space of what a student learnt, by the run's own teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.forms import part_of
from recon.trainer.data.frozen import Wanted, check_frozen, load_frozen, spec_of
from recon.trainer.data.targets import OnlineTeacher
from recon.trainer.evaluate.features import Probe
from recon.trainer.evaluate.zero_shot import TEXT_WEIGHT, first_pair, learnt_teachers, learnt_words
from recon.trainer.use.embedding import Described

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """Where shapes are compared with words: the student's text teacher, and an image teacher of the same space."""

    text: str
    image: str | None
    """None: pictures lie elsewhere, and the text query alone is compared"""

    def feature(self, described: Described) -> Floats:
        """[N, D] of N shapes: as zero-shot classification mixes them, image plus a quarter of text."""
        text = described.queries[self.text]
        return text if self.image is None else described.queries[self.image] + TEXT_WEIGHT * text


def text_space(source: Path, probe: Probe) -> Space:
    """UserError for a run without a text teacher, and for a checkpoint file, which does not say what taught it."""
    learnt, teachers = _learnt(source, probe), probe.config.model.teachers
    if pair := first_pair(learnt, teachers):
        return Space(pair[1], pair[0])
    for teacher in teachers:
        if teacher.kind == "text":
            return Space(teacher.name, None)
    had = ", ".join(f"{teacher.name!r} ({teacher.kind})" for teacher in teachers) or "none"
    raise UserError(f"{source}: has no text teacher, so it knows no words (its teachers: {had}); ask by --mesh")


def image_teacher(source: Path, probe: Probe) -> str:
    """The student's first image teacher; UserError as for `text_space`."""
    _learnt(source, probe)
    for teacher in probe.config.model.teachers:
        if teacher.kind == "image":
            return teacher.name
    raise UserError(f"{source}: has no image teacher, so it knows no pictures; ask by --mesh")


def embed_words(source: Path, probe: Probe, teacher: str, texts: Sequence[str], weights: Path | None) -> Floats:
    """[len(texts), D] raw, by the student's text teacher itself; what the store holds already is taken from it.

    UserError for a store without this teacher's words, and where its files are not at hand.
    """
    held = learnt_words(source, probe, teacher)
    rows = {prompt: row for row, prompt in enumerate(held.prompts)}
    missing = [text for text in dict.fromkeys(texts) if text not in rows]
    found = {text: held.feat[rows[text]].astype(np.float32) for text in texts if text in rows}
    if missing:
        wanted = Wanted(f"the words {missing[0]!r}", "--weights", "or ask for words that the store holds")
        model = _model(_key(probe, "text", held.teacher, held.key, teacher, held.prompts), probe, weights, wanted)
        found |= dict(zip(missing, model.reader.embed_texts(missing), strict=True))
    return np.stack([found[text] for text in texts])


def embed_image(source: Path, probe: Probe, teacher: str, picture: NDArray[np.uint8], weights: Path | None) -> Floats:
    """[D] raw, of a picture [H, W, 3] by the student's image teacher itself; UserError as for `embed_words`."""
    learnt = _learnt(source, probe)[teacher]
    stored = next((name for name, key in probe.ref.targets.items() if key == learnt["key"]), None)
    if stored is None:
        has = ", ".join(f"{name} ({key})" for name, key in probe.ref.targets.items()) or "none"
        raise UserError(
            f"{probe.store.path}: ref {probe.ref.name!r} has nothing of the image teacher {source} learnt, "
            f"{learnt['teacher']!r} ({learnt['key']}); it has {has}: name the store that the run was trained on"
        )
    targets = probe.store.targets(stored, probe.ref)
    views = targets.recipe.get("views")
    if views is None or targets.feat.ndim != 4:
        raise UserError(
            f"{probe.store.path}: {stored!r} gives no feature of a single picture that can be made again here; ask by "
            "--text or --mesh"
        )
    wanted = Wanted("--image", "--weights", "or ask by --text or --mesh")
    rgb = probe.store.column("views", views, "rgb")
    model = _model(_key(probe, "targets", stored, targets.key, teacher, rgb), probe, weights, wanted)
    feature: Floats = model.teacher.embed_images(picture[None], None)[0]
    return feature


def _learnt(source: Path, probe: Probe) -> dict[str, Any]:
    if probe.of_file:
        raise UserError(f"{source}: a checkpoint file does not say what taught it; name the run's folder")
    return learnt_teachers(source, probe)


def _key(probe: Probe, kind: str, stored: str, key: str, name: str, inputs: Any) -> OnlineTeacher:
    recipe = part_of(probe.store.recipe(kind, key), "teacher")
    attributes = dict(probe.store.kind_group(kind, key).attrs)
    return OnlineTeacher(name, stored, f"{kind}/{key}", recipe, attributes, inputs)


def _model(teacher: OnlineTeacher, probe: Probe, weights: Path | None, wanted: Wanted) -> Any:
    spec = spec_of(teacher, weights or Path(probe.config.data.weights), wanted)
    model = load_frozen(teacher, spec, probe.device, wanted)
    check_frozen(teacher, model, False, wanted)
    return model
