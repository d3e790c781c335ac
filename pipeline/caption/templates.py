"""Files of templates, and what a template must be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.prompts import ARTICLE, CLASS_PROMPTS, SLOT

RELEASE = "release"


def check_template(template: str, slots: Sequence[str] = ("name",)) -> str:
    """The template itself. ValueError for one that lacks one of `slots`, or has another, or a stray brace."""
    found = {slot[1] or "name" for slot in SLOT.finditer(template)}
    if strange := sorted(found - {*slots, "article"}):
        raise ValueError(f"{template!r}: no slot is called {{{strange[0]}}}; there are {_named([*slots, 'article'])}")
    if {"{", "}"} & set(SLOT.sub("", template)):
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
        raise UserError(f"{path}: holds no template; write one a line, such as 'a photo of {ARTICLE} {{name}}'")
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
