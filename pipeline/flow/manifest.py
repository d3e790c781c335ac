"""Manifests: one TOML file says where a data set lies, how it is split and which recipes turn it into features."""

from __future__ import annotations

import os
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.settings import Strict
from recon.pipeline.base.wording import near_paths, nearest, some
from recon.pipeline.caption.kinds import AnyCaptions
from recon.pipeline.caption.templates import RELEASE, templates_of
from recon.pipeline.rendering.render import RenderConfig
from recon.pipeline.shapes.meshfile.sidecars import fingerprint
from recon.pipeline.shapes.sample import SampleRecipe
from recon.pipeline.sources.custom import KIND, own_layout
from recon.pipeline.sources.layouts import AnySource
from recon.pipeline.sources.openshape_eval import ClassFeatures, OpenShapeEvalSource
from recon.pipeline.sources.source import Shape
from recon.pipeline.sources.stored import AnyStored
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.records import Registry
from recon.pipeline.teachers import TeacherSpec
from recon.pipeline.teachers.precision import settle

READERS = 8  # files that are looked into at once
SHIPPED = Path(__file__).parents[2] / "data_manifests"


class LiftRecipe(Strict):
    """Which teachers' patch tokens are lifted to points, and to how many."""

    teachers: tuple[str, ...] = Field(min_length=1)
    """Names of the manifest, of teachers that give a token a patch (`tap` = "patch" or "dense")."""
    num_points: int = Field(default=1024, ge=1)
    """The first of the stored farthest point order."""


class FeatureRecipe(Strict):
    """Which frozen teachers see the views and captions."""

    teachers: tuple[TeacherSpec, ...] = ()
    stored: tuple[AnyStored, ...] = ()
    """Features that came with the data set, named like teachers."""
    classes: tuple[ClassFeatures, ...] = ()
    """Features of the categories' names that came with it, named like teachers of words."""
    draws: int = Field(default=1, ge=1)
    """K: draw 0 is the clean picture, the others are augmented with seeds of their own."""
    seed: int = 0
    lift: LiftRecipe | None = None
    """None: nothing is lifted."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.teachers and not self.stored and not self.classes:
            raise ValueError("name a teacher in [[features.teachers]], or features of the files in [[features.stored]]")
        return self


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
    split_by: Literal["uid", "mesh"] = "uid"
    """What their split is drawn by; "mesh": shapes of equal meshes go to one split, see `splits.splits_by_mesh`."""
    expected: dict[str, int] = Field(default={})
    """Split -> number of shapes in the data set as published; `recon-pipeline check` compares."""
    source: Annotated[AnySource, Field(discriminator="layout")]
    sample: SampleRecipe = SampleRecipe()
    render: RenderConfig = RenderConfig()
    features: FeatureRecipe
    class_prompts: str = RELEASE
    """The release's 60, or a file of templates beside the manifest; see `store.prompts`."""
    captions: tuple[Annotated[AnyCaptions, Field(discriminator="kind")], ...] | None = None
    """Where captions of the single shape come from. None: what the shapes know of themselves, and the listing says."""


def _with_own_layout(path: Path, data: dict[str, Any]) -> tuple[type[Manifest], dict[str, Any]]:
    """What a manifest is held to whose source is a class of one's own, and its tables."""
    known = frozenset(get_args(one.model_fields["layout"].annotation)[0] for one in get_args(AnySource))
    try:
        own, table = own_layout(data["source"], known)
    except UserError as error:
        raise UserError(f"{path}: field 'source': {error}") from error
    return create_model("Manifest", __base__=Manifest, source=(own, ...)), {**data, "source": table}


def _explain(path: Path, error: ValidationError, form: type[Manifest]) -> UserError:
    """The first of pydantic's complaints as one line with the file, the field and the mend."""
    # A mistyped name of a field that must be there is two complaints, of which "unknown" says more than "missing".
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    first = min(error.errors(), key=lambda complaint: complaint["type"] not in unknown)
    place = [str(part) for part in first["loc"]]
    if place[0] == "source" and len(place) > 1 and form is Manifest:
        del place[1]  # the layout, by which pydantic found the right table
    if place[0] == "captions" and len(place) > 3:
        del place[2]  # the kind, likewise
    if place[:2] == ["features", "stored"] and len(place) > 3:
        del place[3]  # what they are of
    where = ".".join(place)
    if first["type"] in unknown:
        known = [*_fields(_table_of(first["loc"], form))]
        return UserError(f"{path}: unknown field {where!r}{nearest(place[-1], known)}; remove or rename it")
    return UserError(f"{path}: field {where!r}: {first['msg'].removeprefix('Value error, ')}")


def _table_of(place: tuple[int | str, ...], form: type[Manifest]) -> Any:
    """The source or captions that pydantic chose by layout or kind; elsewhere the whole manifest."""
    if place[0] == "source" and form is not Manifest:
        return form.model_fields["source"].annotation
    tables, tag = {"source": (AnySource, "layout"), "captions": (AnyCaptions, "kind")}.get(str(place[0]), (None, ""))
    for table in get_args(tables):
        if place[-2] in get_args(table.model_fields[tag].annotation):
            return table
    return Manifest


