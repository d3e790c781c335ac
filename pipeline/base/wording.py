"""How things are said to people: an error in a line, numbers in units, near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from recon.pipeline.base.errors import UserError


def one_line(error: Exception) -> str:
    """What an exception says, with its type where a user would not expect it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def said(error: Exception) -> str:
    """The first line of what a library says went wrong, with the next where that only announces it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    line = " ".join(part.strip() for part in lines[: 2 if lines[0].endswith(":") else 1])
    return line if len(line) <= 300 else f"{line[:300]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for a near miss, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def some(names: Sequence[str], total: int | None = None, most: int = 3) -> str:
    """The first few of many names and how many more there are; `total` where only the first were kept."""
    left = (len(names) if total is None else total) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def brief(rate: float) -> str:
    """A rate in three digits, or in whole numbers where it has more."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def human(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
