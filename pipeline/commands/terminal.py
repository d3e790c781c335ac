"""What people see: answers on standard output, which --json makes a document; progress and errors on standard error."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from recon.pipeline.base.console import Terminal
from recon.pipeline.base.wording import brief, shown

console = Terminal(stderr=True, highlight=False, soft_wrap=True, emoji=False)

ManifestOption = Annotated[
    Path, typer.Option("--manifest", "-m", help="The data set's TOML file, or a shipped one's name.")
]
StoreOption = Annotated[Path, typer.Option("--store", "-s", help="The Zarr store.")]
RootOption = Annotated[Path | None, typer.Option(help="Where the data set's files lie.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the manifest's first N shapes.")]
RefOption = Annotated[str | None, typer.Option(help="Which manifest's keys; default: the store's only one.")]


_FIRST_LINE, _LINE_EVERY = 5.0, 60.0  # seconds before a stage's first line in a log, and from one to the next


class StageProgress:
    """A bar a stage on a terminal; in a log a line soon after the stage began, then one a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.clock = clock
        self.tasks: dict[str, tuple[TaskID, float, int]] = {}
        """By stage: its bar, when it began, and what was done by then."""
        self.due = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Call when the stage begins and whenever more of it is done."""
        now = self.clock()
        if stage not in self.tasks:
            self.tasks[stage] = (self.bars.add_task(stage, total=total, completed=done, rate="", left=""), now, done)
            self.due = now + _FIRST_LINE
        task, began, before = self.tasks[stage]
        rate = left = ""
        if done > before:
            # Of the whole stage: workers finish their first shards together, and a short window would see only that.
            seconds = max(now - began, 1e-9) / (done - before)
            rate, left = f"{brief(1 / seconds)}/s", f"about {timedelta(seconds=round((total - done) * seconds))} left"
        self.bars.update(task, completed=done, total=total, rate=rate, left=left)
        if not console.is_terminal and now >= self.due and rate and done < total:
            self.due = now + _LINE_EVERY
            console.print(f"{stage}: {done}/{total}, {rate}, {left}")


def say(lines: Sequence[str]) -> None:
    """What a run has to tell, line by line: on standard error."""
    for line in lines:
        console.print(shown(line))


def answer(lines: Sequence[str], mark: str = "") -> None:
    """What a command was asked for, line by line: on standard output, each behind a mark that may be coloured."""
    for line in lines:
        typer.echo(mark + shown(line))


def emit(value: Any) -> None:
    """A JSON document on standard output; dataclasses become objects."""
    typer.echo(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
