"""glTF files before trimesh reads them: what it would misread is mended or refused, and promises are checked."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon.pipeline.shapes.mesh import Floats, MeshError, Wrap
from recon.pipeline.shapes.meshfile.budget import MAX_FACES, Budget, check_count, check_pieces
from recon.pipeline.shapes.meshfile.draco import check_draco
from recon.pipeline.shapes.meshfile.files import ModelFiles, decode_text
from recon.pipeline.shapes.meshfile.gltf_arrays import DRACO, VISIBILITY, WIDTHS, plain_arrays
from recon.pipeline.shapes.meshfile.pictures import unreadable

# Required extensions that are read, or that change nothing but the fine look.
READ = {DRACO, "KHR_mesh_quantization", "KHR_texture_transform", VISIBILITY}
BASISU = "KHR_texture_basisu"
READ |= {"EXT_texture_webp", BASISU}
HARMLESS = ("KHR_materials_", "KHR_lights_", "KHR_animation_")
# These change which triangles there are, even where the file does not require them.
REFUSED = ("EXT_mesh_gpu_instancing",)
GLOSS, TRANSFORM = "KHR_materials_pbrSpecularGlossiness", "KHR_texture_transform"
BASE64 = "base64,"
KTX2 = "image/ktx2"
EMBEDDED = "an embedded picture"
BLACK = 0.01  # no channel of a colour above this shows beside what shines
MAX_DEPTH = 500  # of nodes within nodes
MAX_VALUES = 32 * MAX_FACES  # rows of all arrays, and of all primitives that use them
MAX_JSON_VALUES = 2_000_000  # of a header: each costs some hundred bytes, twice
COUNTED = ("meshes", "materials", "textures", "images", "buffers", "cameras", "skins")

WRAPS: dict[int, Wrap] = {10497: "repeat", 33071: "clamp", 33648: "mirror"}


@dataclass(frozen=True)
class Layout:
    """How a material lays out its texture: a transform [2, 3] of its coordinates, v downwards, and its edges."""

    transform: Floats | None
    wrap: tuple[Wrap, Wrap]


def guard_gltf(content: bytes, files: ModelFiles) -> tuple[bytes, dict[int, Layout]]:
    """The file with each material's name after its index and a space, stand-ins of its pictures (see `ModelFiles`),
    and what trimesh leaves out of the materials, by their index.
    """
    binary = content[:4] == b"glTF"
    header, chunks = _split(content) if binary else (read_header(content), b"")
    version = str(header.get("asset", {}).get("version", "1.0"))
    if not version.startswith("2"):
        raise MeshError("unreadable", f"it is glTF {version}; only version 2 is read: export it again")
    _check_extensions(header)
    _check_arrays(header, files.budget)
    _check_nodes(header)
    buffers = _Buffers(header, chunks, files)
    _check_draco(header, buffers)
    _take_pictures(header, buffers, files)
    plain_arrays(header, buffers)
    layouts: dict[int, Layout] = {}
    users = defaultdict(list)
    for item in _primitives(header):
        users[item.get("material")].append(item)
    for index, material in enumerate(header.get("materials", [])):
        layouts[index] = _mend_material(users[index], material, header)
        material["name"] = f"{index} {material.get('name') or ''}"
    text = json.dumps(header).encode()
    if not binary:
        return text, layouts
    text += b" " * (-len(text) % 4)
    length = 20 + len(text) + len(chunks)
    return b"".join([struct.pack("<4sIII4s", b"glTF", 2, length, len(text), b"JSON"), text, chunks]), layouts


def read_header(content: bytes) -> dict[str, Any]:
    """The JSON of a file. MeshError for so many values that they would fill the memory, or so deep ones."""
    if sum(content.count(mark) for mark in (b",", b":", b"[", b"{")) > MAX_JSON_VALUES:
        raise MeshError("unreadable", f"its JSON has more than {MAX_JSON_VALUES} values")
    try:
        found: dict[str, Any] = json.loads(decode_text(content))
    except RecursionError:
        raise MeshError("unreadable", "its JSON is nested too deeply") from None
    return found


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a .glb, and all chunks behind it."""
    version = int.from_bytes(content[4:8], "little")
    if version != 2:
        raise MeshError("unreadable", f"it is glTF {version}; only version 2 is read")
    length = int.from_bytes(content[12:16], "little")
    if content[16:20] != b"JSON" or len(content) < max(20 + length, int.from_bytes(content[8:12], "little")):
        raise MeshError("unreadable", "it is shorter than it says: cut off?")
    return read_header(content[20 : 20 + length]), memoryview(content)[20 + length :]


