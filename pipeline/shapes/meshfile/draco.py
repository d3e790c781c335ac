"""What a Draco mesh says of its size, read without decoding it: a few bytes can unfold to any number of triangles.

The layout is that of https://google.github.io/draco/spec/, version 2.2, which is glTF's.
"""

from __future__ import annotations

from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import MAX_VERTICES, Budget, check_count, check_vertices

MESH, EDGEBREAKER = 1, 1
METADATA = 0x8000  # a flag: what the header may be followed by, and has no place in glTF


def check_draco(content: bytes, budget: Budget) -> int:
    """How many triangles a compressed mesh has. MeshError for too many, and where it does not say."""
    try:
        if content[:5] != b"DRACO" or content[7] != MESH:
            raise MeshError("unreadable", "what it has for a Draco mesh is none")
        if (content[5], content[6]) != (2, 2) or int.from_bytes(content[9:11], "little") & METADATA:
            raise MeshError("unreadable", "its Draco meshes are not as glTF has them: export it again")
        at = 12 if content[8] == EDGEBREAKER else 11
        if content[8] == EDGEBREAKER:
            vertices, at = _number(content, at)
            faces, at = _number(content, at)
        else:
            faces, at = _number(content, at)
            vertices, at = _number(content, at)
    except IndexError:
        raise MeshError("unreadable", "a Draco mesh of it is cut off") from None
    check_count(faces)
    check_vertices(min(vertices, MAX_VERTICES + 1))
    budget.spend("numbers", 3 * (faces + vertices))
    return faces


def _number(content: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = 0
    for place in range(5):
        value |= (content[at + place] & 0x7F) << (7 * place)
        if content[at + place] < 0x80:
            return value, at + place + 1
    raise IndexError
