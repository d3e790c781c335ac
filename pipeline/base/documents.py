"""The one door for JSON that is kept and read back: bounded, strictly typed, and wrong in one line.

A form is a pydantic `TypeAdapter` of a `TypedDict`; `pipeline/store/forms.py` and `trainer/forms.py` hold them all. A
document comes from whoever sent the folder, so it may be of any size, depth and type: what is no such form ends in a
`BadDocument` that names file and field, before anything of it is used.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from recon.pipeline.base.errors import MachineError

T = TypeVar("T")

MAX_BYTES = 24 << 20
"""Of one document, or of one line of a file of lines."""
MAX_BRACKETS = 500_000
"""Lists and objects in one document: 24 MB of empty ones would take gigabytes."""
_MOST_ERRORS = 1000  # that are looked through for the first
_WANTED = {
    "string_type": "should be a string",
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "missing": "is missing",
    "extra_forbidden": "is no field of such a file",
}
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD][89a-fA-F]..|.)", re.DOTALL)


class BadDocument(MachineError):
    """A document that cannot be read, or is not of its form: never a shape's fault.

    The message names file, field and what to do.
    """


class MissingDocument(BadDocument):
    """There is no such file."""


ANY = TypeAdapter(dict[str, Any])
"""An object, whatever is in it."""


def read_document(path: Path, form: TypeAdapter[T], mend: str) -> T:
    """The JSON document in a file; `mend` says what to do about a bad one.

    MissingDocument where there is no file, BadDocument for one that is unreadable, too large, or not of the form.
    """
    return parse_document(read_bounded(path, mend), form, path, mend)


def parse_document(content: bytes, form: TypeAdapter[T], where: object, mend: str) -> T:
    """The same of bytes at hand; `where` is what a line about them begins with."""
    if len(content) > MAX_BYTES or content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise BadDocument(f"{where}: larger than such a file can be; {mend}")
    try:
        return _validated(content, form)
    except ValidationError as error:
        raise BadDocument(f"{where}: {told(error)}; {mend}") from None


def check_value(value: Any, form: TypeAdapter[T], where: object, mend: str) -> T:
    """The same of plain values that were made of a document, such as an earlier version's brought up to date."""
    return parse_document(json.dumps(value).encode(), form, where, mend)


def read_toml(path: Path, mend: str) -> dict[str, Any]:
    """The TOML document in a file. MissingDocument and BadDocument as for JSON."""
    try:
        return tomllib.loads(read_bounded(path, mend).decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadDocument(f"{path}: not valid TOML: {error}; {mend}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"not UTF-8 at byte {error.start}"
        raise BadDocument(f"{path}: not valid TOML: {reason}; {mend}") from None


def read_bounded(path: Path, mend: str) -> bytes:
    """A regular file's bytes. MissingDocument, or BadDocument for what is no file, unreadable or too large."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or a pipe of that name would be waited for
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BadDocument(f"{path}: is no file; {mend}")
            content = os.read(handle, min(status.st_size, MAX_BYTES) + 1)  # whole: of a file one call reads all
        finally:
            os.close(handle)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingDocument(f"{path}: cannot be read: there is no such file; {mend}") from None
    except OSError as error:
        raise BadDocument(f"{path}: cannot be read ({error.strerror or error}); {mend}") from error
    if len(content) > MAX_BYTES:
        raise BadDocument(f"{path}: larger than such a file can be; {mend}")
    return content


def read_lines(path: Path, form: TypeAdapter[T], mend: str) -> Iterator[T]:
    """The documents in a file of one a line. BadDocument names the first line that is none; for a missing file too."""
    for number, line in enumerate(bounded_lines(path, mend), 1):
        yield parse_document(line, form, f"{path}: line {number}", mend)


def bounded_lines(path: Path, mend: str) -> Iterator[bytes]:
    """Lines of a file with their ends; one that is too long comes in pieces, none of which is a document."""
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_BYTES):
                yield line
    except OSError as error:
        raise BadDocument(f"{path}: cannot be read ({error.strerror or error}); {mend}") from error


def is_cut_off(line: bytes) -> bool:
    """Whether a line is a document, or the beginning of one."""
    try:
        ANY.validate_json(line)
    except ValidationError as error:
        return any("EOF while" in each["msg"] for each in error.errors(include_url=False, include_input=False))
    return True


def told(error: ValidationError) -> str:
    """The first thing that is wrong, as "field: what it should be", on one line."""
    if error.error_count() > _MOST_ERRORS:
        return f"more than {_MOST_ERRORS} of its fields are not what they should be"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(_shortened(str(part)) for part in first["loc"])
    return f"{where}: {_said(first)}" if where else _said(first)


def _said(error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        return error["msg"].replace("Invalid JSON", "not valid JSON")
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return _WANTED.get(error["type"], message)


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}..."


def _validated(content: bytes, form: TypeAdapter[T]) -> T:
    try:
        return form.validate_json(content, strict=True)
    except ValidationError:
        # Names of files that are no UTF-8 were written with half of a pair, which Python's reader takes and others not.
        whole = _ESCAPES.sub(_paired, content) if b"\\ud" in content or b"\\uD" in content else content
        if whole == content:
            raise
    return form.validate_json(whole, strict=True)


def _paired(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if len(escape[0]) == 6 else escape[0]
