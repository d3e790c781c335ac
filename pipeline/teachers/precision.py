"""`precision = "auto"` of a teacher: decided once, before anything is keyed, so that no key ever holds "auto"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from recon.pipeline.base.documents import BadDocument, read_document
from recon.pipeline.base.precision import computes_bfloat16, emulation
from recon.pipeline.store.forms import GROUP, REF
from recon.pipeline.teachers import TeacherSpec, device_of
from recon.pipeline.teachers.published import gelu_notes

_NO_MATTER = ("name", "precision", "device", "tag")  # of a label, to the question whether two teachers are one


def settle(specs: Sequence[TeacherSpec], store: Path | None, dataset: str) -> tuple[tuple[TeacherSpec, ...], list[str]]:
    """The teachers of a data set with their precision decided, and what the user should read about it, a line each.

    auto is what the store holds the teacher's features in, if it does; else what the teacher's device computes in. A
    teacher whose GPU is not there keeps its auto: loading it is what fails.
    """
    settled: list[TeacherSpec] = []
    notes: list[str] = []
    for spec in specs:
        notes += gelu_notes(spec)
        if spec.precision in ("auto", "bf16") and (device := _device(spec)):
            held = _held(spec, device, store, dataset) if store and spec.precision == "auto" else None
            taken = spec.model_copy(update={"precision": held}) if held else decided(spec, device)
            notes += _note(spec, taken, device)
            settled.append(taken)
        else:
            settled.append(spec)
    return tuple(settled), notes


def decided(spec: TeacherSpec, device: str) -> TeacherSpec:
    """The spec with auto as the device has it."""
    return spec.model_copy(update={"precision": _suited(device)}) if spec.precision == "auto" else spec


def _note(spec: TeacherSpec, taken: TeacherSpec, device: str) -> list[str]:
    """The line about a precision that is emulated, or is the store's and not the device's."""
    here, held = _suited(device), taken.precision
    kept = f"the store holds its features in {held}, which is kept" if spec.precision == "auto" else ""
    if held == "bf16" and here != "bf16":
        asked = kept or 'precision = "bf16"'
        return [f"warning: teacher {spec.name!r}: {asked}: {emulation(device)}; fp32 gives features of another key"]
    if kept and held != here:
        _, why = computes_bfloat16(device)
        anew = f'precision = "{here}" computes them anew'
        return [f"teacher {spec.name!r}: {kept}; auto would take {here} here ({why}): {anew}"]
    return []


def _suited(device: str) -> str:
    computed, _ = computes_bfloat16(device)
    return "bf16" if computed else "fp32"


def _device(spec: TeacherSpec) -> str:
    """Where the teacher runs; empty where it cannot."""
    import torch

    return "" if spec.device == "cuda" and not torch.cuda.is_available() else device_of(spec)


def _held(spec: TeacherSpec, device: str, store: Path, dataset: str) -> str | None:
    """What the store holds the teacher's features in: the data set's own; else what suits the device, if there are."""
    wanted = _identity(spec.label())
    found: dict[tuple[str, str], str] = {}
    for kind in ("targets", "text"):
        for path in sorted((store / kind).glob("*/zarr.json")):
            label = _document(path, GROUP).get("attributes", {}).get("teacher", {})
            if _identity(label) == wanted and isinstance(held := label.get("precision"), str):
                found[kind, path.parent.name] = held
    ref = _document(store / "refs" / f"{dataset}.json", REF)
    own = [found.get((kind, ref.get(kind, {}).get(spec.name, ""))) for kind in ("targets", "text")]
    here = _suited(device)
    return next(filter(None, own), None) or (here if here in found.values() else next(iter(found.values()), None))


def _document(path: Path, form: TypeAdapter[Any]) -> dict[str, Any]:
    """A JSON file of the store; empty where it is missing or damaged, which others tell and mend."""
    try:
        document: dict[str, Any] = read_document(path, form, "")
        return document
    except BadDocument:
        return {}


def _identity(label: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in label.items() if name not in _NO_MATTER}
