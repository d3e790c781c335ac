"""PLY files before trimesh reads them: what the header promises is held against what follows it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import (
    BREAKS,
    MAX_FACES,
    MAX_VERTICES,
    Budget,
    check_count,
    check_vertices,
    count_words,
)
from recon.pipeline.shapes.meshfile.colours import plain_names

MAX_HEADER_BYTES = 2**20
MAX_PROPERTIES = 1000  # of all elements; splats have some sixty
MAX_ROWS = MAX_FACES + MAX_VERTICES  # of all elements of a text: trimesh makes an array of each
CORNERS = ("vertex_index", "vertex_indices")
LINE = re.compile(rb"[^\n]*\n|[^\n]+$")
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "int64": "i8"}
TYPES |= {"uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8", "double": "f8"}


@dataclass
class _Element:
    """What a header says of one element: its properties' types, of a list that of its length before."""

    count: int
    types: dict[str, list[str]] = field(default_factory=dict)

    def corners(self) -> str:
        """Which property lists a face's corners; "" for none."""
        found = [name for name, types in self.types.items() if len(types) == 2]
        return next((name for name in found if name in CORNERS or len(self.types) == 1), "")


def guard_ply(content: bytes, budget: Budget) -> tuple[bytes, int]:
    """A PLY as trimesh understands it, and how many faces it promises.

    Raises MeshError for a header without an end, for counts that what follows cannot hold, and for too much of
    anything. A text loses the lines that are no element's: trimesh would make an array of each.
    """
    header, start = _header(content)
    if renamed := plain_names(header):
        head = content[:start]
        for line, plain in renamed.items():
            head = re.sub(
                rb"(?m)^[ \t]*" + rb"[ \t]+".join(map(re.escape, line.split())) + rb"[ \t]*(?=\r?$)", plain, head
            )
        content = head + content[start:]
        header, start = _header(content)
    elements = _elements(header[2:])
    num_faces, num_vertices = (elements[name].count if name in elements else 0 for name in ("face", "vertex"))
    check_count(num_faces)
    check_vertices(num_vertices)
    num_rows, num_bytes = sum(item.count for item in elements.values()), len(content) - start
    if num_rows > num_bytes:
        raise MeshError("unreadable", f"it promises {num_rows} rows in {num_bytes} bytes: cut off?")
    if len(header) > 1 and "ascii" in " ".join(header[1]).lower():
        content = content[:start] + _guard_rows(content[start:], elements, budget)
    else:
        order = ">" if len(header) > 1 and "big" in " ".join(header[1]).lower() else "<"
        _check_lists(content, start, elements, order)
    return content, num_faces


def _header(content: bytes) -> tuple[list[list[str]], int]:
    """The words of each line of a header but its last, and where what follows it begins."""
    lines: list[list[str]] = []
    start = 0
    for line in content[:MAX_HEADER_BYTES].split(b"\n"):
        words, start = line.decode("utf-8", "replace").split(), start + len(line) + 1
        if "end_header" in words:
            return lines, min(start, len(content))
        lines.append(words)
    raise MeshError("unreadable", f"it is no PLY file: no end_header in its first {MAX_HEADER_BYTES >> 10} kB")


def _elements(lines: list[list[str]]) -> dict[str, _Element]:
    """By name, as trimesh finds them."""
    found: dict[str, _Element] = {}
    name = ""
    for words in filter(None, lines):
        if "element" in words[0]:
            _, name, count = words
            found[name] = _Element(int(count))
            if found[name].count < 0:
                raise MeshError("unreadable", f"it promises {count} rows of {name!r}")
        elif "property" in words[0] and found:
            found[name].types[words[-1]] = [TYPES[word] for word in (words[1:-1] if len(words) == 3 else words[2:-1])]
    if sum(len(item.types) for item in found.values()) > MAX_PROPERTIES:
        raise MeshError("unreadable", f"its header names more than {MAX_PROPERTIES} properties")
    return found


def _guard_rows(body: bytes, elements: dict[str, _Element], budget: Budget) -> bytes:
    """One line a row of a text. MeshError where there are fewer, or fewer words in them than there are properties."""
    num_rows = sum(item.count for item in elements.values())
    if num_rows > MAX_ROWS:
        raise MeshError("unreadable", f"it promises {num_rows} rows; at most {MAX_ROWS} are read")
    if not body.isascii():
        raise MeshError("unreadable", "what follows its header is no plain text")
    body = body.replace(b"\r\n", b"\n").translate(bytes.maketrans(BREAKS, b"\n" * len(BREAKS)))
    budget.spend_text(body)
    num_lines = body.count(b"\n") + (not body.endswith(b"\n"))
    if num_lines < num_rows:
        raise MeshError("unreadable", f"it promises {num_rows} rows and has {num_lines} lines: cut off?")
    ends = np.append(np.flatnonzero(np.frombuffer(body, np.uint8) == ord("\n")) + 1, len(body))
    start = last = 0
    for name, item in elements.items():
        last += item.count
        rows = body[start : int(ends[last - 1]) if last else 0]
        start += len(rows)
        num_words, width = count_words(rows), sum(len(types) == 1 for types in item.types.values())
        if num_words < item.count * width:
            words = f"{item.count} rows of {name!r} with {width} values each and has {num_words} values"
            raise MeshError("unreadable", f"it promises {words}: cut off?")
        if name == "face" and item.corners() == next(iter(item.types), None):
            check_count(sum(_size(line[0]) for line in LINE.finditer(rows)))
    return body[:start]


def _size(row: bytes) -> int:
    """Triangles of a face, as its first word says; of a polygon no more than it has words for."""
    size = int(float((row.split(None, 1) or [b"0"])[0]))
    return max(min(size, len(row) // 2) - 2, 0)


def _check_lists(content: bytes, start: int, elements: dict[str, _Element], order: str) -> None:
    """Raise MeshError for more triangles than are drawn: in a binary file all faces have as many corners as the first.

    trimesh holds the lengths of all elements against the file's before it takes memory for them.
    """
    for name, item in elements.items():
        length = 0  # of a row
        for field_name, types in item.types.items():
            size = 1
            if len(types) == 2:
                counted = np.dtype(order + types[0])
                if start + length + counted.itemsize > len(content):
                    return
                size = max(int(np.frombuffer(content, counted, 1, start + length)[0]), 0)
                length += counted.itemsize
                if name == "face" and field_name == item.corners():
                    check_count(item.count * max(size - 2, 0))
            length += size * np.dtype(types[-1]).itemsize
        start += item.count * length
