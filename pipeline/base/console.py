"""What writes to a terminal: names and reasons out of other people's files must not steer it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from recon.pipeline.base.wording import shown


class Terminal(Console):
    """A console whose texts are shown as they are: control characters spelt out, no markup unless it is asked for."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does it otherwise; line ends in a text stay."""
        told = (shown(each, lines=True) if isinstance(each, str) else each for each in objects)
        super().print(*told, **{"markup": False, **options})


@contextmanager
def loading(console: Console) -> Iterator[None]:
    """Something to look at on a terminal while libraries are imported and models read, which takes seconds."""
    if not console.is_terminal:
        yield
        return
    with console.status("loading"):
        yield
