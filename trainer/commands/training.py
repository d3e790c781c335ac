"""Commands that train."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recon.trainer.commands.options import DeviceChoice, OverrideOption, numbers


class TeachersChoice(StrEnum):
    """Where targets come from."""

    stored = "stored"
    online = "online"


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
    from recon.trainer.draws import measure_draws

    ks, chosen = numbers("--draws", counts, least=1), numbers("--seeds", seeds, least=0)
    console = Console(stderr=True, soft_wrap=True)
    raise typer.Exit(measure_draws(console, store, run, recipe, overrides or [], ks, chosen, device.value))


COMMANDS = (pretrain, draws)
