"""Which of a library's published weights a file holds: a tag sets more than the weights, and a file does not say it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.pipeline.base.wording import some
from recon.pipeline.teachers import HUB, OWN, TeacherSpec, trouble, unknown
from recon.pipeline.teachers.known import KnownWeights

_CACHED = "models--"  # begins the name of a repository's folder in the hub's cache
_LEAST_DIGITS = 8  # of a digest that counts


@dataclass(frozen=True)
class Published:
    """What a library says of the weights of one tag."""

    settings: Any
    """Beside the weights, all that the tag sets and a file leaves as the architecture has it."""
    repository: str = ""
    """On the hub, "owner/name"."""
    digest: str = ""
    """The file's sha256 or its beginning, where the library states it."""


def check_tag(spec: TeacherSpec, takes_file: bool) -> None:
    """UserError for a `tag` that says nothing, and for weights that would not be read.

    `takes_file`: whether the model is one of the library's own names, to which any weights can be given.
    """
    if spec.pretrained is not None and not takes_file and (spec.kind != "open_clip" or spec.model.startswith(HUB)):
        raise trouble(
            spec, "pretrained", f"{spec.model} brings its own weights, and these would not be read: remove it"
        )
    if spec.tag is None:
        return
    if not takes_file:
        raise trouble(spec, "tag", f"{spec.model} says itself what its weights want: remove it")
    if spec.pretrained is None or not Path(spec.pretrained).is_file():
        raise trouble(spec, "tag", "it says which weights a file holds, and `pretrained` names none: put the tag there")


def tag_of(spec: TeacherSpec, known: Mapping[str, Published], plain: Any) -> str | None:
    """The tag whose settings the weights file `spec.pretrained` wants; None: the architecture's own, `plain`.

    UserError where the architecture's tags differ in their settings and nothing tells which it is: a file's digest or
    its place in the hub's cache, or `spec.tag`.
    """
    if spec.tag not in (None, OWN, *known):
        raise unknown(spec, "tag", str(spec.tag), [*known, OWN])
    differing = [tag for tag, published in known.items() if published.settings != plain]
    if not differing:
        return None if spec.tag == OWN else spec.tag
    found = _recognised(Path(spec.pretrained or ""), known)
    if spec.tag is None and found is None:
        raise trouble(
            spec,
            "tag",
            f"{spec.pretrained} does not say which weights of {spec.model} it holds, and some want another activation "
            f"or preprocessing than its config has ({some(differing)}): add tag = one of {', '.join(known)}, or "
            f"tag = \"{OWN}\" for weights of your own that keep the config's (tuned ones take their origin's tag)",
        )
    if found is not None and spec.tag is not None:
        told = plain if spec.tag == OWN else known[spec.tag].settings
        if told != known[found].settings:
            raise trouble(spec, "tag", f"{spec.pretrained} holds the weights of {found!r}, not of {spec.tag!r}")
    return None if spec.tag == OWN else spec.tag or found


def source_of(spec: TeacherSpec) -> dict[str, Any]:
    """What of a spec decides what is read from its files."""
    return spec.model_dump(include={"kind", "model", "pretrained", "tag"})


def gelu_notes(spec: TeacherSpec) -> list[str]:
    """A line where timm's model computes another network than its weights were trained as, as timm itself notes."""
    base, _, named = spec.model.partition(".")
    tag = named or spec.tag or spec.pretrained or ""
    if spec.kind != "timm" or "_clip_" not in base or "quickgelu" in base or not tag:
        return []
    import timm  # it takes seconds, which other teachers should not cost

    names = [f"{base}.{tag}", f"{base.replace('_clip_', '_clip_quickgelu_')}.{tag}"]
    if not set(names) <= set(timm.list_pretrained(f"*.{tag}")):
        return []
    config: Any = timm.get_pretrained_cfg(names[0])
    if not any("QuickGELU" in note for note in config.notes or ()):
        return []
    return [
        f"warning: teacher {spec.name!r}: timm computes {names[0]} with GELU, and its weights were trained with "
        f'QuickGELU: model = "{names[1]}" is the network they are of, under another key'
    ]


def _recognised(file: Path, known: Mapping[str, Published]) -> str | None:
    """The tag whose weights the file holds by the hub's cache that it lies in, else by its digest."""
    for part in file.parts:
        if part.startswith(_CACHED):
            repository = part.removeprefix(_CACHED).replace("--", "/")
            for tag, published in known.items():
                if published.repository == repository:
                    return tag
    stated = {tag: published.digest for tag, published in known.items() if len(published.digest) >= _LEAST_DIGITS}
    if not stated:
        return None
    digest = KnownWeights([file]).kept("file", lambda: _sha256(file))
    return next((tag for tag, beginning in stated.items() if digest.startswith(beginning)), None)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