class _Buffers:
    """The buffers that the header names, each unpacked once; and views into them, by their number."""

    def __init__(self, header: dict[str, Any], chunks: bytes | memoryview, files: ModelFiles) -> None:
        self.header, self.chunks, self.files = header, chunks, files
        self._contents: dict[int, bytes | memoryview] = {}
        self.entries: list[dict[str, Any]] = header.get("buffers", [])
        files.buffers = {entry["uri"] for entry in self.entries if "uri" in entry}
        # trimesh copies each out of its buffer, however many cover the same bytes
        files.budget.spend("bytes of buffer views", sum(max(v["byteLength"], 0) for v in header.get("bufferViews", [])))

    def view(self, number: int) -> bytes:
        """The bytes of a view; FileNotFoundError where its buffer lies in a file that is not there."""
        span = self.header["bufferViews"][number]
        index, start = span["buffer"], span.get("byteOffset", 0)
        if index not in self._contents:
            self._contents[index] = self._content(index)
        return bytes(self._contents[index][start : start + span["byteLength"]])

    def _content(self, number: int) -> bytes | memoryview:
        """A buffer's content, which a .glb may have in a chunk of its own."""
        uri = self.entries[number].get("uri")
        if uri is not None:
            return _decoded(uri) if BASE64 in uri else self.files.content(uri)
        skipped, at = sum("uri" not in entry for entry in self.entries[:number]), 0
        while at + 8 <= len(self.chunks):
            length = int.from_bytes(self.chunks[at : at + 4], "little")
            if self.chunks[at + 4 : at + 8] == b"BIN\0":
                if skipped == 0:
                    return self.chunks[at + 8 : at + 8 + length]
                skipped -= 1
            at += 8 + length
        raise MeshError("unreadable", f"its buffer {number} is not there: cut off?")

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are about to be made. MeshError for too many."""
        self.files.budget.spend("bytes of buffer views", num_bytes)


def _decoded(uri: str) -> bytes:
    """What stands in the text itself, so that the file's size bounds it."""
    return base64.b64decode(uri.partition(BASE64)[2])


def _take_pictures(header: dict[str, Any], buffers: _Buffers, files: ModelFiles) -> None:
    """Give the pictures to `files` and leave their stand-ins in the header; the rest that it names are buffers."""
    wanted = _sources(header)
    of_views: dict[int, bytes] = {}
    for index, image in enumerate(header.get("images", [])):
        uri, view = image.pop("uri", None), image.pop("bufferView", None)
        if image.get("mimeType") == KTX2:  # not read, which whoever writes it beside another reckons with
            if index in wanted:
                files.missing.add(unreadable(EMBEDDED if uri is None or BASE64 in uri else uri, "KTX2"))
            continue
        try:
            if view is not None:
                if view not in of_views:
                    of_views[view] = files.stand_in(EMBEDDED, buffers.view(view))
                stand_in = of_views[view]
            elif uri is not None:
                stand_in = files.stand_in(EMBEDDED, _decoded(uri)) if BASE64 in uri else files.picture(uri)
            else:
                continue
        except FileNotFoundError:  # a missing picture, or a missing buffer, which trimesh will want too
            continue
        except binascii.Error:
            stand_in = files.stand_in(EMBEDDED, b"")
        image["uri"] = "data:image/png;" + BASE64 + base64.b64encode(stand_in).decode()


def _sources(header: dict[str, Any]) -> set[int | None]:
    """The pictures that textures have, a KTX2 one where they have no other."""
    textures = header.get("textures", [])
    return {t.get("source", t.get("extensions", {}).get(BASISU, {}).get("source")) for t in textures}


def _check_extensions(header: dict[str, Any]) -> None:
    required = [name for name in header.get("extensionsRequired", []) if name not in READ]
    unread = [name for name in required if not name.startswith(HARMLESS)]
    unread += [name for name in header.get("extensionsUsed", []) if name in REFUSED]
    if unread:
        raise MeshError("unreadable", f"it needs the glTF extension {unread[0]}, which is not read: export it without")
    if DRACO in header.get("extensionsUsed", []):
        import DracoPy  # noqa: F401  without it trimesh puts zeros in place of what is compressed


def _primitives(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for mesh in header.get("meshes", []) for item in mesh.get("primitives", [])]


def _check_arrays(header: dict[str, Any], budget: Budget) -> None:
    """What trimesh reads wrongly is refused; so are counts that fill the memory without a byte in the file."""
    for name in COUNTED:
        check_pieces(len(header.get(name, [])), name)
    accessors = header.get("accessors", [])
    counts = [accessor["count"] for accessor in accessors]
    primitives = _primitives(header)
    check_pieces(len(primitives), "primitives")
    used = [index for item in primitives for index in (*item["attributes"].values(), item.get("indices", -1))]
    total = sum(counts) + sum(counts[index] for index in used if index >= 0)
    if min(counts, default=0) < 0 or total > MAX_VALUES:
        raise MeshError("too-many-faces", f"it promises {total} values: more than {MAX_VALUES} are not read")
    uses = Counter(used)
    for index, accessor in enumerate(accessors):  # each of them, and a copy for each further use
        budget.spend("numbers", accessor["count"] * WIDTHS.get(accessor.get("type", ""), 16) * max(uses[index], 1))


