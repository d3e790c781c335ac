"""Options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


OverrideOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated.")
]


StoreOption = Annotated[Path, typer.Option(help="The store the run was trained on.")]
LabelledOption = Annotated[Path, typer.Option(help="A store with splits train and test: the run's or another.")]
RefOption = Annotated[
    str | None, typer.Option(help="Name of the store's ref; without it the run's own, or the only one there is.")
]
SplitOption = Annotated[str, typer.Option(help="Split to measure on; the SVM is fitted on train.")]
RunOption = Annotated[Path, typer.Option(help="The run's folder.")]
ProbeDevice = Annotated[DeviceChoice, typer.Option(help="auto takes CUDA where there is any.")]

ProbePrecision = Annotated[
    PrecisionChoice, typer.Option(help="Of the student; auto takes bfloat16 where the device computes in it.")
]
EmaOption = Annotated[
    bool, typer.Option("--ema", help="Take the moving average of the weights, which optim.ema keeps.")
]
