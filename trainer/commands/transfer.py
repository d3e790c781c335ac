"""Commands that train and test downstream: fine-tuning, few-shot, part segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recon.pipeline.base.console import Terminal, loading
from recon.pipeline.base.program import JsonOption
from recon.trainer.commands.options import (
    DeviceChoice,
    DeviceOption,
    LabelledStore,
    OutputOption,
    OverrideOption,
    PrecisionChoice,
    PrecisionOption,
    RecipeOption,
    RefOption,
    RunsOption,
    SeedsOption,
    SplitOption,
    answer,
    numbers,
)

if TYPE_CHECKING:  # torch takes seconds to import
    from recon.trainer.transfer import Job

FromOption = Annotated[
    Path | None, typer.Option("--from", metavar="RUN|FILE", help="The pretrained run or checkpoint to start from.")
]
ProtocolOption = Annotated[str | None, typer.Option(help="full, linear, mlp3 or peft; short for --set task.protocol.")]
ScratchOption = Annotated[
    bool, typer.Option("--scratch", help="Train the same from random weights too, as a baseline.")
]


def finetune(
    store: LabelledStore,
    run: RunsOption,
    recipe: RecipeOption,
    source: FromOption = None,
    protocol: ProtocolOption = None,
    seeds: SeedsOption = "0",
    scratch: ScratchOption = False,
    split: SplitOption = "test",
    overrides: OverrideOption = None,
    device: DeviceOption = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Train a classifier of a store's categories on a pretrained encoder, from each seed, and test it.

    The same command again goes on where it was stopped.
    """
    _run(
        "classify", store, run, recipe, source, _with_protocol(overrides, protocol), seeds, scratch, split, device, json
    )


def partseg(
    store: LabelledStore,
    run: RunsOption,
    recipe: RecipeOption,
    source: FromOption = None,
    seeds: SeedsOption = "0",
    scratch: ScratchOption = False,
    split: SplitOption = "test",
    overrides: OverrideOption = None,
    device: DeviceOption = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Train a segmenter of the parts of a store's shapes on a pretrained encoder, from each seed, and test it.

    The same command again goes on where it was stopped.
    """
    _run("segment", store, run, recipe, source, overrides or [], seeds, scratch, split, device, json)


def fewshot(
    store: LabelledStore,
    run: RunsOption,
    recipe: RecipeOption,
    source: FromOption = None,
    protocol: ProtocolOption = None,
    ways: Annotated[
        str | None, typer.Option("--way", metavar="N,...", help="Categories of a fold, where folds are drawn; else 5.")
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shot", metavar="N,...", help="Training shapes of each, where folds are drawn; else 10."),
    ] = None,
    folds: Annotated[str, typer.Option(metavar="N,...", help="Which folds: 0-9 is all ten.")] = "0-9",
    scratch: ScratchOption = False,
    overrides: OverrideOption = None,
    device: DeviceOption = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Train and test few-shot classifiers, one a fold: the store's published folds, or folds drawn by a seed.

    The same command again goes on where it was stopped.
    """
    with loading(Terminal(stderr=True)):
        from recon.trainer.training.peers import joined
    from recon.pipeline.store import FeatureStore
    from recon.trainer.transfer import jobs_of_folds, read_settings, starting_model

    asked = ways is not None or shots is not None
    settings = [
        (way, shot)
        for way in numbers("--way", ways or "5", least=2)
        for shot in numbers("--shot", shots or "10", least=1)
        if asked
    ]
    with joined(device.value):
        given = _with_protocol(overrides, protocol)
        config = read_settings(recipe, given, "classify", starting_model(source, recipe, given))
        chosen = numbers("--folds", folds)
        jobs = jobs_of_folds(run, FeatureStore.open(store), config, source, settings, chosen, scratch)
        _transfer(store, run, jobs, device, json)


def test(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A downstream run, or a fine-tuned checkpoint.")],
    store: LabelledStore,
    ref: RefOption = None,
    split: SplitOption = "test",
    votes: Annotated[int, typer.Option(min=0, help="Votes a shape; 0 takes it as it is alone.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="How often the voting is repeated.")] = 1,
    recipe: Annotated[
        str | None, typer.Option(help="Of a file: the recipe that says how its shapes are taken.")
    ] = None,
    classes: Annotated[
        str, typer.Option(metavar="NAME,...", help="Of a file: its outputs' classes in order, or the store's.")
    ] = "",
    output: OutputOption = None,
    overrides: OverrideOption = None,
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.float32,
    json: JsonOption = False,
) -> None:
    """Test a fine-tuned or segmentation model on a labelled store, by voting too: mean and best of it told apart."""
    from recon.pipeline.base.precision import decide

    with loading(Terminal(stderr=True)):
        from recon.trainer.evaluate.testing import test_weights
    from recon.trainer.training.pretraining import choose_device

    target = choose_device(device.value)
    decision = decide(precision.value, target.type, "--precision auto")
    named = [name for name in classes.split(",") if name]
    found = test_weights(
        source, store, target, decision, ref, split, recipe, overrides or [], named, votes, repeats, output
    )
    answer(found if json else _tested_lines(found))


def _tested_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{name.replace('_', ' '):>30} {100 * found[name]:.2f}"
        for name in ("accuracy", "instance_miou", "class_miou")
        if name in found
    ]
    voting = found.get("voting", {})
    for name in (name for name in ("accuracy", "instance_miou", "class_miou") if name in voting):
        told, what = voting[name], f"{name.replace('_', ' ')}, {voting['votes']} votes"
        lines.append(f"{what:>30} {100 * told['mean']:.2f} ± {100 * told['std']:.2f} over {told['n']}")
        if told["n"] > 1:
            lines.append(f"{'best, chosen on this split':>30} {100 * told['max']:.2f}")
    return [*lines, f"{'per cent on':>30} {found['split']} of {found['store']}, {found['ref']}"]


def _with_protocol(overrides: list[str] | None, protocol: str | None) -> list[str]:
    return [*(overrides or []), *([f"task.protocol={protocol}"] if protocol else [])]


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
    with loading(Terminal(stderr=True)):
        from recon.trainer.training.peers import joined
    from recon.trainer.transfer import jobs_of_seeds, read_settings, starting_model

    with joined(device.value):
        config = read_settings(recipe, overrides, kind, starting_model(source, recipe, overrides))
        _transfer(
            store, run, jobs_of_seeds(run, config, source, numbers("--seeds", seeds), scratch, split), device, json
        )


def _transfer(store: Path, run: Path, jobs: list[Job], device: DeviceChoice, json: bool) -> None:
    from recon.trainer.training.distributed import rank
    from recon.trainer.transfer import summary, summary_lines, transfer

    console = Terminal(stderr=True) if rank() == 0 else Terminal(quiet=True, force_terminal=False)
    if status := transfer(console, store, jobs, device.value):
        raise typer.Exit(status)
    if rank() == 0:
        result = summary(run, jobs)
        answer(result if json else summary_lines(result))


COMMANDS = (finetune, fewshot, partseg, test)
