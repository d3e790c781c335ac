"""The mesh every stage works on: an ordered list of primitives, each with one part name and one material.

Convention: +Y up, +Z front, right-handed. Colours are linear unless a name says sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Wrap = Literal["repeat", "mirror", "clamp"]


@dataclass(frozen=True)
class Material:
    """A surface finish. `name` is what a caption calls it, e.g. "oak" or "red plastic"."""

    name: str
    base_color: tuple[float, float, float]  # linear RGB in [0, 1]
    metallic: float = 0.0
    roughness: float = 0.7


@dataclass(frozen=True)
class Primitive:
    """Triangles that share a part and a material.

    vertices [V, 3] float64, faces [F, 3] int64 (counter-clockwise seen from outside); optional per-vertex linear
    `colors` [V, 3] in [0, 1] and, for textured files, `uv` [V, 2] with `texture` [H, W, 3 or 4] uint8 sRGB. `wrap`:
    what the texture does beyond its edges, along u and v.
    """

    part: str
    vertices: Floats
    faces: Ints
    material: Material
    colors: Floats | None = None
    uv: Floats | None = None
    texture: NDArray[np.uint8] | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")


@dataclass(frozen=True)
class Mesh:
    """One shape. `facts` are JSON values a caption can use (see `procedural.designer`); {} when nothing is known."""

    primitives: tuple[Primitive, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Distinct part names in order of first appearance; a face's part id is its index here."""
        return tuple(dict.fromkeys(p.part for p in self.primitives))

    def bounds(self) -> Floats:
        """[2, 3] minimum and maximum corner over all vertices."""
        stacked = np.concatenate([p.vertices for p in self.primitives])
        return np.stack([stacked.min(0), stacked.max(0)])


class MeshError(UserError):
    """A shape that cannot be used. `reason` is a short code for counting.

    Of files: unreadable. Of meshes: no-faces, non-finite (a coordinate that is not finite or beyond 1e6), degenerate
    (no extent, or no area), too-many-faces, too-many-parts, bad-index. Of pictures: blank (too small a share shows the
    shape). Of ready-made clouds: no-points, non-finite, degenerate.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(f"{reason}: {words}")
        self.reason = reason
        self.words = words

    def __reduce__(self) -> tuple[type[MeshError], tuple[str, str]]:
        return type(self), (self.reason, self.words)  # it must survive the way back from a worker process


def srgb_to_linear(values: NDArray[Any]) -> NDArray[Any]:
    """sRGB components in [0, 1] to linear ones (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
