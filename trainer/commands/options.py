"""Options that several commands take: one meaning, one name and the same words everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import shown


class DeviceChoice(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionChoice(StrEnum):
    """What to compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class ProtocolChoice(StrEnum):
    """Whose way of measuring zero-shot; `recon.trainer.evaluate.protocols` has what each does."""

    recon = "recon"
    recon2 = "recon2"
    recon2_turned = "recon2_turned"
    openshape = "openshape"
    uni3d = "uni3d"


StoreOption = Annotated[Path, typer.Option("--store", "-s", help="The store the run was trained on, or another.")]
SearchedStore = Annotated[
    Path, typer.Option("--store", "-s", help="The store the run was trained on, or another of the same teachers.")
]
LabelledStore = Annotated[
    Path, typer.Option("--store", "-s", help="A store with splits train and test: the run's or another.")
]
RunOption = Annotated[Path, typer.Option("--run", help="The run's folder.")]
StudentOption = Annotated[
    Path, typer.Option("--run", metavar="RUN|FILE", help="The run's folder, or a pretrained checkpoint file.")
]
RunsOption = Annotated[Path, typer.Option("--run", help="Folder for the runs and their summary.")]

_recipe = typer.Option("--recipe", help="Name of a recipe (see `recipes`) or a TOML file.")
RecipeOption = Annotated[str, _recipe]
RecipeIfAny = Annotated[str | None, _recipe]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.")
]
FileOverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Of a file: what it does not tell, model.heads, .num_group or .teachers, data.num_points or run.seed; "
        "repeatable.",
    ),
]
SeedsOption = Annotated[str, typer.Option("--seeds", metavar="SEED,...", help="One run from each: 0,1,2 or 0-7.")]

RefOption = Annotated[
    str | None,
    typer.Option("--ref", help="Name of the store's ref; without it the run's own, or the only one there is."),
]
SplitOption = Annotated[str, typer.Option("--split", help="Split to measure on.")]
DeviceOption = Annotated[DeviceChoice, typer.Option("--device", help="auto takes CUDA where there is any.")]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Of the student; auto takes bfloat16 where the device computes in it."),
]
EmaOption = Annotated[
    bool, typer.Option("--ema", help="Take the moving average of the weights, which optim.ema keeps.")
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="Of a file: the folder that its results go to.")
]
TextOption = Annotated[Path | None, typer.Option("-o", "--output", help="A file in place of standard output.")]

UpOption = Annotated[
    str | None,
    typer.Option("--up", metavar="AXIS", help="The files' up axis: y, z, -z, ...; without, by format, or guessed."),
]
FrontOption = Annotated[
    str | None,
    typer.Option("--front", metavar="AXIS", help="The files' front axis; without, the one that goes with the up axis."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAMES",
        help="Of NPY, XYZ and TXT files: what every column is, as x,y,z,r,g,b; without, as a comment above the numbers "
        "says, or x, y, z and nothing more.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FOLDER", help="Where the teachers' files lie; without, as the run has it."),
]


def answer(found: Sequence[str] | dict[str, Any]) -> None:
    """What a command was asked for, on standard output: lines for people, or a document for programs."""
    if isinstance(found, dict):
        typer.echo(json.dumps(found, indent=1))
        return
    for line in found:
        typer.echo(shown(line, lines=True))


def numbers(option: str, text: str, least: int = 0) -> list[int]:
    """ "0,1,2" or "0-2" -> [0, 1, 2], ascending; UserError for anything else, naming the option."""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found |= {int(number) for number in range(int(first), int(last) + 1)} if dash else {int(first)}
    except ValueError:
        found = set()
    if not found or min(found) < least:
        raise UserError(f"{option} {text}: write whole numbers from {least} on with commas between, e.g. 1,2,4 or 1-4")
    return sorted(found)
