"""The embedded data set as a source of a manifest."""

from __future__ import annotations

import difflib
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from recon.pipeline.procedural import CATEGORIES, VERSION, build, shape_seed
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.sources.source import Listed, Source


class ProceduralSource(Source):
    """Shapes drawn from parameters and a seed; needs no files."""

    layout: Literal["procedural"]
    categories: tuple[str, ...] = tuple(CATEGORIES)
    """ShapeNet-55 names, a subset of `procedural.CATEGORIES`."""
    shapes_per_category: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0, lt=1_000_000)
    """Seeds from 1,000,000 up belong to the embedded teacher's own training shapes."""

    reads_files: ClassVar[bool] = False

    @field_validator("categories")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for category in value:
            if category not in CATEGORIES:
                near = difflib.get_close_matches(category, CATEGORIES, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"no embedded shapes for {category!r}{hint}")
        return value

    @property
    def has_meshes(self) -> bool:
        """Every shape is built from its reference."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """In an order that interleaves the categories, so that any prefix is a fair sample."""
        return [
            Listed(
                uid=f"{category}-{self.seed}-{index:05d}",
                category=category,
                split=None,
                source=f"{category}:{self.seed}:{index}",
                fingerprint=f"procedural-{VERSION}",
            )
            for index in range(self.shapes_per_category)
            for category in self.categories
        ]

    def split_of(self, uid: str, test_fraction: float) -> str:
        """The exact share of every category, spread evenly over its indices."""
        index, share = int(uid.rsplit("-", 1)[1]), Fraction(str(test_fraction))  # as written: 0.2 is a fifth
        return "test" if int((index + 1) * share) > int(index * share) else "train"

    def mesh_file(self, root: Path, reference: str) -> tuple[Path, Path] | None:
        """None: nothing is read."""
        return None

    def mesh(self, root: Path, reference: str) -> Mesh:
        """Built from "category:seed:index"; nothing is read."""
        category, seed, index = reference.split(":")
        return build(category, shape_seed(category, int(seed), int(index)))

    def recipe(self) -> dict[str, Any]:
        """The version of the shapes' code; a shape's seed is in its reference."""
        return {"layout": "procedural", "version": VERSION}
