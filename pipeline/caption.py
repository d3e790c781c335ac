"""Words for shapes: class prompts in CLIP's manner, and captions from what a procedural shape knows of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The ReCon release draws one of 20 prefixes and one of 3 suffixes a step. Its wording is not at hand: the counts
# are its, the words are ours. {article} is "a" or "an" as the class name wants it.
_PREFIXES = (
    "{article} {name}",
    "one {name}",
    "this is {article} {name}",
    "there is {article} {name}",
    "a photo of {article} {name}",
    "a photo of the {name}",
    "a photo of one {name}",
    "a close photo of {article} {name}",
    "a picture of {article} {name}",
    "a picture of the whole {name}",
    "an image of {article} {name}",
    "a rendering of {article} {name}",
    "a clean rendering of the {name}",
    "a 3D rendering of {article} {name}",
    "a 3D model of {article} {name}",
    "a 3D object shaped like {article} {name}",
    "a CAD model of {article} {name}",
    "a computer drawing of {article} {name}",
    "a point cloud of {article} {name}",
    "a view of the {name}",
)
_SUFFIXES = ("", " on a white background", " standing alone")
CLASS_PROMPTS = tuple(prefix + suffix for prefix in _PREFIXES for suffix in _SUFFIXES)

# Spelling misleads where the first sound differs from the first letter.
_CONSONANT_SOUNDS = ("uni", "use", "usu", "uten", "ufo", "uku", "eu", "ewe", "one", "once")
_VOWEL_SOUNDS = ("hour", "honest", "honour", "honor", "heir", "8", "11", "18")


def article(phrase: str) -> str:
    """The indefinite article ("a" or "an") that `phrase` wants in front."""
    word = phrase.lower()
    if word.startswith(_VOWEL_SOUNDS):
        return "an"
    return "an" if word.startswith(tuple("aeiou")) and not word.startswith(_CONSONANT_SOUNDS) else "a"


def class_prompts(name: str) -> list[str]:
    """The 60 prompts of a class in the order of `CLASS_PROMPTS`; underscores become spaces."""
    spoken = " ".join(name.replace("_", " ").split())
    return [template.format(article=article(spoken), name=spoken) for template in CLASS_PROMPTS]


def describe(facts: Mapping[str, Any]) -> list[str]:
    """Captions of one shape from its facts (`procedural.designer`), least detailed first, without repetition.

    They tell the main material, then the first structural trait, then all of them, then every material; [] where
    the facts name no category. Reads `category`, `main_material`, `phrases` and `materials`; all but the first may
    be missing.
    """
    if "category" not in facts:
        return []
    category = str(facts["category"]).replace("_", " ")
    main = str(facts.get("main_material", ""))
    phrases = [str(phrase) for phrase in facts.get("phrases", ())]
    materials = list(dict.fromkeys(str(name) for name in facts.get("materials", {}).values()))

    subject = f"{main} {category}".strip()
    subject = f"{article(subject)} {subject}"
    captions = [subject, *(f"{subject} {_listed(_joined(phrases[:count]))}" for count in (1, len(phrases)) if phrases)]
    if len(materials) > 1:
        captions.append(f"{article(category)} {category} in {_listed(materials)}")
    return list(dict.fromkeys(captions))


def _joined(phrases: Sequence[str]) -> list[str]:
    """Phrases without a "with" that the one before has said already."""
    previous = ["", *phrases]
    return [
        phrase.removeprefix("with ") if before.startswith("with ") else phrase
        for before, phrase in zip(previous, phrases, strict=False)
    ]


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))
