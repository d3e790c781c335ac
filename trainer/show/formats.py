"""Tables as markdown, CSV and LaTeX. What stands in them comes from files that others made: nothing in it is markup."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Literal

Format = Literal["markdown", "csv", "latex", "html"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "$": "&#36;",  # a backslash before it does not keep it from beginning a formula everywhere
    **{character: "\\" + character for character in "\\`*[]|~!"},
}


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], form: Format) -> str:
    """Rows of text below a header, as text that ends with a newline."""
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *([_for_csv(cell) for cell in row] for row in rows)])
        return buffer.getvalue()
    if form == "latex":
        first, *others = (" & ".join(map(latex, row)) + r" \\" for row in (header, *rows))
        begin = rf"\begin{{tabular}}{{{'l' * len(header)}}}"
        return "\n".join([begin, r"\hline", first, r"\hline", *others, r"\hline", r"\end{tabular}", ""])
    lines = [f"| {' | '.join(map(markdown, row))} |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{' --- |' * len(header)}", *lines[1:]]) + "\n"


def markdown(text: str) -> str:
    """Text that stands in a line or a cell of markdown as it is."""
    # Between letters an underscore is one; elsewhere it would begin emphasis.
    escaped = "".join(_MARKDOWN.get(character, character) for character in one_line(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def latex(text: str) -> str:
    """Text that stands in a line or a cell of LaTeX as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Text without line ends and control characters, which would end a cell or steer a terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _for_csv(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    cell = one_line(text)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