def _fields(table: Any) -> Iterator[str]:
    """Names of all fields of a table and of the tables in it."""
    if isinstance(table, types.GenericAlias | types.UnionType) or get_args(table):
        for inner in get_args(table):
            yield from _fields(inner)
    elif isinstance(table, type) and issubclass(table, BaseModel):
        for name, info in table.model_fields.items():
            yield name
            yield from _fields(info.annotation)
    elif isinstance(table, type) and is_dataclass(table):
        for name, inner in get_type_hints(table).items():
            yield name
            yield from _fields(inner)


def _manifest_file(path: Path) -> Path:
    """The path itself, or where the shipped manifest of that name lies."""
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}
    if path.parts and path.is_dir() and path.name not in shipped:
        held = sorted(str(file) for file in path.glob("*.toml"))
        meshes = f"for meshes in it, --manifest folder --root {path}"
        there = f"give one of its files: {some(held, most=20)}" if held else meshes
        raise UserError(f"{path} is a folder, and a manifest is a TOML file: {there}")
    if path.suffix == ".toml" or len(path.parts) > 1:
        by_name = f"; the one shipped is called {path.stem}" if path.stem in shipped else ""
        near = near_paths(path, lambda entry: entry.suffix == ".toml")
        raise UserError(f"no manifest at {path}{near}{by_name}")
    if path.name not in shipped:
        known = ", ".join(shipped)
        raise UserError(f"no manifest {path.name!r}{nearest(path.name, shipped)}; give a file's path or one of {known}")
    return shipped[path.name]


def load_manifest(path: Path | str) -> Manifest:
    """Read and validate a manifest: a TOML file, or where there is none of that name a shipped one, such as "demo".

    UserError names the file and the field that is wrong.
    """
    path = _manifest_file(Path(path))
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    form: type[Manifest] = Manifest
    table = data.get("source")
    if isinstance(table, dict) and table.get("layout") == KIND:
        form, data = _with_own_layout(path, data)
    try:
        manifest = form.model_validate(data)
    except ValidationError as error:
        raise _explain(path, error, form) from error
    names = [spec.name for spec in manifest.features.teachers]
    stored = [item.name for item in manifest.features.stored] + [item.name for item in manifest.features.classes]
    if len({*names, *stored}) < len(names) + len(stored):
        raise UserError(f"{path}: field 'features.teachers': two teachers share a name; give each its own `name`")
    if manifest.features.classes and not isinstance(manifest.source, OpenShapeEvalSource):
        layout = manifest.source.layout
        raise UserError(f"{path}: field 'features.classes': layout {layout!r} has no features of classes; remove it")
    if manifest.features.stored and not manifest.source.has_features:
        raise UserError(
            f"{path}: field 'features.stored': files of layout {manifest.source.layout!r} hold no features; remove it"
        )
    if any(item.of == "text" for item in manifest.features.stored) and not manifest.source.has_texts:
        raise UserError(f"{path}: field 'features.stored': files of layout {manifest.source.layout!r} hold no texts")
    if manifest.split_by == "mesh" and not manifest.source.has_meshes:
        raise UserError(f"{path}: field 'split_by': layout {manifest.source.layout!r} has no meshes here; use \"uid\"")
    _check_captions(path, manifest, names)
    _check_lift(path, manifest, names)
    return _with_paths(manifest, path.parent)


