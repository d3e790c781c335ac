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
from recon.pipeline.store.records import Text
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


class Teachers:
    """The run's own teachers, loaded when words or pictures come that the store does not hold, and kept."""

    def __init__(self, source: Path, probe: Probe, weights: Path | None) -> None:
        self.source, self.probe, self.weights = source, probe, weights
        """`weights` is where their files lie; None: where the run's settings say"""
        self._models: dict[str, Any] = {}
        self._held: dict[str, Text] = {}

    def words(self, teacher: str, texts: Sequence[str]) -> Floats:
        """[len(texts), D] raw, by the student's text teacher itself; what the store holds already is taken from it.

        UserError for a store without this teacher's words, and where its files are not at hand.
        """
        if teacher not in self._held:
            self._held[teacher] = learnt_words(self.source, self.probe, teacher)
        held = self._held[teacher]
        rows = {prompt: row for row, prompt in enumerate(held.prompts)}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        found = {text: held.feat[rows[text]].astype(np.float32) for text in texts if text in rows}
        if missing:
            wanted = Wanted(f"the words {missing[0]!r}", "--weights", "or ask for words that the store holds")
            model = self._model("text", held.teacher, held.key, teacher, held.prompts, wanted)
            found |= dict(zip(missing, model.reader.embed_texts(missing), strict=True))
        return np.stack([found[text] for text in texts])

    def picture(self, teacher: str, picture: NDArray[np.uint8]) -> Floats:
        """[D] raw, of a picture [H, W, 3] by the student's image teacher itself; UserError as for `words`."""
        store, ref = self.probe.store, self.probe.ref
        learnt = _learnt(self.source, self.probe)[teacher]
        stored = next((name for name, key in ref.targets.items() if key == learnt["key"]), None)
        if stored is None:
            has = ", ".join(f"{name} ({key})" for name, key in ref.targets.items()) or "none"
            raise UserError(
                f"{store.path}: ref {ref.name!r} has nothing of the image teacher {self.source} learnt, "
                f"{learnt['teacher']!r} ({learnt['key']}); it has {has}: name the store that the run was trained on"
            )
        targets = store.targets(stored, ref)
        views = targets.recipe.get("views")
        if views is None or targets.feat.ndim != 4:
            raise UserError(
                f"{store.path}: {stored!r} gives no feature of a single picture that can be made again here; ask by "
                "--text or --mesh"
            )
        wanted = Wanted("--image", "--weights", "or ask by --text or --mesh")
        rgb = store.column("views", views, "rgb")
        model = self._model("targets", stored, targets.key, teacher, rgb, wanted)
        feature: Floats = model.teacher.embed_images(picture[None], None)[0]
        return feature

    def _model(self, kind: str, stored: str, key: str, name: str, inputs: Any, wanted: Wanted) -> Any:
        if (kept := self._models.get(f"{kind}/{key}")) is not None:
            return kept
        recipe = part_of(self.probe.store.recipe(kind, key), "teacher")
        attributes = dict(self.probe.store.kind_group(kind, key).attrs)
        teacher = OnlineTeacher(name, stored, f"{kind}/{key}", recipe, attributes, inputs)
        spec = spec_of(teacher, self.weights or Path(self.probe.config.data.weights), wanted)
        model = load_frozen(teacher, spec, self.probe.device, wanted)
        check_frozen(teacher, model, False, wanted)
        return self._models.setdefault(f"{kind}/{key}", model)


def _learnt(source: Path, probe: Probe) -> dict[str, Any]:
    if probe.of_file:
        raise UserError(f"{source}: a checkpoint file does not say what taught it; name the run's folder")
    return learnt_teachers(source, probe)
