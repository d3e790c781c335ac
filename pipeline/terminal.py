"""What people see: answers on standard output, which --json makes a document; progress and errors on standard error."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

ManifestOption = Annotated[Path, typer.Option("--manifest", "-m", help="The data set's TOML file.")]
StoreOption = Annotated[Path, typer.Option("--store", "-s", help="The Zarr store.")]
RootOption = Annotated[Path | None, typer.Option(help="Where the data set's files lie.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the manifest's first N shapes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RefOption = Annotated[str | None, typer.Option(help="Which manifest's keys; default: the store's only one.")]


class StageProgress:
    """A bar a stage on a terminal; one line a minute in a log."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, tuple[TaskID, float]] = {}
        self.last_line = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self.tasks:
            self.tasks[stage] = (self.bars.add_task(stage, total=total, rate=""), now)
        task, started = self.tasks[stage]
        rate = done / max(now - started, 1e-9)
        self.bars.update(task, completed=done, total=total, rate=f"{rate:.1f}/s" if done else "")
        if not console.is_terminal and now - self.last_line >= 60:
            self.last_line = now
            left = (total - done) / rate if done else float("nan")
            console.print(f"{stage}: {done}/{total}, {rate:.1f}/s, about {left:.0f} s left")


def say(lines: Sequence[str]) -> None:
    """What a run has to tell, line by line: on standard error."""
    for line in lines:
        console.print(line, markup=False)


def answer(lines: Sequence[str]) -> None:
    """What a command was asked for, line by line: on standard output."""
    for line in lines:
        typer.echo(line)


def emit(value: Any) -> None:
    """A JSON document on standard output; dataclasses become objects."""
    typer.echo(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def human(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
