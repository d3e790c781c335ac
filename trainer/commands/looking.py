"""Commands that draw what a trained student does with shapes of a store."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.pipeline.base.console import Terminal
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.program import JsonOption
from recon.trainer.commands.opening import beside, console_of
from recon.trainer.commands.options import (
    DeviceChoice,
    DeviceOption,
    EmaOption,
    FileOverrideOption,
    RefOption,
    StoreOption,
    StudentOption,
    answer,
)

if TYPE_CHECKING:
    from recon.trainer.evaluate.features import Probe

ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="UID", help="A shape of the store; repeatable. Without, some test shapes."),
]
PicturesOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="The folder to write to; without, one in the run's own.")
]
TestSplitOption = Annotated[str, typer.Option(help="Split that shapes are taken of where none is named.")]


def attention(
    store: StoreOption,
    run: StudentOption,
    shape: ShapeOption = None,
    tokens: Annotated[int, typer.Option(min=0, max=16, help="Local tokens to draw as well, far from each other.")] = 2,
    ref: RefOption = None,
    split: TestSplitOption = "test",
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    output: PicturesOption = None,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Draw what each global query and local token attends to, by block and head: pictures, and a page to turn."""
    console, probe, folder = _prepared("attention", store, run, ref, split, device, ema, output, overrides)
    from recon.pipeline.base.files import write_atomically
    from recon.trainer.show.attention import attend, heads_and_blocks, overview, page
    from recon.trainer.show.chosen import chosen_rows, clouds_of

    rows = chosen_rows(probe, shape or [])
    names = [probe.store.registry.uid[row] for row in rows]
    attended = attend(probe.student, names, clouds_of(probe, rows))
    document = page(f"Attention of {run.resolve().name}", attended)
    written: dict[str, str | bytes] = {"attention.png": overview(attended, tokens), "attention.html": document}
    for number, each in enumerate(attended, 1):
        written[f"shape-{number}.png"] = heads_and_blocks(each, tokens)
    for name, content in written.items():
        write_atomically(folder / name, content)
        console.print(f"wrote {folder / name}")
    if json:
        files = [str(folder / name) for name in written]
        answer({"shapes": names, "queries": list(attended[0].queries), "files": files})


def reconstruct(
    store: StoreOption,
    run: StudentOption,
    shape: ShapeOption = None,
    ref: RefOption = None,
    split: TestSplitOption = "test",
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    output: PicturesOption = None,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Hide groups of shapes and draw input, visible groups and prediction, with the Chamfer distance of each group."""
    console, probe, folder = _prepared("reconstruction", store, run, ref, split, device, ema, output, overrides)
    from recon.pipeline.base.files import write_atomically
    from recon.trainer.show.chosen import chosen_rows, clouds_of
    from recon.trainer.show.reconstruction import rebuild, sheet

    rows = chosen_rows(probe, shape or [])
    names = [probe.store.registry.uid[row] for row in rows]
    model, seed = probe.config.model, probe.config.run.seed
    rebuilt = rebuild(run, probe.student, names, clouds_of(probe, rows), seed)
    numbers = {
        "reconstruction": model.reconstruction, "mask_type": model.mask_type, "mask_ratio": model.mask_ratio,
        "seed": seed, "checkpoint": probe.checkpoint, "ref": probe.ref.name,
        "shapes": [each.numbers() for each in rebuilt],
    }  # fmt: skip
    write_atomically(folder / "reconstruction.png", sheet(rebuilt, model.reconstruction))
    write_atomically(folder / "reconstruction.json", json_module.dumps(numbers, indent=1) + "\n")
    for name in ("reconstruction.png", "reconstruction.json"):
        console.print(f"wrote {folder / name}")
    lines = [f"{each.chamfer.mean():>10.5f}  {each.name}" for each in rebuilt]
    answer(numbers if json else lines)


def _prepared(
    name: str,
    store: Path,
    run: Path,
    ref: str | None,
    split: str,
    device: DeviceChoice,
    ema: bool,
    output: Path | None,
    overrides: list[str] | None,
) -> tuple[Terminal, Probe, Path]:
    """A console, the student beside the store, and where its pictures go."""
    console = console_of(run)
    if output is None and run.is_file():
        raise UserError(f"{run}: a checkpoint file has no folder for pictures; name one with -o FOLDER")
    _, probe = beside(store, run, ref, device, ema, overrides, split)
    return console, probe, output or run / name


COMMANDS = (attention, reconstruct)
