"""Templates with slots for a name: the release's 60 class prompts, and files of one's own.

`{}` or `{name}` is where the name goes, with spaces for underscores; `{article}` is "a" or "an" as what follows it
wants; `{word}` is an attribute. `{category}`, of the release's alone, is the name as the data set spells it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.caption.words import article, spoken
from pipeline.errors import UserError

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
RELEASE = "release"

_SLOT = re.compile(r"\{(\w*)\}")
_ARTICLE = "{article}"


def class_prompts(name: str, templates: Sequence[str] = CLASS_PROMPTS) -> list[str]:
    """The prompts of a class in the order of the templates."""
    return [fill(template, name=spoken(name), category=name) for template in templates]


def fill(template: str, **slots: str) -> str:
    """A template with its slots filled, the articles last: they follow the word that comes to stand behind them."""
    text = _SLOT.sub(lambda slot: slot[0] if slot[0] == _ARTICLE else slots[slot[1] or "name"], template)
    while _ARTICLE in text:
        before, _, after = text.rpartition(_ARTICLE)
        text = before + article(after.lstrip()) + after
    return text


def check_template(template: str, slots: Sequence[str] = ("name",)) -> str:
    """The template itself. ValueError for one that lacks one of `slots`, or has another, or a stray brace."""
    found = {slot[1] or "name" for slot in _SLOT.finditer(template)}
    if strange := sorted(found - {*slots, "article"}):
        raise ValueError(f"{template!r}: no slot is called {{{strange[0]}}}; there are {_named([*slots, 'article'])}")
    if {"{", "}"} & set(_SLOT.sub("", template)):
        raise ValueError(f"{template!r}: a brace that belongs to no slot; slots are {_named([*slots, 'article'])}")
    if missing := [slot for slot in slots if slot not in found]:
        raise ValueError(f"{template!r}: no slot {{{missing[0]}}}" + " or {}" * (missing[0] == "name"))
    return template


def _named(slots: Sequence[str]) -> str:
    return ", ".join(f"{{{slot}}}" for slot in slots)


def templates_of(choice: str) -> tuple[str, ...]:
    """ "release", or the templates in the file of that path; UserError as `read_templates`."""
    return CLASS_PROMPTS if choice == RELEASE else read_templates(Path(choice))


def read_templates(path: Path) -> tuple[str, ...]:
    """The distinct templates of a file, in its order.

    Text: one a line; blank lines and those that begin with # are passed over. JSON: a list of them, or ULIP's form, an
    object of such lists, which must be alike. UserError names the file and the line (in JSON, the entry).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); class_prompts is {RELEASE!r} or the path of a template file"
        ) from error
    found: dict[str, None] = {}
    for place, template in _entries(path, text):
        try:
            found[check_template(template)] = None
        except ValueError as error:
            raise UserError(f"{path}:{place}: {error}") from error
    if not found:
        raise UserError(f"{path}: holds no template; write one a line, such as 'a photo of {_ARTICLE} {{name}}'")
    return tuple(found)


def _entries(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(place, template), counted from one."""
    if path.suffix.lower() != ".json":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.strip()
        return
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    lists = list(data.values()) if isinstance(data, dict) else [data]
    if not lists or any(entry != lists[0] for entry in lists):
        raise UserError(f"{path}: holds {len(lists)} different lists of templates; keep one")
    if not isinstance(lists[0], list) or not all(isinstance(entry, str) for entry in lists[0]):
        raise UserError(f"{path}: must be a list of strings, or an object that holds one")
    yield from enumerate(lists[0], 1)
