"""recon-pipeline's command on frozen teachers: which are at hand, and which the libraries know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.pipeline.base.machine import set_thread_variables
from recon.pipeline.base.program import JsonOption
from recon.pipeline.commands.terminal import answer, emit

if TYPE_CHECKING:
    from recon.pipeline.teachers.listing import Listed

SpecsOption = Annotated[
    Path | None, typer.Option("--manifest", "-m", help="A data set's TOML file or name, whose teachers are listed too.")
]
SearchOption = Annotated[str, typer.Option(help="Instead: models the libraries know by name, such as 'clip b-32'.")]


def teachers(manifest: SpecsOption = None, search: SearchOption = "", as_json: JsonOption = False) -> None:
    """Say which teachers are at hand: weights, width, picture size, taps, key. Fetches nothing.

    Exit status 1 when one of the manifest's cannot be used.
    """
    set_thread_variables()
    from recon.pipeline.flow.manifest import load_manifest, settled

    settings = load_manifest(manifest) if manifest else None
    from recon.pipeline.teachers.listing import DEMO, Known, list_teacher
    from recon.pipeline.teachers.listing import search as search_known

    specs = settled(settings, None)[0].features.teachers if settings else ()

    known: list[Known] = search_known(search) if search else []
    shipped = () if any(spec.model == DEMO.model for spec in specs) else (DEMO,)
    listed = [] if search else [list_teacher(spec) for spec in (*shipped, *specs)]
    if as_json:
        emit(known if search else listed)
    elif search:
        answer([f"{k.kind:>9}  {k.model}{f'  {k.pretrained}' if k.pretrained else ''}  {k.weights}" for k in known])
        answer([] if known else [f"no library knows a model named like {search!r}"])
    else:
        answer([line for teacher in listed for line in _describe(teacher)])
    raise typer.Exit(1 if any(teacher.problem for teacher in listed) or (search and not known) else 0)


def _describe(teacher: Listed) -> Iterator[str]:
    tag = f" {teacher.pretrained}" if teacher.pretrained else ""
    yield f"{teacher.name}: {teacher.kind} {teacher.model}{tag}"
    if teacher.problem:
        yield f"    unusable: {teacher.problem}"
        return
    yield f"    weights: {teacher.weights}"
    if teacher.dim is not None:
        size = " of {}x{} px".format(*teacher.picture) if teacher.picture else ""
        taps = ", ".join(f"{tap} {list(shape)}" for tap, shape in teacher.taps.items())
        yield f"    pictures{size} to {teacher.dim} numbers ({teacher.tap}, {teacher.precision}); taps: {taps}"
    if teacher.key:
        yield f"    key {teacher.key}" + (f", of its words {teacher.text_key}" if teacher.text_key else ", no words")
