"""Prompts that are longer than a teacher of words reads."""

from __future__ import annotations

from collections.abc import Mapping


def describe(cut_by: Mapping[str, tuple[int, int]]) -> list[str]:
    """For people: a line a teacher that cuts some, and none where nothing is to be said; see `Ref.cut`."""
    return [
        f"cut short: {cut} of {prompts} prompts are longer than teacher {teacher!r} reads; "
        "it sees their beginnings alone: shorter captions, or a teacher of a longer context, tell them apart"
        for teacher, (cut, prompts) in cut_by.items()
        if cut
    ]
