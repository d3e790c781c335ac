"""What can be said of a shape without a model: the article a word wants, and sentences from a shape's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recon.pipeline.base.words import article


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
