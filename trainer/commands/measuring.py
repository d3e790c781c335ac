"""Commands that measure a trained student."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recon.pipeline.base.console import Terminal, loading
from recon.pipeline.base.precision import Decision, decide
from recon.pipeline.base.program import JsonOption
from recon.trainer.commands.options import (
    DeviceChoice,
    DeviceOption,
    EmaOption,
    FileOverrideOption,
    LabelledStore,
    OutputOption,
    PrecisionChoice,
    PrecisionOption,
    ProtocolChoice,
    RefOption,
    RunOption,
    SplitOption,
    StudentOption,
    answer,
)

if TYPE_CHECKING:  # torch takes seconds to import
    import torch


def svm(
    store: LabelledStore,
    run: StudentOption,
    ref: RefOption = None,
    split: SplitOption = "test",
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.float32,
    ema: EmaOption = False,
    output: OutputOption = None,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a linear SVM on the frozen features of split train: the student's, and the same student's before training."""
    with loading(Terminal(stderr=True)):
        from recon.trainer.evaluate.svm import run_svm

    measure = partial(run_svm, split=split, ema=ema, output=output, overrides=overrides or [])
    _measure(measure, run, store, ref, device, precision, json)


def zeroshot(
    store: LabelledStore,
    run: StudentOption,
    ref: RefOption = None,
    split: SplitOption = "test",
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.float32,
    ema: EmaOption = False,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEMPLATE", help="One of the ref's templates alone, instead of all of them.")
    ] = None,
    text_weight: Annotated[
        float | None, typer.Option(help="Of the text query's answer beside the image query's; else the protocol's.")
    ] = None,
    protocol: Annotated[
        ProtocolChoice, typer.Option(help="Whose evaluation: its axes, colours, points, prompts and text weight.")
    ] = ProtocolChoice.recon,
    draws: Annotated[
        int, typer.Option(min=1, help="Times that points are drawn: the mean and the spread are told.")
    ] = 1,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a file: the store's text teacher that its text query learnt.")
    ] = None,
    output: OutputOption = None,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Classify by class prompts alone: the student, the same student before training, and the image teacher."""
    with loading(Terminal(stderr=True)):
        from recon.trainer.evaluate.zero_shot import run_zero_shot

    measure = partial(
        run_zero_shot, split=split, ema=ema, prompt=prompt, text_weight=text_weight, output=output,
        overrides=overrides or [], teacher=teacher, protocol=protocol.value, draws=draws,
    )  # fmt: skip
    _measure(measure, run, store, ref, device, precision, json)


def probe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Python file with a function `predict`.")],
    store: LabelledStore,
    run: StudentOption,
    ref: RefOption = None,
    split: SplitOption = "test",
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.float32,
    ema: EmaOption = False,
    output: OutputOption = None,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Measure by a probe of one's own, on the student and the same student before training; runs the file's code."""
    with loading(Terminal(stderr=True)):
        from recon.trainer.evaluate.own import run_own

    own = partial(run_own, file=file, split=split, ema=ema, output=output, overrides=overrides or [])
    _measure(own, run, store, ref, device, precision, json)


def nameparts(
    store: Annotated[Path, typer.Option("--store", "-s", help="A store of shapes with named parts, lifted.")],
    ref: RefOption = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose lifted features; without, the first that is lifted.")
    ] = None,
    split: SplitOption = "test",
    prompt: Annotated[
        str | None, typer.Option(metavar="TEMPLATE", help="With {part} and {category}; without, one of both.")
    ] = None,
    weights: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the teacher's files lie; without, in the current folder.")
    ] = Path(),
    device: DeviceOption = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Name the parts of shapes by words alone: a teacher's features of points against the names; without a student."""
    with loading(Terminal(stderr=True)):
        from recon.trainer.evaluate.part_names import PROMPT, name_parts
        from recon.trainer.training.pretraining import choose_device

    found = name_parts(store, choose_device(device.value), ref, teacher, split, prompt or PROMPT, weights)
    numbers = [f"{name:>30} {value:.4f}" for name, value in found.items() if isinstance(value, float)]
    answer(found if json else [f"{'shapes':>30} {found['shapes']}", *numbers])


def report(
    store: Annotated[Path, typer.Option("--store", "-s", help="The store the run was trained on.")],
    run: RunOption,
    json: JsonOption = False,
) -> None:
    """Write the run's metrics.json and report.html from what training left there and whatever was measured."""
    from recon.trainer.show.report import write_report

    metrics = write_report(run, store)
    answer(metrics if json else headlines(metrics))
    console = Terminal(stderr=True, soft_wrap=True)
    for name in metrics["left_out"]:
        console.print(f"left out, as other weights than the newest were measured: {name}")
    for each in metrics["stores"]:
        on_it = "; ".join(each["measured"]) or "nothing; name its store with --store to `svm` or `zeroshot`"
        console.print(f"learnt from ref {each['ref']} ({each['share']:.0%} of the samples), measured on it: {on_it}")
    console.print(f"wrote {run / 'metrics.json'} and {run / 'report.html'}")


Measure = Callable[[Path, Path, "torch.device", str | None, Decision], dict[str, Any]]


def _measure(
    measure: Measure,
    run: Path,
    store: Path,
    ref: str | None,
    device: DeviceChoice,
    precision: PrecisionChoice,
    json: bool,
) -> None:
    """Run a probe and tell what it found."""
    from recon.trainer.checkpoints.checkpoint import read_record
    from recon.trainer.evaluate.results import which_store
    from recon.trainer.training.pretraining import choose_device

    target = choose_device(device.value)
    decision = decide(precision.value, target.type, "--precision auto")
    if decision.note:
        Terminal(stderr=True, highlight=False, soft_wrap=True).print(decision.note)
    found = measure(run, store, target, ref, decision)
    if run.is_dir() and (which := which_store(found, read_record(run)["data"])):
        Terminal(stderr=True, highlight=False, soft_wrap=True).print(which)
    # Which words a file's student is held against is its user's word: it is said where it was taken.
    words = [f"{'words of':>30} {found['text_teacher']}"] if "model" in found and "text_teacher" in found else []
    answer(found if json else [*headlines(found), *words, f"{'precision':>30} {decision}"])


def headlines(result: dict[str, Any]) -> list[str]:
    """The numbers that a result is about, one a line; of several draws with their standard deviation."""
    spread = {name: f" ± {each['std']:.4f} of {each['n']} draws" for name, each in result.get("draws", {}).items()}
    return [
        f"{name:>30} {value:.4f}{spread.get(name, '')}"
        for name, value in result.items()
        if name.startswith(("svm_", "zero_shot_", "teacher_", "chance", "accuracy")) and value is not None
    ]


COMMANDS = (svm, zeroshot, probe, nameparts, report)