def _check_draco(header: dict[str, Any], buffers: _Buffers) -> None:
    """Hold what compressed meshes say of themselves against the limits: the arrays' counts need not be theirs."""
    faces, seen = 0, dict[int, int]()
    for item in _primitives(header):
        packed = item.get("extensions", {}).get(DRACO)
        if packed is not None:
            number = packed["bufferView"]
            if number not in seen:
                with suppress(FileNotFoundError):  # which trimesh will want too
                    seen[number] = check_draco(buffers.view(number), buffers.files.budget)
            faces += seen.get(number, 0)
            check_count(faces)


def _check_nodes(header: dict[str, Any]) -> None:
    """trimesh follows parents from every node, however deep it lies, and leaves out what closes a circle."""
    nodes, meshes = header.get("nodes", []), header.get("meshes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    stack = [(index, 0) for index in range(len(nodes)) if index not in children]
    seen: set[int] = set()
    pieces = 0
    while stack:
        index, depth = stack.pop()
        if index in seen or depth > MAX_DEPTH:
            raise MeshError("unreadable", f"node {index} of its scene has two parents, or lies too deep")
        seen.add(index)
        if "mesh" in nodes[index]:
            pieces += len(meshes[nodes[index]["mesh"]].get("primitives", []))
        stack += [(child, depth + 1) for child in nodes[index].get("children", [])]
    check_pieces(max(pieces, len(nodes)))
    if len(seen) != len(nodes):
        raise MeshError("unreadable", "nodes of its scene are their own parents")


def _mend_material(users: list[dict[str, Any]], material: dict[str, Any], header: dict[str, Any]) -> Layout:
    """How a material's texture lies.

    Older glossy materials become plain ones; another set of coordinates becomes the first, which trimesh reads.
    """
    gloss = material.get("extensions", {}).pop(GLOSS, None)
    if gloss is not None:
        look = {"baseColorFactor": gloss.get("diffuseFactor", [1, 1, 1, 1]), "metallicFactor": 0.0}
        look["roughnessFactor"] = 1.0 - gloss.get("glossinessFactor", 1.0)
        if "diffuseTexture" in gloss:
            look["baseColorTexture"] = gloss["diffuseTexture"]
        material["pbrMetallicRoughness"] = look
    look = material.get("pbrMetallicRoughness", {})
    glow = np.array(material.get("emissiveFactor", (0, 0, 0)), np.float64)
    if glow.max() > BLACK and max(look.get("baseColorFactor", (1,))[:3]) < BLACK:
        # what shines by itself alone has its colour from there; beside another colour its light is left out
        look["baseColorFactor"] = [*np.minimum(glow, 1).tolist(), look["baseColorFactor"][3]]
        look.pop("baseColorTexture", None)
        if "emissiveTexture" in material:
            look["baseColorTexture"] = material["emissiveTexture"]
    if look.pop("metallicRoughnessTexture", None) is not None:
        # where a texture decides, which is not read, the factors say nothing
        look.pop("metallicFactor", None)
        look.pop("roughnessFactor", None)
    texture = look.get("baseColorTexture", {})
    transform = texture.get("extensions", {}).get(TRANSFORM, {})
    layout = transform.get("texCoord", texture.get("texCoord", 0))
    for item in users if layout else ():
        item["attributes"].pop("TEXCOORD_0", None)
        if f"TEXCOORD_{layout}" in item["attributes"]:
            item["attributes"]["TEXCOORD_0"] = item["attributes"][f"TEXCOORD_{layout}"]
    matrix = None
    if transform:
        angle = float(transform.get("rotation", 0.0))
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array([[cosine, sine], [-sine, cosine]]) * np.array(transform.get("scale", (1, 1)), np.float64)
        matrix = np.column_stack([turn, np.array(transform.get("offset", (0, 0)), np.float64)])
    return Layout(matrix, _wrap(texture, header))


def _wrap(texture: dict[str, Any], header: dict[str, Any]) -> tuple[Wrap, Wrap]:
    """What a material's texture does beyond its edges, by its sampler."""
    number = header["textures"][texture["index"]].get("sampler") if "index" in texture else None
    sampler = {} if number is None else header["samplers"][number]
    codes = (sampler.get("wrapS", 10497), sampler.get("wrapT", 10497))
    if unknown := [code for code in codes if code not in WRAPS]:
        raise MeshError("unreadable", f"a texture's sampler wraps by {unknown[0]!r}, which glTF does not have")
    return WRAPS[codes[0]], WRAPS[codes[1]]
