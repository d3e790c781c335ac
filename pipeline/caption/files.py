"""Captions that somebody else wrote, from a CSV or JSON-lines file."""

from __future__ import annotations

import csv
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.words import single_spaced

_HEADER = ["uid", "caption"]


@dataclass
class Found:
    """What a file says of the shapes asked for."""

    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By uid, in the file's order, each once."""
    lines: int = 0
    blank: int = 0
    """Lines without a word."""
    strange: int = 0
    """Lines whose uid no shape has."""
    example: str = ""
    """The first such uid."""

    def notes(self, path: Path) -> list[str]:
        """What should be known of the lines that were left out."""
        left = []
        if self.strange:
            left.append(
                f"{path}: {self.strange} of {self.lines} captions are of no shape of this data set, "
                f"such as {self.example!r}"
            )
        if self.blank:
            left.append(f"{path}: {self.blank} of {self.lines} captions are blank")
        return left


def read_captions(path: Path, uids: Container[str], other_names: Mapping[str, str] | None = None) -> Found:
    """The captions of `uids` in a file; several lines of one uid are several captions.

    other_names: name -> uid of shapes that the file may call by another name, which is no uid.

    .csv: two columns, uid and caption; a first line that says so is a header. .jsonl: objects with those fields, others
    are passed over. UserError names the file and the line.
    """
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: captions come as .csv (uid,caption) or .jsonl")
    found = Found()
    captions: dict[str, dict[str, None]] = {}
    try:
        for name, caption in reader(path):
            found.lines += 1
            uid = (other_names or {}).get(name, name)
            text = single_spaced(caption)
            if uid not in uids:
                found.strange += 1
                found.example = found.example or uid
            elif not text:
                found.blank += 1
            else:
                captions.setdefault(uid, {})[text] = None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a path is relative to --root") from error
    if not found.lines:
        raise UserError(f"{path}: holds no caption")
    found.captions = {uid: tuple(texts) for uid, texts in captions.items()}
    return found


def _csv_lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for number, line in enumerate(reader):
                if not line or (number == 0 and [cell.strip().lower() for cell in line] == _HEADER):
                    continue
                if len(line) != 2:
                    raise UserError(
                        f"{path}:{reader.line_num}: {len(line)} columns instead of uid,caption; "
                        "a caption with a comma stands in quotes"
                    )
                yield line[0], line[1]
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from error
            cells = [entry.get(name) if isinstance(entry, dict) else None for name in _HEADER]
            if not all(isinstance(cell, str) for cell in cells):
                raise UserError(f'{path}:{number}: each line is an object with strings "uid" and "caption"')
            yield str(cells[0]), str(cells[1])
