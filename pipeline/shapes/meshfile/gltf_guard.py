"""glTF files before trimesh reads them: what it would misread is mended or refused, and promises are checked."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

import numpy as np

from recon.pipeline.shapes.mesh import Floats, MeshError
from recon.pipeline.shapes.meshfile.files import MAX_FACES, ModelFiles, check_pieces, decode_text
from recon.pipeline.shapes.meshfile.pictures import unreadable

# Required extensions that are read, or that change nothing but the fine look.
DRACO = "KHR_draco_mesh_compression"
READ = {DRACO, "KHR_mesh_quantization", "KHR_texture_transform"}
BASISU = "KHR_texture_basisu"
READ |= {"EXT_texture_webp", BASISU}
HARMLESS = ("KHR_materials_", "KHR_lights_", "KHR_animation_")
# These change which triangles there are, even where the file does not require them.
REFUSED = ("EXT_mesh_gpu_instancing",)
GLOSS, TRANSFORM = "KHR_materials_pbrSpecularGlossiness", "KHR_texture_transform"
BASE64 = "base64,"
KTX2 = "image/ktx2"
EMBEDDED = "an embedded picture"
MAX_DEPTH = 500  # of nodes within nodes
MAX_VALUES = 32 * MAX_FACES  # rows of all arrays, and of all primitives that use them


Transforms = dict[int, Floats]


def guard_gltf(content: bytes, files: ModelFiles) -> tuple[bytes, Transforms]:
    """The file with each material's name after its index and a space, stand-ins of its pictures (see `ModelFiles`),
    and what trimesh leaves out of the materials.

    That is how each lays out its texture, by index: [2, 3] transforms of its coordinates, v downwards.
    """
    binary = content[:4] == b"glTF"
    header, chunks = _split(content) if binary else (json.loads(decode_text(content)), b"")
    version = str(header.get("asset", {}).get("version", "1.0"))
    if not version.startswith("2"):
        raise MeshError("unreadable", f"it is glTF {version}; only version 2 is read: export it again")
    _check_extensions(header)
    _check_arrays(header)
    _check_nodes(header)
    _take_pictures(header, chunks, files)
    transforms: Transforms = {}
    for index, material in enumerate(header.get("materials", [])):
        _mend_material(header, index, material, transforms)
        material["name"] = f"{index} {material.get('name') or ''}"
    text = json.dumps(header).encode()
    if not binary:
        return text, transforms
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + chunks
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body, transforms


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a .glb, and all chunks behind it."""
    version = int.from_bytes(content[4:8], "little")
    if version != 2:
        raise MeshError("unreadable", f"it is glTF {version}; only version 2 is read")
    length = int.from_bytes(content[12:16], "little")
    if content[16:20] != b"JSON" or len(content) < max(20 + length, int.from_bytes(content[8:12], "little")):
        raise MeshError("unreadable", "it is shorter than it says: cut off?")
    return json.loads(decode_text(content[20 : 20 + length])), content[20 + length :]


def _take_pictures(header: dict[str, Any], chunks: bytes, files: ModelFiles) -> None:
    """Give the pictures to `files` and leave their stand-ins in the header; the rest that it names are buffers."""
    buffers = header.get("buffers", [])
    files.buffers = {entry["uri"] for entry in buffers if "uri" in entry}
    contents: dict[int, bytes] = {}
    wanted = _sources(header)
    for index, image in enumerate(header.get("images", [])):
        uri, view = image.pop("uri", None), image.pop("bufferView", None)
        if image.get("mimeType") == KTX2:  # not read, which whoever writes it beside another reckons with
            if index in wanted:
                files.missing.add(unreadable(EMBEDDED if uri is None or BASE64 in uri else uri, "KTX2"))
            continue
        try:
            if view is not None:
                span = header["bufferViews"][view]
                number, start = span["buffer"], span.get("byteOffset", 0)
                if number not in contents:
                    contents[number] = _buffer(buffers, number, chunks, files)
                stand_in = files.stand_in(EMBEDDED, contents[number][start : start + span["byteLength"]])
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


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(BASE64)[2])


