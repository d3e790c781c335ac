"""Manifests: one TOML file says where a data set lies, how it is split and which recipes turn it into features."""

from __future__ import annotations

import difflib
import os
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.render import RenderConfig
from pipeline.sources.folder import FolderSource
from pipeline.sources.procedural.source import ProceduralSource
from pipeline.sources.source import Strict
from pipeline.teachers import TeacherSpec

AnySource = ProceduralSource | FolderSource


class SampleRecipe(Strict):
    """Surface points, or the choice among ready-made ones."""

    num_points: int = Field(default=8192, ge=1, le=1 << 20)
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
    obtain: str = ""
    """How to get the files."""
    units: str = ""
    """Of the files' coordinates."""
    root_variable: str = ""
    """The environment variable that names the root where --root does not."""
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Of shapes whose split no list names."""
    expected: dict[str, int] = Field(default={})
    """Split -> number of shapes in the data set as published; `recon-pipeline check` compares."""
    source: Annotated[AnySource, Field(discriminator="layout")]
    sample: SampleRecipe = SampleRecipe()
    render: RenderConfig = RenderConfig()
    features: FeatureRecipe


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape a manifest lists; see `sources.source.Listed`."""

    uid: str
    dataset: str
    category: str
    split: str
    source: str
    fingerprint: str
    captions: tuple[str, ...] = ()


def nearest(word: str, known: list[str]) -> str:
    """ " (did you mean 'x'?)" for a near miss, else an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain(path: Path, error: ValidationError) -> UserError:
    """The first of pydantic's complaints as one line with the file, the field and the mend."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place[0] == "source" and len(place) > 2:
        del place[1]  # the layout, by which pydantic found the right table
    where = ".".join(place)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return UserError(
            f"{path}: unknown field {where!r}{nearest(place[-1], [*_fields(Manifest)])}; remove or rename it"
        )
    return UserError(f"{path}: field {where!r}: {first['msg'].removeprefix('Value error, ')}")


def _fields(table: Any) -> Iterator[str]:
    """Names of all fields of a table and of the tables in it."""
    if isinstance(table, types.GenericAlias | types.UnionType) or get_args(table):
        for inner in get_args(table):
            yield from _fields(inner)
    elif isinstance(table, type) and issubclass(table, BaseModel):
        for name, info in table.model_fields.items():
            yield name
            yield from _fields(info.annotation)
    elif is_dataclass(table):
        yield from table.__dataclass_fields__


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
    names = [spec.name for spec in manifest.features.teachers]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: field 'features.teachers': two teachers share a name; give each its own `name`")
    return manifest


def list_shapes(manifest: Manifest, root: Path | None) -> list[Shape]:
    """Every shape of the data set in the source's order. UserError for two of one uid."""
    source, shapes = manifest.source, {}
    for item in source.shapes(root_of(manifest, root)):
        if item.uid in shapes:
            other = shapes[item.uid].source
            raise UserError(f"two shapes share the uid {item.uid!r}: {other} and {item.source}; rename one")
        split = item.split or source.split_of(item.uid, manifest.test_fraction)
        shapes[item.uid] = Shape(
            item.uid, manifest.name, item.category, split, item.source, item.fingerprint, item.captions
        )
    return list(shapes.values())


def root_of(manifest: Manifest, root: Path | None) -> Path:
    """The data set's root, given or from the manifest's environment variable; else one line on how to name it."""
    if not manifest.source.reads_files:
        return Path()
    variable = manifest.root_variable
    if root is None and variable and os.environ.get(variable):
        root = Path(os.environ[variable])
    if root is None:
        also = f" or the environment variable {variable}" if variable else ""
        raise UserError(f"manifest {manifest.name!r} reads files: say where they lie with --root DIR{also}")
    return root
