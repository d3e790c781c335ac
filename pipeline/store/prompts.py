"""Class prompts: templates with slots for a name, and the prompts of a class.

`{}` or `{name}` is where the name goes, with spaces for underscores; `{article}` is "a" or "an" as what follows it
wants; `{word}` is an attribute. `{category}`, of the release's alone, is the name as the data set spells it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from recon.pipeline.base.words import article, spoken

# The ReCon release's words, a prefix and a suffix drawn for every sample, with its grammar.
_PREFIXES = (
    "",
    "A ",
    "A model of ",
    "A model of a ",
    "A image of ",
    "A image of a ",
    "A 3D model of ",
    "A 3D model of a ",
    "A rendering model of ",
    "A rendering model of a ",
    "A point cloud of ",
    "A point cloud of a ",
    "A point cloud model of ",
    "A point cloud model of a ",
    "A 3D rendering model of ",
    "A 3D rendering model of a ",
    "A rendering image of ",
    "A rendering image of a ",
    "A 3D rendering image of ",
    "A 3D rendering image of a ",
)
_SUFFIXES = (".", " with white background.", " with black context.")
CLASS_PROMPTS = tuple(f"{prefix}{{category}}{suffix}" for prefix in _PREFIXES for suffix in _SUFFIXES)

# What stood in their place before they were at hand: refs of that time name no templates and mean these.
_EARLIER_PREFIXES = (
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
_EARLIER_SUFFIXES = ("", " on a white background", " standing alone")
EARLIER_PROMPTS = tuple(prefix + suffix for prefix in _EARLIER_PREFIXES for suffix in _EARLIER_SUFFIXES)

SLOT = re.compile(r"\{(\w*)\}")
ARTICLE = "{article}"


def class_prompts(name: str, templates: Sequence[str] = CLASS_PROMPTS) -> list[str]:
    """The prompts of a class in the order of the templates."""
    return [fill(template, name=spoken(name), category=name) for template in templates]


def fill(template: str, **slots: str) -> str:
    """A template with its slots filled, the articles last: they follow the word that comes to stand behind them."""
    text = SLOT.sub(lambda slot: slot[0] if slot[0] == ARTICLE else slots[slot[1] or "name"], template)
    while ARTICLE in text:
        before, _, after = text.rpartition(ARTICLE)
        text = before + article(after.lstrip()) + after
    return text