def _with_paths(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with relative paths of what lies beside it joined to its folder; checks its templates."""
    prompts, tables = manifest.class_prompts, manifest.captions
    if prompts != RELEASE:
        prompts = str(folder / prompts)
        templates_of(prompts)
    if tables is not None:
        tables = tuple(table.resolved(folder) for table in tables)
    teachers = tuple(spec.resolved(folder.absolute()) for spec in manifest.features.teachers)
    features = manifest.features.model_copy(update={"teachers": teachers})
    return manifest.model_copy(update={"class_prompts": prompts, "captions": tables, "features": features})


def _check_captions(path: Path, manifest: Manifest, teachers: list[str]) -> None:
    names = set()
    for number, table in enumerate(manifest.captions or ()):
        if table.name in names:
            raise UserError(f"{path}: field 'captions.{number}.name': there is another {table.name!r}; rename one")
        names.add(table.name)
        teacher = table.teacher_named
        if teacher is not None and teacher not in teachers:
            hint = f"no teacher {teacher!r}{nearest(teacher, teachers)}; there are {', '.join(teachers)}"
            raise UserError(f"{path}: field 'captions.{number}.{table.teacher_field}': {hint}")


def _check_lift(path: Path, manifest: Manifest, teachers: list[str]) -> None:
    lift, field, held = manifest.features.lift, f"{path}: field 'features.lift", manifest.sample.num_points
    if lift is None:
        return
    if not manifest.source.has_meshes:
        raise UserError(f"{field}': layout {manifest.source.layout!r} has no meshes here, so no views; remove it")
    for name in lift.teachers:
        if name not in teachers:
            hint = f"no teacher {name!r}{nearest(name, teachers)}; there are {', '.join(teachers)}"
            raise UserError(f"{field}.teachers': {hint}")
    if len(set(lift.teachers)) < len(lift.teachers):
        raise UserError(f"{field}.teachers': one is named twice")
    if lift.num_points > held:
        raise UserError(f"{field}.num_points': {lift.num_points} are more than sample.num_points = {held}")


def list_shapes(manifest: Manifest, root: Path | None) -> list[Shape]:
    """Every shape of the data set in the source's order; of the files beside each, see `fingerprinted`.

    UserError for two of one uid, and where no listed file is there: a disk that is not mounted must not pass for a data
    set that lost everything.
    """
    shapes = read_listing(manifest, root)
    if manifest.source.reads_files and all(is_missing(shape) for shape in shapes):
        raise UserError(
            f"{root_of(manifest, root)}: none of the {len(shapes)} listed files is there, such as "
            f"{shapes[0].source}; is the disk mounted, and --root right?"
        )
    return shapes


def read_listing(manifest: Manifest, root: Path | None) -> list[Shape]:
    """The same, whether any file is there or not."""
    source, where = manifest.source, root_of(manifest, root)
    try:
        if source.reads_files and where.is_dir() and not any(where.iterdir()):
            raise UserError(f"{where}: the root is empty; is the disk mounted? {manifest.obtain}".strip())
        listed = source.shapes(where)
    except OSError as error:  # no permission, or a disk that went away
        raise UserError(f"{error.filename or where}: cannot be read ({error.strerror or error})") from error
    shapes: dict[str, Shape] = {}
    for item in listed:
        if item.uid in shapes:
            other = shapes[item.uid].source
            raise UserError(f"two shapes share the uid {item.uid!r}: {other} and {item.source}; rename one")
        split = item.split or source.split_of(item.earlier or item.uid, manifest.test_fraction)
        shapes[item.uid] = Shape(
            item.uid,
            manifest.name,
            item.category,
            split,
            item.source,
            item.fingerprint,
            item.captions,
            item.earlier,
            item.split is not None,
        )
    if not shapes:
        raise UserError(f"manifest {manifest.name!r} lists no shape; look at its [source] and --root")
    return list(shapes.values())


def is_missing(shape: Shape) -> bool:
    """Whether the file that lists the shape's points or mesh was not there."""
    return shape.fingerprint.split(" ")[0] == "missing"


def fingerprinted(
    manifest: Manifest, root: Path | None, shapes: Sequence[Shape], known: Mapping[str, str]
) -> list[Shape]:
    """Shapes whose fingerprints tell of materials, textures and buffers beside a mesh file too.

    known: source -> fingerprint as registered. Every file that these do not speak of is looked into, which takes as
    long as reading it; the others cost a stamp for each file beside them.
    """
    where = root_of(manifest, root)

    def one(shape: Shape) -> Shape:
        found = manifest.source.mesh_file(where, shape.source)
        if found is None:
            return shape
        mark = fingerprint(shape.fingerprint, *found, known.get(shape.source, ""))
        return shape if mark == shape.fingerprint else replace(shape, fingerprint=mark)

    parts = [shapes[start : start + 64] for start in range(0, len(shapes), 64)]
    with ThreadPoolExecutor(READERS) as pool:  # most of the time goes to waiting for the disk
        return [shape for part in pool.map(lambda part: list(map(one, part)), parts) for shape in part]


def as_registered(shapes: Sequence[Shape], registry: Registry) -> list[Shape]:
    """Shapes by the uids that a store has them under: rows of an earlier version's name stay as they are.

    Such a shape's `earlier` is then its present uid, so that lists may name it either way. A name that another shape
    has now is that one's.
    """
    rows = registry.numbers(shapes[0].dataset) if shapes else {}
    uids = {shape.uid for shape in shapes}

    def held(shape: Shape) -> bool:
        row = rows.get(shape.earlier) if shape.uid not in rows and shape.earlier not in uids else None
        return row is not None and registry.source[row] == shape.source

    return [replace(s, uid=s.earlier, earlier=s.uid) if s.earlier and held(s) else s for s in shapes]


def settled(manifest: Manifest, store: Path | None) -> tuple[Manifest, list[str]]:
    """The manifest with its teachers' precision decided, and what to tell of that; see `precision.settle`."""
    teachers, notes = settle(manifest.features.teachers, store, manifest.name)
    features = manifest.features.model_copy(update={"teachers": teachers})
    return manifest.model_copy(update={"features": features}), notes


def origin_of(manifest: Manifest, root: Path | None) -> Origin:
    """UserError when the manifest reads files and no root is given."""
    return Origin(manifest.source, root_of(manifest, root))


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
