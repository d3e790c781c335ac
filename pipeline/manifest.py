"""Manifests: one TOML file says where a data set lies, how it is split and which recipes turn it into features."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.mesh import Mesh
from pipeline.render import RenderConfig
from pipeline.sources import folder, procedural
from pipeline.teachers import TeacherSpec


class Strict(BaseModel):
    """A table of the manifest: every field is known, typed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProceduralSource(Strict):
    """Shapes drawn from parameters and a seed; needs no files."""

    layout: Literal["procedural"]
    categories: tuple[str, ...] = tuple(procedural.CATEGORIES)
    """ShapeNet-55 names, a subset of `procedural.CATEGORIES`."""
    shapes_per_category: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0, lt=1_000_000)
    """Seeds from 1,000,000 up belong to the embedded teacher's own training shapes."""


class FolderSource(Strict):
    """Mesh files under `root/<class>/`; the root is given by `--root`."""

    layout: Literal["folder"]
    up: str = "+Y"
    front: str = "+Z"
    split_seed: int = 0


class SampleRecipe(Strict):
    """Surface points."""

    num_points: int = Field(default=8192, ge=1)
    seed: int = 0


class FeatureRecipe(Strict):
    """Which frozen teachers see the views and captions."""

    teachers: tuple[TeacherSpec, ...] = Field(min_length=1)
    draws: int = Field(default=1, ge=1)
    """K: draw 0 is the clean picture, the others are augmented with seeds of their own."""
    seed: int = 0


class Manifest(Strict):
    """A data set and its recipes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    description: str = ""
    licence: str = ""
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    source: Annotated[ProceduralSource | FolderSource, Field(discriminator="layout")]
    sample: SampleRecipe = SampleRecipe()
    render: RenderConfig = RenderConfig()
    features: FeatureRecipe


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape a manifest lists.

    `source` tells its reader where it lies (a path relative to the root, or the draw's index); `fingerprint` changes
    when that source seems to have changed, cheaply enough to ask on every run.
    """

    uid: str
    dataset: str
    category: str
    split: str
    source: str
    fingerprint: str


def nearest(word: str, known: list[str]) -> str:
    """ " (did you mean 'x'?)" for a near miss, else an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain(path: Path, error: ValidationError) -> UserError:
    """The first of pydantic's complaints as one line with the file, the field and the mend."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name = str(first["loc"][-1])
        models = (Manifest, ProceduralSource, FolderSource, SampleRecipe, FeatureRecipe, TeacherSpec)
        known = [name for model in models for name in model.model_fields] + [*RenderConfig.__dataclass_fields__]
        return UserError(f"{path}: unknown field {where!r}{nearest(name, known)}; remove or rename it")
    return UserError(f"{path}: field {where!r}: {first['msg']}")


def load_manifest(path: Path) -> Manifest:
    """Read and validate a manifest. UserError names the file and the field that is wrong."""
    if not path.is_file():
        here = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise UserError(f"no manifest at {path}" + (f"; there are {', '.join(here)}" if here else ""))
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        raise _explain(path, error) from error
    if isinstance(manifest.source, ProceduralSource):
        for category in manifest.source.categories:
            if category not in procedural.CATEGORIES:
                hint = nearest(category, list(procedural.CATEGORIES))
                raise UserError(f"{path}: field 'source.categories': no embedded shapes for {category!r}{hint}")
    names = [spec.name for spec in manifest.features.teachers]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: field 'features.teachers': two teachers share a name; give each its own `name`")
    return manifest


def list_shapes(manifest: Manifest, root: Path | None) -> list[Shape]:
    """Every shape of the data set, in an order that interleaves the categories so that any prefix is a fair sample."""
    source = manifest.source
    if isinstance(source, ProceduralSource):
        share = Fraction(str(manifest.test_fraction))  # exactly as written: 0.2 is a fifth
        indices = range(source.shapes_per_category)
        splits = ["test" if int((index + 1) * share) > int(index * share) else "train" for index in indices]
        version = f"procedural-{procedural.VERSION}"
        return [
            Shape(
                uid=f"{category}-{source.seed}-{index:05d}",
                dataset=manifest.name,
                category=category,
                split=splits[index],
                source=f"{category}:{source.seed}:{index}",
                fingerprint=version,
            )
            for index in indices
            for category in source.categories
        ]
    root = require_root(manifest, root)
    listed = folder.list_folder(root)
    shapes = []
    for uid, category, relative in listed:
        status = (root / relative).stat()
        split = folder.split_of(uid, manifest.test_fraction, source.split_seed)
        shapes.append(Shape(uid, manifest.name, category, split, relative, f"{status.st_size}-{status.st_mtime_ns}"))
    return shapes


def require_root(manifest: Manifest, root: Path | None) -> Path:
    """The data set's root, or one line on how to name it."""
    if root is None:
        raise UserError(f"manifest {manifest.name!r} reads files: say where they lie with --root DIR")
    return root


def load_shape(source: ProceduralSource | FolderSource, root: Path | None, reference: str) -> Mesh:
    """The mesh behind `Shape.source`. UserError says why it cannot be used."""
    if isinstance(source, ProceduralSource):
        category, seed, index = reference.split(":")
        return procedural.build(category, procedural.shape_seed(category, int(seed), int(index)))
    from pipeline.meshfile import load_mesh  # trimesh takes half a second to import; procedural runs do without

    assert root is not None
    return load_mesh(root / reference, root, up=source.up, front=source.front)
