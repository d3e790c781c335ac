"""The `recon-train` command line. Each command imports what it needs, so `--help` answers without loading torch."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.errors import UserError

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


@app.command()
def pretrain(
    store: Annotated[Path, typer.Option(help="Feature store that recon-pipeline filled.")],
    run: Annotated[Path, typer.Option(help="Folder for settings, metrics and checkpoints.")],
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe (see `recipes`) or a TOML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    device: Annotated[DeviceChoice, typer.Option(help="auto takes CUDA where there is any.")] = DeviceChoice.auto,
) -> None:
    """Train ReCon on cached teacher targets.

    Ctrl-C saves a checkpoint and exits with 130; the same command with --resume goes on from there.
    """
    from trainer.loop import pretrain as train

    console = Console(stderr=True)
    status = train(console, store, run, recipe, overrides or [], resume, overwrite, device.value)
    raise typer.Exit(status)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from trainer.config import list_recipes

    console = Console(soft_wrap=True, highlight=False)
    for name, description in list_recipes().items():
        console.print(f"[bold]{name:12}[/bold]  {description}")


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 1."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