def _buffer(buffers: list[dict[str, Any]], number: int, chunks: bytes, files: ModelFiles) -> bytes:
    """A buffer's content, which a .glb may have in a chunk of its own."""
    uri = buffers[number].get("uri")
    if uri is not None:
        return _decoded(uri) if BASE64 in uri else files.content(uri)
    skipped = sum("uri" not in entry for entry in buffers[:number])
    while chunks:
        length = int.from_bytes(chunks[:4], "little")
        if chunks[4:8] == b"BIN\0":
            if skipped == 0:
                return chunks[8 : 8 + length]
            skipped -= 1
        chunks = chunks[8 + length :]
    raise MeshError("unreadable", f"its buffer {number} is not there: cut off?")


def _check_extensions(header: dict[str, Any]) -> None:
    required = [name for name in header.get("extensionsRequired", []) if name not in READ]
    unread = [name for name in required if not name.startswith(HARMLESS)]
    unread += [name for name in header.get("extensionsUsed", []) if name in REFUSED]
    if unread:
        raise MeshError("unreadable", f"it needs the glTF extension {unread[0]}, which is not read: export it without")
    if DRACO in header.get("extensionsUsed", []):
        import DracoPy  # noqa: F401  without it trimesh puts zeros in place of what is compressed


def _check_arrays(header: dict[str, Any]) -> None:
    """What trimesh reads wrongly is refused; so are counts that fill the memory without a byte in the file."""
    accessors = header.get("accessors", [])
    counts = [accessor["count"] for accessor in accessors]
    primitives = [item for mesh in header.get("meshes", []) for item in mesh.get("primitives", [])]
    used = [index for item in primitives for index in (*item["attributes"].values(), item.get("indices", -1))]
    total = sum(counts) + sum(counts[index] for index in used if index >= 0)
    if min(counts, default=0) < 0 or total > MAX_VALUES:
        raise MeshError("too-many-faces", f"it promises {total} values: more than {MAX_VALUES} are not read")
    for item in primitives:
        if item.get("mode", 4) == 6:
            raise MeshError("unreadable", "it has fans of triangles, which are not read: export plain triangles")
        for name, index in item["attributes"].items():
            integers = accessors[index]["componentType"] != 5126
            if name.startswith("TEXCOORD") and integers and "bufferView" in accessors[index]:
                raise MeshError("unreadable", "its texture coordinates are integers, which are not read: export floats")
        if any("sparse" in accessors[i] for i in (*item["attributes"].values(), item.get("indices", 0))):
            raise MeshError("unreadable", "it has sparse arrays, which are not read: export it without")


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


def _mend_material(header: dict[str, Any], index: int, material: dict[str, Any], transforms: Transforms) -> None:
    """Older glossy materials become plain ones; another layout of a texture becomes the first, which trimesh reads."""
    gloss = material.get("extensions", {}).pop(GLOSS, None)
    if gloss is not None:
        look = {"baseColorFactor": gloss.get("diffuseFactor", [1, 1, 1, 1]), "metallicFactor": 0.0}
        look["roughnessFactor"] = 1.0 - gloss.get("glossinessFactor", 1.0)
        if "diffuseTexture" in gloss:
            look["baseColorTexture"] = gloss["diffuseTexture"]
        material["pbrMetallicRoughness"] = look
    look = material.get("pbrMetallicRoughness", {})
    if look.pop("metallicRoughnessTexture", None) is not None:
        # where a texture decides, which is not read, the factors say nothing
        look.pop("metallicFactor", None)
        look.pop("roughnessFactor", None)
    texture = look.get("baseColorTexture", {})
    transform = texture.get("extensions", {}).get(TRANSFORM, {})
    layout = transform.get("texCoord", texture.get("texCoord", 0))
    for mesh in header.get("meshes", []) if layout else ():
        for item in mesh["primitives"]:
            if item.get("material") == index:
                item["attributes"].pop("TEXCOORD_0", None)
                if f"TEXCOORD_{layout}" in item["attributes"]:
                    item["attributes"]["TEXCOORD_0"] = item["attributes"][f"TEXCOORD_{layout}"]
    if transform:
        angle = float(transform.get("rotation", 0.0))
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array([[cosine, sine], [-sine, cosine]]) * np.array(transform.get("scale", (1, 1)), np.float64)
        transforms[index] = np.column_stack([turn, np.array(transform.get("offset", (0, 0)), np.float64)])
