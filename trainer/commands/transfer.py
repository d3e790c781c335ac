"""Commands that train downstream: fine-tuning, few-shot, part segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from recon.trainer.commands.options import (
    DeviceChoice,
    JsonOption,
    LabelledOption,
    OverrideOption,
    ProbeDevice,
    answer,
    numbers,
)

if TYPE_CHECKING:  # torch takes seconds to import
    from recon.trainer.transfer import Job

FromOption = Annotated[
    Path | None, typer.Option("--from", metavar="RUN|FILE", help="The pretrained run or checkpoint to start from.")
]
FolderOption = Annotated[Path, typer.Option("--run", help="Folder for the runs and their summary.")]
RecipeOption = Annotated[str, typer.Option(help="Name of a recipe (see `recipes`) or a TOML file.")]
SeedsOption = Annotated[str, typer.Option(metavar="SEED,...", help="One run each: 0,1,2 or 0-7.")]
ScratchOption = Annotated[
    bool, typer.Option("--scratch", help="Train the same from random weights too, as a baseline.")
]
TestOption = Annotated[str, typer.Option("--split", help="Split to test on.")]


def finetune(
    store: LabelledOption,
    run: FolderOption,
    recipe: RecipeOption,
    source: FromOption = None,
    protocol: Annotated[
        str | None, typer.Option(help="full, linear, mlp3 or peft; short for --set task.protocol.")
    ] = None,
    seeds: SeedsOption = "0",
    scratch: ScratchOption = False,
    split: TestOption = "test",
    overrides: OverrideOption = None,
    device: ProbeDevice = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Train a classifier of a store's categories on a pretrained encoder, from each seed, and test it.

    The same command again goes on where it was stopped.
    """
    settings = [*(overrides or []), *([f"task.protocol={protocol}"] if protocol else [])]
    _run("classify", store, run, recipe, source, settings, seeds, scratch, split, device, json)


def partseg(
    store: LabelledOption,
    run: FolderOption,
    recipe: RecipeOption,
    source: FromOption = None,
    seeds: SeedsOption = "0",
    scratch: ScratchOption = False,
    split: TestOption = "test",
    overrides: OverrideOption = None,
    device: ProbeDevice = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Train a segmenter of the parts of a store's shapes on a pretrained encoder, from each seed, and test it.

    The same command again goes on where it was stopped.
    """
    _run("segment", store, run, recipe, source, overrides or [], seeds, scratch, split, device, json)


def _run(
    kind: str,
    store: Path,
    run: Path,
    recipe: str,
    source: Path | None,
    overrides: list[str],
    seeds: str,
    scratch: bool,
    split: str,
    device: DeviceChoice,
    json: bool,
) -> None:
    from recon.trainer.training.peers import joined
    from recon.trainer.transfer import jobs_of_seeds, read_settings, starting_model

    with joined(device.value):
        config = read_settings(recipe, overrides, kind, starting_model(source))
        _transfer(
            store, run, jobs_of_seeds(run, config, source, numbers("--seeds", seeds), scratch, split), device, json
        )


def _transfer(store: Path, run: Path, jobs: list[Job], device: DeviceChoice, json: bool) -> None:
    from recon.trainer.training.distributed import rank
    from recon.trainer.transfer import summary, summary_lines, transfer

    console = Console(stderr=True) if rank() == 0 else Console(quiet=True, force_terminal=False)
    if status := transfer(console, store, jobs, device.value):
        raise typer.Exit(status)
    if rank() == 0:
        result = summary(run, jobs)
        answer(result if json else summary_lines(result))


COMMANDS = (finetune, partseg)
