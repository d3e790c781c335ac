"""COLLADA files before pycollada reads them: XML that could do harm is refused, and scenes that never end."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import Budget, check_count, check_pieces, count_words

MAX_DEPTH = 200  # of XML elements, and of nodes within nodes
MAX_ELEMENTS = 1_000_000  # and their attributes: each costs some hundred bytes
UP = {"X_UP": "+X", "Y_UP": "+Y", "Z_UP": "+Z"}
SURFACES = ("triangles", "tristrips", "trifans", "polylist", "polygons")


@dataclass
class _Item:
    """A node or geometry: how many triangles are its own, and what it places."""

    own: int = 0
    children: list[_Item | str] = field(default_factory=list)


@dataclass
class _Surface:
    """A list of triangles or polygons, as far as it is read."""

    kind: str
    stride: int = 1  # numbers a corner
    lists: list[int] = field(default_factory=list)  # how many numbers each <p> has
    polygons: int = 0
    promised: int = 0  # corners, by <vcount>

    def triangles(self) -> int:
        """How many triangles it becomes. MeshError where it promises corners that it does not have."""
        corners = [count // self.stride for count in self.lists]
        if self.kind == "triangles":
            return sum(corners) // 3
        if self.kind != "polylist":
            return sum(max(count - 2, 0) for count in corners)
        if self.promised > sum(corners):
            words = f"its polygons promise {self.promised} corners and have {sum(corners)}: cut off?"
            raise MeshError("unreadable", words)
        return max(sum(corners) - 2 * self.polygons, 0)


class _Outline:
    """What expat's events tell of a file's up axis, of how much there is and of what places what."""

    def __init__(self) -> None:
        self.up = ""
        self.path: list[str] = []
        self.open: list[_Item] = [_Item()]
        self.named: dict[str, _Item] = {}
        self.surface: _Surface | None = None
        self.elements = 0
        self.heard: list[str] = []

    def enter(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2]
        self.path.append(tag)
        self.elements += 1 + len(attributes)
        if len(self.path) > MAX_DEPTH:
            raise MeshError("unreadable", f"its elements lie more than {MAX_DEPTH} deep")
        if self.elements > MAX_ELEMENTS:
            raise MeshError("unreadable", f"it has more than {MAX_ELEMENTS} elements and attributes")
        if tag in ("node", "geometry", "controller"):
            item = _Item()
            if tag == "node":
                self.open[-1].children.append(item)
            self.named["#" + attributes.get("id", "")] = item
            self.open.append(item)
        elif tag in ("skin", "morph"):
            self.open[-1].children.append(attributes.get("source", ""))
        elif tag in ("instance_node", "instance_geometry", "instance_controller"):
            self.open[-1].children.append(attributes.get("url", ""))
        elif tag in SURFACES:
            self.surface = _Surface(tag)
        elif tag == "input" and self.surface is not None:
            self.surface.stride = max(self.surface.stride, int(attributes.get("offset", "0")) + 1)
        elif tag == "p" and self.surface is not None:
            self.surface.lists.append(0)

    def leave(self, _: str) -> None:
        tag = self.path.pop()
        if tag in ("node", "geometry", "controller"):
            self.open.pop()
        elif self.surface is not None and tag in ("p", "vcount"):
            text = "".join(self.heard)
            count = count_words(text.encode())
            if tag == "p":
                self.surface.lists[-1] += count
            else:
                self.surface.polygons += count
                check_count(count)  # before its words are taken apart
                self.surface.promised += sum(map(_corners, text.split()))
            self.heard.clear()
        elif self.surface is not None and tag == self.surface.kind:
            self.open[-1].own += self.surface.triangles()
            self.surface = None

    def text(self, data: str) -> None:
        tag = self.path[-1] if self.path else ""
        if tag == "p" and "-" in data:  # numpy would count from the end
            raise MeshError("bad-index", "a face names a vertex below 0, which does not exist")
        if tag in ("p", "vcount") and self.surface is not None:
            self.heard.append(data)
        elif tag == "up_axis":
            self.up += data

    def size(self) -> tuple[int, int]:
        """Placed pieces, and their triangles, when every node is placed as often as it is named."""
        known: dict[int, tuple[int, int]] = {}

        def count(item: _Item, depth: int) -> tuple[int, int]:
            if depth > MAX_DEPTH:
                raise MeshError("unreadable", f"its nodes lie more than {MAX_DEPTH} deep, or within themselves")
            if id(item) not in known:
                pieces, total = 1, item.own
                for child in item.children:
                    found = self.named.get(child) if isinstance(child, str) else child
                    if found is not None:
                        more, triangles = count(found, depth + 1)
                        pieces, total = pieces + more, total + triangles
                known[id(item)] = pieces, total
            return known[id(item)]

        return count(self.open[0], 0)


def _corners(word: str) -> int:
    count = int(word)
    if count < 0:
        raise MeshError("unreadable", f"a polygon has {count} corners")
    return count


def guard_dae(content: bytes, budget: Budget) -> str | None:
    """The up axis that the file states, such as "+Z". Raises MeshError for what pycollada should not be given.

    A document type, which COLLADA does not have, could pull in other files or blow up entities; pycollada also opens
    archives, whatever their name.
    """
    if zipfile.is_zipfile(io.BytesIO(content)):
        raise MeshError("unreadable", "it is an archive: unpack it")

    def refuse(*_: Any) -> None:
        raise MeshError("unreadable", "it declares a document type, which COLLADA files have no use for: remove it")

    budget.spend("numbers", count_words(content))
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
    pieces, triangles = outline.size()
    check_pieces(pieces)
    check_count(triangles)
    return UP.get(outline.up.strip().upper())


def without_controllers(content: bytes) -> bytes:
    """A guarded file with each skinned or morphed geometry placed as it is bound, which pycollada leaves out.

    A skin stands where its joints are, and they bring it there when it is bound: at the root, by its bind shape matrix.
    Joints in another pose, and morph weights that are not 0, are left out. MeshError where they are animated: such a
    file has no one pose.
    """
    if b"instance_controller" not in content:
        return content
    root = ElementTree.fromstring(content)
    space = root.tag.rpartition("}")[0] + "}" if root.tag.startswith("{") else ""
    if next(root.iter(f"{space}channel"), None) is not None:
        words = "it shows an animated skin or morph, which has no one pose: export the pose that is meant"
        raise MeshError("unreadable", words)
    controllers = {"#" + item.get("id", ""): item for item in root.iter(f"{space}controller")}
    for scene in (*root.iter(f"{space}visual_scene"), *root.iter(f"{space}library_nodes")):
        for parent in list(scene.iter()):
            for instance in parent.findall(f"{space}instance_controller"):
                parent.remove(instance)
                matrix, url, skinned = _source(controllers, instance.get("url", ""), space)
                node = ElementTree.SubElement(scene if skinned else parent, f"{space}node")
                if matrix:
                    ElementTree.SubElement(node, f"{space}matrix").text = matrix
                placed = ElementTree.SubElement(node, f"{space}instance_geometry", {"url": url})
                placed.extend(instance.findall(f"{space}bind_material"))
    for library in root.findall(f"{space}library_controllers"):  # which pycollada would go through for nothing
        root.remove(library)
    if space:
        ElementTree.register_namespace("", space[1:-1])
    found: bytes = ElementTree.tostring(root, "utf-8")
    return found


def _source(controllers: dict[str, ElementTree.Element], url: str, space: str) -> tuple[str, str, bool]:
    """A controller's bind shape matrix, the geometry it bends, and whether a skin is among what bends it."""
    matrix, skinned = "", False
    for _ in range(len(controllers) + 1):
        item = controllers.get(url)
        if item is None:
            return matrix, url, skinned
        bend = next((child for child in item if child.tag in (f"{space}skin", f"{space}morph")), None)
        if bend is None or "source" not in bend.attrib:
            raise MeshError("unreadable", f"its controller {url!r} bends nothing")
        if bend.tag == f"{space}skin":
            skinned = True
            matrix = matrix or (bend.findtext(f"{space}bind_shape_matrix") or "").strip()
        url = bend.attrib["source"]
    raise MeshError("unreadable", f"its controller {url!r} bends itself")
