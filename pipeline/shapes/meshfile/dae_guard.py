"""COLLADA files before pycollada reads them: XML that could do harm is refused, and scenes that never end."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.files import check_pieces

MAX_DEPTH = 200  # of XML elements, and of nodes within nodes
MAX_INDEX_BYTES = 2**28  # of all placed geometries' index lists
UP = {"X_UP": "+X", "Y_UP": "+Y", "Z_UP": "+Z"}


@dataclass
class _Item:
    """A node or geometry: how much text its index lists have, and what it places."""

    own: int = 0
    children: list[_Item | str] = field(default_factory=list)


class _Outline:
    """What expat's events tell of a file's up axis and of what places what."""

    def __init__(self) -> None:
        self.up = ""
        self.path: list[str] = []
        self.open: list[_Item] = [_Item()]
        self.named: dict[str, _Item] = {}

    def enter(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2]
        self.path.append(tag)
        if len(self.path) > MAX_DEPTH:
            raise MeshError("unreadable", f"its elements lie more than {MAX_DEPTH} deep")
        if tag in ("node", "geometry"):
            item = _Item()
            if tag == "node":
                self.open[-1].children.append(item)
            self.named["#" + attributes.get("id", "")] = item
            self.open.append(item)
        elif tag in ("instance_node", "instance_geometry"):
            self.open[-1].children.append(attributes.get("url", ""))

    def leave(self, _: str) -> None:
        if self.path.pop() in ("node", "geometry"):
            self.open.pop()

    def text(self, data: str) -> None:
        if self.path and self.path[-1] == "p":
            if "-" in data:  # numpy would count from the end
                raise MeshError("bad-index", "a face names a vertex below 0, which does not exist")
            self.open[-1].own += len(data)
        elif self.path and self.path[-1] == "up_axis":
            self.up += data

    def size(self) -> tuple[int, int]:
        """Placed pieces, and text of their index lists, when every node is placed as often as it is named."""
        known: dict[int, tuple[int, int]] = {}

        def count(item: _Item, depth: int) -> tuple[int, int]:
            if depth > MAX_DEPTH:
                raise MeshError("unreadable", f"its nodes lie more than {MAX_DEPTH} deep, or within themselves")
            if id(item) not in known:
                pieces, total = 1, item.own
                for child in item.children:
                    found = self.named.get(child) if isinstance(child, str) else child
                    if found is not None:
                        more, text = count(found, depth + 1)
                        pieces, total = pieces + more, total + text
                known[id(item)] = pieces, total
            return known[id(item)]

        return count(self.open[0], 0)


def guard_dae(content: bytes) -> str | None:
    """The up axis that the file states, such as "+Z". Raises MeshError for what pycollada should not be given.

    A document type, which COLLADA does not have, could pull in other files or blow up entities; pycollada also opens
    archives, whatever their name.
    """
    if zipfile.is_zipfile(io.BytesIO(content)):
        raise MeshError("unreadable", "it is an archive: unpack it")

    def refuse(*_: Any) -> None:
        raise MeshError("unreadable", "it declares a document type, which COLLADA files have no use for: remove it")

    outline = _Outline()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = outline.enter, outline.leave
    parser.CharacterDataHandler = outline.text
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise MeshError("unreadable", f"it is no XML: {error}") from None
    pieces, text = outline.size()
    check_pieces(pieces)
    if text > MAX_INDEX_BYTES:
        raise MeshError("too-many-faces", f"its placed meshes have {text >> 20} MB of indices together")
    return UP.get(outline.up.strip().upper())
