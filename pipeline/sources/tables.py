"""Lists that come with data sets: CSV, JSON and lines of text, read strictly; what is wrong is named by its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import posixpath
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import nearest

MAX_LIST_BYTES = 1 << 28  # unpacked; the longest known list, Objaverse's, has 50 MB
MAX_UNPACKING = 100  # times a packed list's own size, beyond FEW_BYTES; lists of names unpack to ten times it
FEW_BYTES = 1 << 23
SPLITS = ("train", "val", "test")  # as most lists call them


def read_text(path: Path) -> str:
    """A whole UTF-8 file, unpacked where its name ends in .gz. UserError when it is missing, too large or no text."""
    packed, most = path.suffix == ".gz", MAX_LIST_BYTES
    try:
        if packed:
            most = min(most, max(FEW_BYTES, MAX_UNPACKING * path.stat().st_size))
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"no list {path}: put it there; the manifest's `obtain` may say where it comes from") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if len(content) > most:
        what = "unpacks to more than" if packed else "is larger than"
        raise UserError(f"{path}: {what} {most >> 20} MB, which no list does")
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}; save it as UTF-8") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, line) of every line that is not blank, without the space around it."""
    numbered = enumerate(read_text(path).split("\n"), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def read_csv(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of every row of a CSV file whose first row names its columns, in any order.

    Cells lose the space around them; optional columns that the file lacks are absent. UserError for a column that is
    unknown, doubled or missing, and for a row with more or fewer cells than there are columns.
    """
    known, rows = (*required, *optional), _cells(path)
    if not rows:
        raise UserError(f"{path}: empty; its first line must name the columns {', '.join(required)}")
    line, header = rows[0]
    for name in header:
        if name not in known:
            raise UserError(f"{path}:{line}: unknown column {name!r}{nearest(name, known)}; use {', '.join(known)}")
        if header.count(name) > 1:
            raise UserError(f"{path}:{line}: column {name!r} is there twice; remove one")
    for name in required:
        if name not in header:
            raise UserError(f"{path}:{line}: column {name!r} is missing; the first line must name it")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise UserError(f"{path}:{number}: {len(cells)} cells for {len(header)} columns; quote cells with commas")
    return [(number, dict(zip(header, cells, strict=True))) for number, cells in rows[1:]]


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row of a CSV file that is not blank, without the space around each cell."""
    reader, rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True), []
    try:
        first = 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((first, [cell.strip() for cell in cells]))
            first = reader.line_num + 1  # a quoted cell may go over several lines
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error
    return rows


def read_json(path: Path) -> Any:
    """A JSON document. UserError where it is malformed or an object has one key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise UserError(f"{path}: key {twice!r} is there twice; remove one")
        return found

    try:
        return json.loads(read_text(path), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a list") from None


def inside(text: str, where: str, suffixes: Sequence[str]) -> str:
    """A path that a list names, tidied. UserError (starting with `where`) unless it stays under the root and is a file
    of one of the kinds.
    """
    tidy = posixpath.normpath(text) if "//" in text or "." in text[:1] or "/." in text else text  # a million of them
    if tidy in ("", "."):
        raise UserError(f"{where}: empty; name a file under the root")
    if not text.isprintable():
        raise UserError(f"{where}: {text!r} holds a control character; rename the file")
    if tidy == ".." or tidy.startswith(("/", "../")):
        raise UserError(f"{where}: {text!r} leaves the root; paths are relative to it")
    if not tidy.lower().endswith(tuple(suffixes)):
        raise UserError(f"{where}: no reader for {text!r}; use {', '.join(suffixes)}")
    return tidy
