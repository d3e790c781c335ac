"""What a run shows of itself while it trains: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from recon.pipeline.base.wording import brief, shown

Clock = Callable[[], float]

_REFRESH = 0.5  # seconds between looks at the loss for the bar, each of which waits for the device
_FIRST_LINE, _LINE_EVERY = 5.0, 60.0  # seconds before the first line, and from one to the next
_WINDOW = 60.0  # seconds the rate is taken over
_PAUSE = 10.0  # a step that takes this many seconds, and as many times what steps take, is a process that stood still


class Pace:
    """Steps a second over the last minute of this session; what the process stood still for is left out."""

    def __init__(self, step: int, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._noted = (clock(), step)
        self._marks = deque([self._noted])  # a second apart or more
        self.rate = 0.0

    def note(self, step: int) -> None:
        """Call after every step."""
        now, (then, before) = self._clock(), self._noted
        usual = (step - before) / self.rate if self.rate else now - then
        if now - then > _PAUSE * max(1.0, usual):
            self._marks = deque((time + now - then - usual, at) for time, at in self._marks)
        while len(self._marks) > 2 and self._marks[0][0] < now - _WINDOW:
            self._marks.popleft()
        begun, first = self._marks[0]
        self.rate = (step - first) / max(now - begun, 1e-9)
        if now - self._marks[-1][0] >= 1:
            self._marks.append((now, step))
        self._noted = (now, step)


class Bar(Progress):
    """A bar with a line of details below it."""

    details = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar's table, then the details, cut off where the terminal ends."""
        yield self.make_tasks_table(self.tasks)
        if self.details:
            yield Text(self.details, no_wrap=True, overflow="ellipsis", style="dim")


class TrainingProgress:
    """Called after every step; the rate and the time left are those of the last minute."""

    def __init__(
        self, console: Console, start: int, total: int, batch_size: int, clock: Clock = time.monotonic
    ) -> None:
        self._console, self._total, self._batch_size, self._clock = console, total, batch_size, clock
        self._pace = Pace(start, clock)
        self._due = clock() + (_REFRESH if console.is_terminal else _FIRST_LINE)
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self._bar = Bar(*columns, TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=total, completed=start, left="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, step: int, describe: Callable[[], str], details: Callable[[], str]) -> None:
        """`describe` says how the run stands, `details` more of it; both are asked only when something is shown."""
        self._pace.note(step)
        shows = self._console.is_terminal
        if self._clock() < self._due and not (shows and step == self._total):
            if shows:
                self._bar.update(self._task, completed=step)
            return
        self._due = self._clock() + (_REFRESH if shows else _LINE_EVERY)
        told = f"{describe()}, {brief(self._pace.rate * self._batch_size)} samples/s"
        left = f"{timedelta(seconds=round((self._total - step) / max(self._pace.rate, 1e-9)))} left"
        if shows:
            self._bar.details = shown(details())
            self._bar.update(self._task, completed=step, description=told, left=left)
        else:
            line = f"step {step}/{self._total}, {told}, {left}, {details()}"
            self._console.print(line, highlight=False, soft_wrap=True)
