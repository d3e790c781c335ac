"""What one shape may ask for in all: its file, whatever this names, and what they unfold to.

Limits on single things do not bound their sum, so every reader spends from one budget before it takes memory.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from recon.pipeline.shapes.mesh import MeshError

MAX_FACES = 2_000_000
MAX_VERTICES = 3 * MAX_FACES  # as many as triangles have that share none
MAX_PIECES = 20_000  # placed pieces of a scene: a small file can name one geometry very often
MAX_MEMORY = 3 * 2**30  # of address space; the largest meshes that these limits let through need two thirds of it

MAX_FILE_BYTES = 512 * 2**20
MAX_NAMES = 10_000
MAX_NUMBERS = 2**27
MAX_TEXTURE_PIXELS = 2**27  # half a gigabyte in memory
LIMITS = {
    "names": MAX_NAMES,  # of files that are looked for
    "bytes of files": MAX_FILE_BYTES,  # each file counts once, however often it is named
    "bytes of buffer views": MAX_FILE_BYTES,  # of a glTF, which may overlap
    "numbers": MAX_NUMBERS,  # words of text formats, values of arrays
    "texture pixels": MAX_TEXTURE_PIXELS,
}

MAX_LINE_BYTES = 2**20  # of a text format: a polygon of a hundred thousand corners
BREAKS = b"\r\x0b\x0c\x1c\x1d\x1e"  # what ends a line for `str.splitlines`, beside "\n" and what is no ASCII
_BLOCK = 2**24


class Budget:
    """The sums of one shape. `overspent` keeps the refusal: trimesh takes any failure for a missing file."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.overspent: MeshError | None = None

    def spend(self, what: str, amount: int) -> None:
        """Count `amount` (at least 0) of one of LIMITS. MeshError when that makes too much of it in all."""
        self.spent[what] += amount
        if self.spent[what] > LIMITS[what]:
            self.overspent = MeshError(
                "unreadable",
                f"it asks for {_said(self.spent[what], what)} together; a shape may have {_said(LIMITS[what], what)}",
            )
            raise self.overspent

    def spend_text(self, content: bytes) -> None:
        """Count the words of a text file as numbers. MeshError for too many, and for a line that is too long."""
        check_lines(content)
        self.spend("numbers", count_words(content))


def _said(amount: int, what: str) -> str:
    of = what.removeprefix("bytes ")
    return f"{amount} {what}" if of == what or amount < 2**20 else f"{amount >> 20} MB {of}"


def count_words(content: bytes) -> int:
    """How many words a text has, counted without taking it apart."""
    words, before = 0, True
    for at in range(0, len(content), _BLOCK):
        gaps = np.frombuffer(content, np.uint8, min(_BLOCK, len(content) - at), at) <= ord(" ")
        words += int(np.count_nonzero(gaps[:-1] & ~gaps[1:])) + int(before and not gaps[0])
        before = bool(gaps[-1])
    return words


def count_lines(content: bytes) -> int:
    """At least as many lines as `str.splitlines` makes of a text in ASCII."""
    return 1 + sum(content.count(end) for end in (b"\n", *(bytes([end]) for end in BREAKS)))


def check_lines(content: bytes) -> None:
    """Raise MeshError for a line that is longer than any shape needs: whatever takes it apart would fill the memory."""
    at = 0
    while at + MAX_LINE_BYTES < len(content):
        end = content.rfind(b"\n", at, at + MAX_LINE_BYTES + 1)
        if end < 0 and (end := content.rfind(b"\r", at, at + MAX_LINE_BYTES + 1)) < 0:
            raise MeshError("unreadable", f"it has a line of more than {MAX_LINE_BYTES >> 10} kB: is it a text file?")
        at = end + 1


def check_count(num_faces: int) -> None:
    """Raise MeshError for more triangles than are drawn."""
    if num_faces > MAX_FACES:
        raise MeshError("too-many-faces", f"it has {num_faces} triangles; simplify it to at most {MAX_FACES}")


def check_vertices(num_vertices: int) -> None:
    """Raise MeshError for more vertices than that many triangles need."""
    if num_vertices > MAX_VERTICES:
        raise MeshError("unreadable", f"it has {num_vertices} vertices; simplify it to at most {MAX_VERTICES}")


def check_pieces(num_pieces: int, what: str = "placed pieces") -> None:
    """Raise MeshError for a scene of more pieces, materials or the like than any shape has."""
    if num_pieces > MAX_PIECES:
        raise MeshError("too-many-parts", f"it has {num_pieces} {what}; at most {MAX_PIECES} are read")
