"""The drawing board of one embedded shape: seeded draws that are written down, materials, and parts added so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive, srgb_to_linear

# A finish: what a caption calls it -> (sRGB hex, metallic, roughness).
WOOD = {
    "oak": ("b98b56", 0.0, 0.6),
    "walnut": ("5d3d28", 0.0, 0.55),
    "pine": ("dcb67f", 0.0, 0.65),
    "mahogany": ("7a3320", 0.0, 0.5),
    "ebony": ("33281f", 0.0, 0.45),
    "birch": ("e6d2ac", 0.0, 0.65),
}
METAL = {
    "steel": ("b4b8bd", 0.5, 0.35),
    "chrome": ("d5d9de", 0.6, 0.2),
    "brass": ("c9a14a", 0.5, 0.35),
    "copper": ("b8704a", 0.5, 0.35),
    "black iron": ("2c2d30", 0.4, 0.5),
    "gold": ("d9b24c", 0.6, 0.3),
}
PAINT = {
    "red": ("b3261e", 0.0, 0.4),
    "blue": ("1f4fa3", 0.0, 0.4),
    "green": ("2f7d3a", 0.0, 0.4),
    "yellow": ("e3b81c", 0.0, 0.4),
    "orange": ("d96b1a", 0.0, 0.4),
    "white": ("eceae4", 0.0, 0.45),
    "black": ("222326", 0.0, 0.45),
    "grey": ("8a8d92", 0.0, 0.45),
    "purple": ("6a3c8f", 0.0, 0.4),
    "pink": ("db8aa4", 0.0, 0.45),
    "brown": ("6f4a30", 0.0, 0.5),
    "turquoise": ("2a9c97", 0.0, 0.4),
}
FABRIC = {f"{name} fabric": (value[0], 0.0, 0.95) for name, value in PAINT.items()}
PLASTIC = {f"{name} plastic": (value[0], 0.0, 0.35) for name, value in PAINT.items()}
CERAMIC = {f"{name} ceramic": (value[0], 0.0, 0.25) for name, value in PAINT.items()}
LEATHER = {
    "brown leather": ("5f3b24", 0.0, 0.5),
    "black leather": ("242220", 0.0, 0.45),
    "tan leather": ("a8743f", 0.0, 0.5),
    "red leather": ("7f1f1c", 0.0, 0.45),
    "cream leather": ("dccfb4", 0.0, 0.5),
}
RUBBER = {"black rubber": ("1b1b1d", 0.0, 0.9)}
GLASS = {
    "dark glass": ("26323c", 0.0, 0.1),
    "clear glass": ("b9d3da", 0.0, 0.1),
    "green glass": ("3f7a52", 0.0, 0.12),
    "brown glass": ("5a3717", 0.0, 0.12),
}
STONE = {
    "marble": ("dedad2", 0.0, 0.4),
    "granite": ("6d6a68", 0.0, 0.6),
    "terracotta": ("b4613c", 0.0, 0.85),
    "concrete": ("9c9a94", 0.0, 0.9),
}

Finish = tuple[str, float, float]


class Designer:
    """Draws the parameters of one shape from its seed and collects its parts.

    Every draw has a name and is kept in `facts`, so that a shape can be described and rebuilt:
    `values` (continuous), `choices` (structural), `phrases` (what a caption says of them), `materials` by part.
    """

    def __init__(self, category: str, seed: int) -> None:
        self.category = category
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, float] = {}
        self.choices: dict[str, str] = {}
        self.phrases: list[str] = []
        self.materials: dict[str, str] = {}
        self.primitives: list[Primitive] = []

    def uniform(self, name: str, low: float, high: float) -> float:
        """A continuous parameter, recorded."""
        value = float(self.rng.uniform(low, high))
        self.values[name] = round(value, 6)
        return self.values[name]

    def integer(self, name: str, low: int, high: int) -> int:
        """A count from low to high, both included, recorded as a choice."""
        value = int(self.rng.integers(low, high + 1))
        self.choices[name] = str(value)
        return value

    def choice(
        self, name: str, options: Mapping[str, str] | Sequence[str], weights: Sequence[float] | None = None
    ) -> str:
        """A structural variant; a mapping's values are the caption's phrases ("with armrests"; "" says nothing)."""
        names = list(options)
        picked = names[int(self.rng.choice(len(names), p=weights))]
        self.choices[name] = picked
        if isinstance(options, Mapping) and options[picked]:
            self.phrases.append(options[picked])
        return picked

    def material(self, *palettes: Mapping[str, Finish]) -> Material:
        """A finish drawn from the joined palettes, its colour varied slightly from shape to shape."""
        joined = {name: finish for palette in palettes for name, finish in palette.items()}
        name = list(joined)[int(self.rng.integers(len(joined)))]
        code, metallic, roughness = joined[name]
        srgb = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        srgb = np.clip(srgb * self.rng.uniform(0.88, 1.1) + self.rng.normal(0, 0.015, 3), 0.02, 0.98)
        red, green, blue = (round(float(c), 5) for c in srgb_to_linear(srgb))
        return Material(name, (red, green, blue), metallic, roughness)

    def add(self, part: str, geometry: Geometry, material: Material) -> None:
        """Append a piece of the named part; the first piece's material is the part's in the facts."""
        self.materials.setdefault(part, material.name)
        self.primitives.append(Primitive(part, geometry.vertices, geometry.faces, material))

    def finish(self) -> Mesh:
        """The mesh and everything drawn for it. The first part added is the one a caption's colour speaks of."""
        assert self.primitives, f"{self.category} added no part"
        facts = {
            "category": self.category,
            "values": self.values,
            "choices": self.choices,
            "phrases": self.phrases,
            "materials": self.materials,
            "main_material": next(iter(self.materials.values())),
        }
        return Mesh(tuple(self.primitives), facts)
