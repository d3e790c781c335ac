"""How things are said to people: an error in a line, numbers in units, near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from recon.pipeline.base.errors import UserError

# C0 and C1, among them what begins a terminal's commands; what turns or hides the text around it; halves of pairs.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def shown(text: str, lines: bool = False) -> str:
    """A text for a terminal, in which what cannot be seen is spelt out as JSON does; `lines`: of several lines."""
    return _UNSEEN.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _spelt(found[0]), text)


def _spelt(character: str) -> str:
    return _SHORT.get(character, f"\\u{ord(character):04x}")


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


def near_paths(path: Path, is_one: Callable[[Path], bool]) -> str:
    """ " (did you mean x?)" for what lies beside a path that does not serve, else " (beside it: x, y)" or nothing."""
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name and is_one(entry))
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=1)
    if close:
        return f" (did you mean {path.parent / close[0]}?)"
    return f" (beside it: {some(beside)})" if beside else ""


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
