"""A process's copies of the models, each compared with the key before anything is computed under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, cast

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.wording import said
from recon.pipeline.keeping.recipes import recipe_diff
from recon.pipeline.teachers import Teacher, TeacherSpec, TextTeacher, device_of, load_teacher, probe

PROBE, DRAWN, WORDS = "probe", "drawn_probe", "words_probe"  # what a group's attributes call them


@dataclass
class LoadedTeacher:
    """A teacher with what it makes of fixed inputs, asked for once."""

    spec: TeacherSpec
    teacher: Teacher
    _probes: dict[tuple[int, bool], dict[str, Any]] = field(default_factory=dict)

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
    return LoadedTeacher(spec, load_teacher(spec, device_of(spec)))


def teacher_of(spec: TeacherSpec) -> Teacher:
    """The process's one copy of a teacher."""
    return loaded(spec).teacher


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
