"""The `recon-train` command line. Each command imports what it needs, so `--help` answers without loading torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import use_allowed_cores
from recon.pipeline.base.precision import Decision, decide

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

app = typer.Typer(
    help="Pretrain ReCon on a feature store and measure what it learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class DeviceChoice(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


OverrideOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated.")
]


class TeachersChoice(StrEnum):
    """Where targets come from."""

    stored = "stored"
    online = "online"


@app.command()
def pretrain(
    store: Annotated[Path, typer.Option(help="Feature store that recon-pipeline filled.")],
    run: Annotated[Path, typer.Option(help="Folder for settings, metrics and checkpoints.")],
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe (see `recipes`) or a TOML file.")] = None,
    overrides: OverrideOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    device: Annotated[DeviceChoice, typer.Option(help="auto takes CUDA where there is any.")] = DeviceChoice.auto,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time a few steps part by part into RUN/profile, and end.")
    ] = False,
    teachers: Annotated[
        TeachersChoice | None,
        typer.Option(help="Read features from the store, or run the teachers on every step (data.online)."),
    ] = None,
) -> None:
    """Train ReCon on its teachers' stored features, or with the teachers themselves.

    Ctrl-C saves a checkpoint and exits with 130; the same command with --resume goes on from there.
    """
    from recon.trainer.training.distributed import rank
    from recon.trainer.training.peers import joined
    from recon.trainer.training.pretraining import pretrain as train

    online = [f"data.online={str(teachers == TeachersChoice.online).lower()}"] if teachers else []
    with joined(device.value):
        console = Console(stderr=True) if rank() == 0 else Console(quiet=True, force_terminal=False)
        settings = [*(overrides or []), *online]
        status = train(console, store, run, recipe, settings, resume, overwrite, device.value, profile)
    raise typer.Exit(status)


class PrecisionChoice(StrEnum):
    """What to compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


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


@app.command()
def svm(
    store: LabelledOption,
    run: RunOption,
    ref: RefOption = None,
    split: SplitOption = "test",
    device: ProbeDevice = DeviceChoice.auto,
    precision: ProbePrecision = PrecisionChoice.float32,
    ema: EmaOption = False,
) -> None:
    """Fit a linear SVM on frozen features: the student's, and those of the same student before training."""
    from recon.trainer.evaluate.svm import run_svm

    _measure(partial(run_svm, split=split, ema=ema), run, store, ref, device, precision)


@app.command()
def zeroshot(
    store: LabelledOption,
    run: RunOption,
    ref: RefOption = None,
    split: SplitOption = "test",
    device: ProbeDevice = DeviceChoice.auto,
    precision: ProbePrecision = PrecisionChoice.float32,
    ema: EmaOption = False,
) -> None:
    """Classify by class prompts alone: the student, the same student before training, and the image teacher."""
    from recon.trainer.evaluate.zero_shot import run_zero_shot

    _measure(partial(run_zero_shot, split=split, ema=ema), run, store, ref, device, precision)


@app.command()
def report(store: StoreOption, run: RunOption) -> None:
    """Write the run's metrics.json and report.html from what training and both probes left there."""
    from recon.trainer.show.report import write_report

    _tell(write_report(run, store))
    Console(stderr=True, soft_wrap=True).print(f"wrote {run / 'metrics.json'} and {run / 'report.html'}", markup=False)


Measure = Callable[[Path, Path, "torch.device", str | None, Decision], dict[str, Any]]


def _measure(
    probe: Measure, run: Path, store: Path, ref: str | None, device: DeviceChoice, precision: PrecisionChoice
) -> None:
    """Run a probe and tell what it found."""
    from recon.trainer.training.pretraining import choose_device

    target = choose_device(device.value)
    decision = decide(precision.value, target.type, "--precision auto")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if decision.note:
        console.print(decision.note, markup=False)
    _tell(probe(run, store, target, ref, decision))
    console.print(f"{'precision':>30} {decision}", markup=False)


def _tell(result: dict[str, Any]) -> None:
    """The headline numbers, one a line."""
    console = Console(stderr=True, highlight=False)
    for name, value in result.items():
        if name.startswith(("svm_", "zero_shot_", "teacher_", "chance")):
            console.print(f"{name:>30} {value:.4f}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run's folder or a checkpoint file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write, .pth or .safetensors.")],
    ema: EmaOption = False,
) -> None:
    """Write a trained model as the public ReCon release writes its checkpoints: weights, no optimiser state."""
    from recon.trainer.checkpoints.export import export as write

    untold = ", ".join(f"{name}={value}" for name, value in write(source, output, ema).items())
    note = f"; the file does not tell {untold}: give that to load_model, and to the release in its settings"
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"wrote {output}{note if untold else ''}", markup=False)


@app.command()
def draws(
    store: Annotated[Path, typer.Option(help="Feature store with pictures and as many draws as are asked for.")],
    run: Annotated[Path, typer.Option(help="Folder for the runs and the result.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe (see `recipes`) or a TOML file.")] = "demo",
    counts: Annotated[
        str, typer.Option("--draws", metavar="K,...", help="Numbers of augmented draws to pretrain on.")
    ] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(metavar="SEED,...", help="Every arm is trained once with each.")] = "0,1,2",
    overrides: OverrideOption = None,
    device: Annotated[DeviceChoice, typer.Option(help="auto takes CUDA where there is any.")] = DeviceChoice.auto,
) -> None:
    """Measure how many cached draws it takes: K of them against teachers that run on every step, by both probes.

    The same command again goes on where it was stopped.
    """
    from recon.trainer.draws import measure_draws, numbers

    ks, chosen = numbers("--draws", counts, least=1), numbers("--seeds", seeds, least=0)
    console = Console(stderr=True, soft_wrap=True)
    raise typer.Exit(measure_draws(console, store, run, recipe, overrides or [], ks, chosen, device.value))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from recon.trainer.config import list_recipes

    console = Console(soft_wrap=True, highlight=False)
    for name, description in list_recipes().items():
        console.print(f"[bold]{name:12}[/bold]  {description}")


@app.command()
def config(
    recipe: Annotated[str, typer.Option(help="Name of a recipe (see `recipes`) or a TOML file.")],
    overrides: OverrideOption = None,
) -> None:
    """Print every setting of a run as a recipe: what is not given, with its default."""
    from recon.trainer.config import config_to_toml, load_config

    sys.stdout.write(config_to_toml(load_config(recipe, overrides or [])))


@app.command()
def sizes() -> None:
    """Count parameters and operations of each size, beside the paper's table; takes some seconds."""
    from recon.trainer.model.sizes import sizes_table

    console = Console(soft_wrap=True, highlight=False)
    for line in sizes_table():
        console.print(line, markup=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of two runs or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("compare.html"),
) -> None:
    """Put runs beside each other: settings that differ, last metrics, probes, and curves, in one page."""
    from recon.trainer.show.compare import write_comparison

    console = Console(stderr=True, soft_wrap=True)
    console.print(write_comparison(runs, output))
    console.print(f"wrote {output}", markup=False)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 1."""
    use_allowed_cores()
    if "RANK" in os.environ:  # several pages from each of several processes when one of them ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
