"""Commands that train."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recon.pipeline.base.console import Terminal, loading
from recon.pipeline.base.program import JsonOption
from recon.trainer.commands.options import (
    DeviceChoice,
    DeviceOption,
    OverrideOption,
    RecipeIfAny,
    RecipeOption,
    RunsOption,
    SeedsOption,
    answer,
    numbers,
)


class TeachersChoice(StrEnum):
    """Where targets come from."""

    stored = "stored"
    online = "online"


def pretrain(
    store: Annotated[
        list[Path],
        typer.Option("--store", "-s", help="Feature store that recon-pipeline filled; repeatable: several are mixed."),
    ],
    run: Annotated[Path, typer.Option(help="Folder for settings, metrics and checkpoints.")],
    recipe: RecipeIfAny = None,
    overrides: OverrideOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    device: DeviceOption = DeviceChoice.auto,
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
    with loading(Terminal(stderr=True)):
        from recon.trainer.training.distributed import rank
        from recon.trainer.training.peers import joined
        from recon.trainer.training.pretraining import pretrain as train

    online = [f"data.online={str(teachers == TeachersChoice.online).lower()}"] if teachers else []
    with joined(device.value):
        console = Terminal(stderr=True) if rank() == 0 else Terminal(quiet=True, force_terminal=False)
        settings = [*(overrides or []), *online]
        status = train(console, store, run, recipe, settings, resume, overwrite, device.value, profile)
    raise typer.Exit(status)


def ablate(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="One of `recon-train ablations`, or a TOML file.")],
    store: Annotated[Path, typer.Option("--store", "-s", help="Feature store that recon-pipeline filled.")],
    run: RunsOption,
    recipe: RecipeOption = "demo",
    seeds: SeedsOption = "0-2",
    arms: Annotated[
        str, typer.Option(metavar="ARM,...", help="Some of its arms, as `ablations NAME` writes them; all without.")
    ] = "",
    overrides: OverrideOption = None,
    device: DeviceOption = DeviceChoice.auto,
    json: JsonOption = False,
) -> None:
    """Pretrain and probe the arms of an ablation from several seeds, and set them beside each other.

    The same command again goes on where it was stopped.
    """
    from recon.trainer.ablate import ablate as measure
    from recon.trainer.ablate import gather
    from recon.trainer.show.ablation import ablation_table

    chosen, settings = numbers("--seeds", seeds), overrides or []
    named = [arm.strip() for arm in arms.split(",") if arm.strip()]
    console = Terminal(stderr=True, soft_wrap=True)
    if status := measure(console, store, run, name, recipe, settings, chosen, device.value, named):
        raise typer.Exit(status)
    result = gather(run, name, recipe, settings, chosen, named)
    answer(result if json else ablation_table(result).splitlines())


def ablations(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="One of them, or a TOML file, whose arms to list.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the shipped ablations, or the arms of one."""
    from recon.trainer.ablate import describe, list_ablations, load_ablation

    if name is None:
        found = list_ablations()
        answer(found if json else [f"{name:14}  {description}" for name, description in found.items()])
        return
    arms, description = {arm.folder: arm.settings for arm in load_ablation(name).arms}, describe(name)
    width = max(map(len, arms))
    lines = [f"{arm:{width}}  {' '.join(settings) or 'as the recipe'}" for arm, settings in arms.items()]
    told = [description, ""] if description else []
    answer({"description": description, "arms": arms} if json else [*told, *lines])


COMMANDS = (pretrain, ablate, ablations)
