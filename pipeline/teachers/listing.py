"""Which teachers are at hand: what one needs, gives and costs a download, found without a network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import timm

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import said
from recon.pipeline.teachers import HUB, TeacherSpec, load_teacher
from recon.pipeline.teachers import open_clip_teacher as of_open_clip
from recon.pipeline.teachers import timm_teacher as of_timm
from recon.pipeline.teachers.tower import ImageTower

DEMO = TeacherSpec(name="demo", kind="open_clip", model="demo")
_MODULES: dict[str, ModuleType] = {"open_clip": of_open_clip, "timm": of_timm}


@dataclass(frozen=True)
class Listed:
    """One teacher of a manifest, or the shipped one. None: not known before its weights are here."""

    name: str
    kind: str
    model: str
    pretrained: str | None
    weights: str
    """The file or folder that holds them; "to download"; "its own" of a class of one's own."""
    dim: int | None
    """Width of the tapped feature."""
    picture: tuple[int, int] | None
    """(height, width) of its input; of a class of one's own nobody says."""
    tap: str
    taps: dict[str, tuple[int, ...]]
    """What there is to tap, by the shape of one picture's feature."""
    precision: str
    key: str | None
    """Digest of its recipe: equal keys are one teacher, whatever they are called."""
    text_key: str | None
    """Likewise of its words; None too where it reads none."""
    problem: str = ""
    """Why it cannot be used."""


@dataclass(frozen=True)
class Known:
    """A model that a library knows, with the tag of weights that it can fetch."""

    kind: str
    model: str
    pretrained: str | None
    """None where the tag is part of timm's name."""
    weights: str
    """The file that holds them, or "to download"."""


def list_teacher(spec: TeacherSpec) -> Listed:
    """What can be said of a teacher. One whose weights are here is loaded, on the CPU; nothing is fetched."""
    found: dict[str, Any] = {"weights": "", "dim": None, "picture": None, "taps": {}, "key": None, "text_key": None}
    try:
        found |= _loaded(spec) if _is_here(spec, found) else _outlined(spec)
    except UserError as error:
        found["problem"] = str(error)
    except Exception as error:  # a model that nobody ran yet can fail anywhere
        found["problem"] = f"teacher {spec.name!r}: {type(error).__name__}: {said(error)}"
    shown = {name: getattr(spec, name) for name in ("name", "kind", "model", "pretrained", "tap", "precision")}
    return Listed(**shown, **found)


def _is_here(spec: TeacherSpec, found: dict[str, Any]) -> bool:
    if spec.kind == "python":
        found["weights"] = "its own"
        return True
    path = _MODULES[spec.kind].cached_weights(spec)
    found["weights"] = "to download" if path is None else str(path)
    return path is not None


def _loaded(spec: TeacherSpec) -> dict[str, Any]:
    teacher: Any = load_teacher(spec.model_copy(update={"compile": False}))
    recipe = {**teacher.recipe(), **({"compile": True} if spec.compile and isinstance(teacher, ImageTower) else {})}
    tower = isinstance(teacher, ImageTower)
    return {
        "dim": teacher.shape[-1],
        "picture": teacher.picture_size if tower else None,
        "taps": teacher.taps() if tower else {spec.tap: teacher.shape},
        "key": digest_of(recipe),
        "text_key": digest_of(teacher.text_recipe()) if hasattr(teacher, "embed_texts") else None,
    }


def _outlined(spec: TeacherSpec) -> dict[str, Any]:
    if spec.model.startswith(HUB):  # the architecture is only there
        return {}
    picture, taps = _MODULES[spec.kind].outline(spec)
    if spec.tap not in taps:
        raise UserError(f"teacher {spec.name!r}: field 'tap': {spec.model} has only {', '.join(taps)}")
    return {"dim": taps[spec.tap][-1], "picture": picture, "taps": taps}


def search(words: str) -> list[Known]:
    """The libraries' models with weights whose kind, name and tag hold all of `words`; else those named nearest."""
    known: dict[str, TeacherSpec] = {}
    for model, tag in open_clip.list_pretrained():
        known[f"open_clip {model} {tag}"] = TeacherSpec(name=model, kind="open_clip", model=model, pretrained=tag)
    for model in timm.list_pretrained():
        known[f"timm {model}"] = TeacherSpec(name=model, kind="timm", model=model)
    wanted = words.lower().split()
    found = [line for line in known if all(word in line.lower() for word in wanted)]
    if not found:
        likeness = {line: max(_alike(words, part) for part in line.split()[1:]) for line in known}
        found = [line for line in sorted(known, key=likeness.__getitem__, reverse=True)[:10] if likeness[line] > 0.6]
    return [_known(known[line]) for line in found]


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _known(spec: TeacherSpec) -> Known:
    path: Path | None = _MODULES[spec.kind].cached_weights(spec)
    return Known(spec.kind, spec.model, spec.pretrained, "to download" if path is None else str(path))
