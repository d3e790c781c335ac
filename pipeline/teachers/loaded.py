"""A process's copies of the models, each compared with the key before anything is computed under it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from recon.pipeline.base.devices import share_memory
from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.watch import getting_on, unhurried
from recon.pipeline.base.wording import said
from recon.pipeline.keeping.recipes import recipe_diff
from recon.pipeline.teachers import Floats, Teacher, TeacherSpec, TextTeacher, device_of, load_teacher, probe

if TYPE_CHECKING:  # it imports torch
    from recon.pipeline.teachers.batches import Read

PIECE = 256
"""Inputs that a class of one's own is given at a time: it gets on when they are done."""
PROBE, DRAWN, WORDS = "probe", "drawn_probe", "words_probe"  # what a group's attributes call them


@dataclass
class LoadedTeacher:
    """A teacher with what it makes of fixed inputs, asked for once."""

    spec: TeacherSpec
    teacher: Teacher
    _probes: dict[tuple[int, bool], dict[str, Any]] = field(default_factory=dict)

    def embed_read(self, count: int, read: Read, seeds: Sequence[int] | None) -> Floats:
        """[count, ...] features of the pictures that `read` gives, a part at a time."""
        if hasattr(self.teacher, "embed_read"):
            return cast(Floats, self.teacher.embed_read(count, read, seeds))
        return _in_pieces(
            count, lambda at, to: self.teacher.embed_images(read(at, to), None if seeds is None else seeds[at:to])
        )

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """[B] strings -> [B, D]."""
        if hasattr(self.teacher, "embed_read"):
            return self.reader.embed_texts(texts)
        return _in_pieces(len(texts), lambda at, to: self.reader.embed_texts(texts[at:to]))

    @property
    def reader(self) -> TextTeacher:
        """The teacher as one of words; only those that embed them are asked."""
        return cast(TextTeacher, self.teacher)

    def image_probe(self, size: int, drawn: bool) -> dict[str, Any]:
        """Of pictures of `size` px, clean or augmented. MachineError for features that are not finite."""
        if (size, drawn) not in self._probes:
            shown = probe.pictures(size, size)
            seeds = list(range(len(shown))) if drawn else None
            with self._blamed(f"pictures of {size} px"):
                features = self.teacher.embed_images(shown, seeds)
            self._probes[size, drawn] = probe.of_features(self.name, features)
        return self._probes[size, drawn]

    @cached_property
    def text_probe(self) -> dict[str, Any]:
        """Of sentences, with their tokens where the teacher tells them."""
        sentences = list(probe.SENTENCES)
        with self._blamed("sentences"):
            features = self.reader.embed_texts(sentences)
        found = probe.of_features(self.name, features)
        tokens = getattr(self.teacher, "tokens", None)
        return {**found, "tokens": probe.of_tokens(tokens(sentences))} if tokens else found

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        """What goes wrong with inputs of no shape is no shape's fault."""
        import torch

        try:
            with unhurried():
                yield
        except UserError:
            raise
        except Exception as error:  # a class of one's own may raise anything
            message = f"{self.name}: it cannot embed {what}: {type(error).__name__}: {said(error)}"
            raise MachineError(message) from error
        finally:
            torch.cuda.empty_cache()  # a parent does no more than this, and the GPU's memory is its workers'

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"teacher {self.spec.name!r}"

    @property
    def precision(self) -> str:
        """The arithmetic it computes in, as the manifest or `settle` decided."""
        return self.spec.precision


@lru_cache(maxsize=4)
def loaded(spec: TeacherSpec) -> LoadedTeacher:
    """The process's one copy of a teacher, on the device it asks for."""
    import torch

    torch.set_num_threads(1)  # workers share the cores, and other thread counts round differently
    device = device_of(spec)
    if device == "cuda":
        share_memory()
    with unhurried():
        return LoadedTeacher(spec, load_teacher(spec, device))


def teacher_of(spec: TeacherSpec) -> Teacher:
    """The process's one copy of a teacher."""
    return loaded(spec).teacher


@dataclass(frozen=True)
class Facts:
    """What stages are made of: all of a teacher that is needed where it does not run."""

    shape: tuple[int, ...]
    """Of one picture's feature, see `Teacher.shape`."""
    recipe: str
    """Canonical JSON, as is the next."""
    text_recipe: str = ""
    """Empty for a teacher without words."""
    width: int = 0
    """Of the words' features."""
    tells_cut: bool = False
    """Whether it tells which words are longer than it reads."""


def facts_of(spec: TeacherSpec) -> Facts:
    """Loads the teacher: its recipes hold digests of its weights."""
    teacher = teacher_of(spec)
    recipe = canonical_json(teacher.recipe())
    if not hasattr(teacher, "embed_texts"):
        return Facts(teacher.shape, recipe)
    reader = cast(TextTeacher, teacher)
    text_recipe, width = canonical_json(reader.text_recipe()), reader.embed_texts(["a shape"]).shape[1]
    return Facts(teacher.shape, recipe, text_recipe, width, _cut_of(teacher) is not None)


def _cut_of(teacher: Teacher) -> Callable[[Sequence[str]], Sequence[bool]] | None:
    return getattr(teacher, "cut", None)


def count_cut(about: tuple[TeacherSpec, Sequence[str]]) -> int:
    """How many of a list of strings a teacher reads the beginnings of alone; of one that tells, see `Facts`."""
    spec, texts = about
    cut = _cut_of(teacher_of(spec))
    assert cut is not None
    return sum(cut(texts))


def _in_pieces(count: int, embed: Callable[[int, int], Floats]) -> Floats:
    """What `embed` (start, stop) gives for all of them, PIECE at a time; see `base/watch.py`."""
    parts = []
    for start in range(0, count, PIECE):
        began = time.monotonic()
        parts.append(embed(start, min(start + PIECE, count)))
        getting_on(time.monotonic() - began)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


MEND = "its files were changed during the run or differ from machine to machine: make them one and run it again"


def check_recipe(whose: str, recipe: dict[str, Any], keyed: dict[str, Any], mend: str = MEND) -> None:
    """MachineError unless the model that this process loaded is the one that the key was made of."""
    if canonical_json(recipe) != canonical_json(keyed):
        difference = recipe_diff(keyed, recipe)[0]
        raise MachineError(f"{whose}: the model loaded here is not the one that the key names: {difference}; {mend}")


def check_probe(whose: str, key: str, held: Any, own: Callable[[], dict[str, Any]], precision: str) -> None:
    """MachineError unless the model gives for the fixed inputs what the key's did, `held`; None: nobody knows."""
    found = probe.difference(held, own(), precision) if held else ""
    if found:
        raise MachineError(
            f"{whose}: it has the recipe of {key} and computes something else, {found}: a library, a tokenizer "
            "or a class of one's own is another than when the key was made (its receipts name the versions); put that "
            "back, let a class say it in its recipe's `kind`, or take a new store"
        )
